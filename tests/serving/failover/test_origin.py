"""The same request of the same origin is answered to the byte, whoever answers."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from conf.knobs.running import Serve
from moe.generation.engine import Engine
from serving.app import endpoint
from serving.decoding import DecodingThread
from serving.failover.origin import HEADER, Origin
from serving.replies import Served
from tests.serving.conftest import CONTEXT, Tiny, listening

ORIGIN = {HEADER: Origin("0123456789abcdef01234567", 5).written}
QUESTION = [{"role": "user", "content": "举头望明月"}]


@pytest.fixture(params=[True, False], ids=["behind", "alone"])
def answers(request: pytest.FixtureRequest, tiny: Tiny) -> Iterator[tuple[bool, list[str]]]:
    """(whether our door stands before it, addresses of two replicas)"""

    def app() -> Any:
        decoding = DecodingThread(Engine(tiny.model, 2, tiny.tokenizer.stop), waiting=6)
        return endpoint(Served("tiny", tiny.tokenizer, decoding, CONTEXT, 16), Serve(), behind=request.param)

    with listening(app()) as one, listening(app()) as other:
        yield request.param, [f"http://127.0.0.1:{port}" for port in (one, other)]


@pytest.mark.parametrize("stream", [True, False])
def test_two_replicas_answer_the_same_where_the_door_has_drawn(answers: tuple[bool, list[str]], stream: bool) -> None:
    behind, addresses = answers
    chat: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "max_tokens": 8, "stream": stream}
    response = {"model": "tiny", "input": QUESTION, "max_output_tokens": 8, "stream": stream}
    text = {"model": "tiny", "prompt": "月", "max_tokens": 8, "stream": stream}
    paths = {"chat/completions": chat, "completions": text, "messages": chat, "responses": response}
    for path, body in paths.items():
        one, other = (httpx.post(f"{each}/v1/{path}", json=body, headers=ORIGIN, timeout=600) for each in addresses)
        assert one.status_code == 200
        assert (one.content == other.content) == behind, path
        assert ("0123456789abcdef01234567" in one.text) == behind  # elsewhere a client could name another's stream


def test_an_origin_that_is_none_is_another_one() -> None:
    for text in ("", "f" * 24, "F" * 24 + "-1", "f" * 25 + "-1", "f" * 24 + "-1-1"):
        assert Origin.read(text).token not in text or not text
    assert Origin.read("f" * 24 + "-7") == Origin("f" * 24, 7)
    assert 0 <= Origin().seed < 2**64 and len({Origin().seed for _ in range(50)}) == 50
    assert len(Origin().name(0, 1)) == 24 and Origin("a" * 24).name(0, 1) != Origin("a" * 24).name(0, 2)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "who answers in a dead replica's place draws the same",
        "serving/asking.py",
        "seed = origin.seed if request.seed is None",
        "seed = Origin().seed if request.seed is None",
        None,
    ),
]

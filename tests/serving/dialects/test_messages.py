"""Anthropic's API over real HTTP, asked by its own client where that is installed, and on the wire."""

import hashlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from moe.generation.engine import Engine, Sampling, Token, generate
from moe.text.chat import prompt_ids
from serving.keys import Key
from tests.serving.conftest import CONTEXT, Tiny
from tests.serving.dialects.conftest import Dying, events, running

QUESTION = [{"role": "user", "content": "举头望明月"}]
ASK: dict[str, Any] = {"model": "tiny", "max_tokens": 12, "temperature": 0, "messages": QUESTION}
SAID = {name: ASK[name] for name in ("model", "max_tokens", "messages")}  # the rest has no argument in the client
SECRET = "sk-0123456789abcdef"


@pytest.fixture(scope="module")
def client(address: str, anthropic: Any) -> Iterator[Any]:
    with anthropic.Anthropic(base_url=address, api_key="none", max_retries=0, timeout=600) as client:
        yield client


def directly(tiny: Tiny, messages: list[dict[str, str]], sampling: Sampling) -> str:
    ids = prompt_ids(tiny.tokenizer, messages)
    return tiny.tokenizer.decode(generate(tiny.model, [ids], [sampling], stop=tiny.tokenizer.stop)[0].tokens)


def post(address: str, path: str = "", **fields: Any) -> httpx.Response:
    return httpx.post(f"{address}/v1/messages{path}", json=ASK | fields, timeout=600)


def refused(response: httpx.Response) -> tuple[int, str, str]:
    """(status, type, message) of an error in Anthropic's shape."""
    body = response.json()
    assert (body["type"], set(body), set(body["error"])) == ("error", {"type", "error"}, {"type", "message"})
    return response.status_code, body["error"]["type"], body["error"]["message"]


def test_its_client_gets_the_engines_answer(client: Any, tiny: Tiny) -> None:
    message = client.messages.create(**SAID, system="你是诗人", extra_body={"temperature": 0})
    asked = [{"role": "system", "content": "你是诗人"}, *QUESTION]
    assert [(block.type, block.text) for block in message.content] == [
        ("text", directly(tiny, asked, Sampling(12, temperature=0)))
    ]
    assert (message.type, message.role, message.model) == ("message", "assistant", "tiny")
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    assert message.usage.input_tokens == len(prompt_ids(tiny.tokenizer, asked))
    assert message.usage.output_tokens == 12
    assert message.id.startswith("msg_")


def test_its_client_streams_the_same(client: Any) -> None:
    plain = client.messages.create(**SAID, extra_body={"temperature": 0})
    with client.messages.stream(**SAID, extra_body={"temperature": 0}) as stream:
        pieces = list(stream.text_stream)
        whole = stream.get_final_message()
    assert len(pieces) > 5
    assert "".join(pieces) == plain.content[0].text == whole.content[0].text
    assert (whole.stop_reason, whole.usage.output_tokens) == ("max_tokens", 12)
    assert whole.usage.input_tokens == plain.usage.input_tokens


def test_its_client_counts_lists_and_is_refused(client: Any, anthropic: Any, tiny: Tiny) -> None:
    counted = client.messages.count_tokens(model="tiny", system="诗", messages=QUESTION)
    assert counted.input_tokens == len(prompt_ids(tiny.tokenizer, [{"role": "system", "content": "诗"}, *QUESTION]))
    assert [(model.id, model.display_name) for model in client.models.list()] == [("tiny", "tiny")]
    with pytest.raises(anthropic.NotFoundError, match="'tiny'"):
        client.messages.create(**SAID | {"model": "claude-opus-4"})
    with pytest.raises(anthropic.BadRequestError, match=f"context of {CONTEXT}"):
        client.messages.create(**SAID | {"max_tokens": CONTEXT})


def test_a_stop_sequence_is_named(address: str) -> None:
    whole = post(address).json()["content"][0]["text"]
    made = post(address, stop_sequences=["#never#", whole[6:8]]).json()
    assert made["content"] == [{"type": "text", "text": whole[: whole.index(whole[6:8])]}]
    assert (made["stop_reason"], made["stop_sequence"]) == ("stop_sequence", whole[6:8])


def test_an_answer_that_ends_by_itself_says_so(address: str, tiny: Tiny) -> None:
    """Temperature is at most 1 here, and this model ends few answers then: the likeliest first token is the end."""

    class Ending(Engine):
        def step(self) -> list[Token]:
            return [Token(each.request, self.stop[0], 0.0, "stop") for each in super().step()]

    with running(Ending(tiny.model, 2, tiny.tokenizer.stop), tiny.tokenizer) as other:
        made = post(other).json()
    assert (made["stop_reason"], made["content"], made["usage"]["output_tokens"]) == ("end_turn", [], 1)


def test_blocks_turns_and_a_begun_answer_are_one_chat(address: str, tiny: Tiny) -> None:
    text = {"type": "text", "text": "望", "cache_control": {"type": "ephemeral"}}
    turns = [{"role": "user", "content": "举头"}, {"role": "user", "content": [text, {"type": "text", "text": "月"}]}]
    made = post(address, messages=turns, system=[{"type": "text", "text": "你是"}, {"type": "text", "text": "诗人"}])
    asked = [{"role": "system", "content": "你是诗人"}, {"role": "user", "content": "举头\n望月"}]
    assert made.json()["content"][0]["text"] == directly(tiny, asked, Sampling(12, temperature=0))
    assert made.headers["warning"] == '299 conclave "no answer hangs on: content.cache_control"'
    whole = directly(tiny, QUESTION, Sampling(12, temperature=0))
    begun = post(address, messages=[*QUESTION, {"role": "assistant", "content": "低"}], max_tokens=4).json()
    ids = [*prompt_ids(tiny.tokenizer, QUESTION), *tiny.tokenizer.encode("低")]
    assert begun["usage"]["input_tokens"] == len(ids)
    assert post(address, max_tokens=1, top_k=1, temperature=1).json()["content"][0]["text"] == whole[:1]


def test_a_stream_on_the_wire(address: str) -> None:
    response = post(address, stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    named = events(response)
    assert all(data["type"] == name for name, data in named)
    names = [name for name, _ in named]
    count = names.count("content_block_delta")
    assert names == [
        "message_start", "content_block_start", *["content_block_delta"] * count, "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    started = named[0][1]["message"]
    assert (started["content"], started["stop_reason"], started["usage"]["output_tokens"]) == ([], None, 0)
    assert named[-2][1]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
    assert named[-2][1]["usage"]["output_tokens"] == 12


@pytest.mark.parametrize(
    ("fields", "status", "kind", "named"),
    [
        ({"model": "gpt-4o"}, 404, "not_found_error", "'tiny'"),
        ({"max_tokens": None}, 400, "invalid_request_error", "max_tokens"),
        ({"max_tokens": 0}, 400, "invalid_request_error", "max_tokens=0"),
        ({"temperature": 1.5}, 400, "invalid_request_error", "temperature=1.5"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, 400, "invalid_request_error", "thinking="),
        ({"chat_template": "{{ 1 }}"}, 400, "invalid_request_error", "chat_template is not a field"),
        ({"messages": []}, 400, "invalid_request_error", "messages=[]"),
        ({"tool_choice": {"type": "tool"}}, 400, "invalid_request_error", "type='tool' needs a name"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_request_error", "messages[0].role='tool'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            400,
            "invalid_request_error",
            "messages[0].content[0].type='image'",
        ),
        ({"stop_sequences": [""]}, 400, "invalid_request_error", "stop_sequences has an empty text"),
    ],
)
def test_what_is_refused(address: str, fields: dict[str, Any], status: int, kind: str, named: str) -> None:
    got = refused(post(address, **fields))
    assert got[:2] == (status, kind)
    assert named in got[2]


def test_every_error_has_its_shape(tiny: Tiny) -> None:
    key = Key("alice", hashlib.sha256(SECRET.encode()).hexdigest(), per_minute=1)
    with running(Engine(tiny.model, 2, tiny.tokenizer.stop), tiny.tokenizer, keys=(key,)) as address:
        assert refused(post(address))[:2] == (401, "authentication_error")
        mine = {"x-api-key": SECRET, "anthropic-version": "2023-06-01"}
        assert refused(httpx.get(f"{address}/v1/messages", headers=mine))[:2] == (405, "invalid_request_error")
        assert refused(httpx.get(f"{address}/v1/messages/batches", headers=mine))[:2] == (404, "not_found_error")
        plain = httpx.post(f"{address}/v1/messages", content=b"{}", headers=mine)
        assert refused(plain)[0] == 415
        ask = dict(headers=mine, json=ASK, timeout=600)
        assert httpx.post(f"{address}/v1/messages", **ask).status_code == 200  # type: ignore[arg-type]
        last = httpx.post(f"{address}/v1/messages", **ask)  # type: ignore[arg-type]
        assert refused(last)[:2] == (429, "rate_limit_error")
        assert "error" in httpx.get(f"{address}/v1/models").json()
        assert httpx.get(f"{address}/v1/models").json()["error"]["code"] == "invalid_api_key"  # OpenAI's


def test_a_stream_that_fails_ends_in_its_error_event(tiny: Tiny) -> None:
    with running(Dying(tiny.model, 2, tiny.tokenizer.stop), tiny.tokenizer) as address:
        *_, last = events(post(address, stream=True))
        told = {"type": "overloaded_error", "message": "decoding stopped: ArithmeticError: off"}
        assert last == ("error", {"type": "error", "error": told})
        assert refused(post(address))[:2] == (503, "overloaded_error")


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an error of /v1/messages has Anthropic's shape",
        "serving/dialects/shapes.py",
        '_ANTHROPIC = "/v1/messages"',
        '_ANTHROPIC = "/v1/message"',
        "test_every_error_has_its_shape",
    ),
    (
        "Anthropic's clients hear which text ended an answer",
        "serving/dialects/messages.py",
        "stop = self._texts[0].stop",
        'stop = ""',
        "test_a_stop_sequence_is_named",
    ),
]

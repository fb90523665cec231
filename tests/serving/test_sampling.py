"""What a request says of how it is drawn, over HTTP, and what of its prompt was there already, in each API's words."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import OpenAI

from conf.knobs.running import Serve
from moe.generation.engine import Engine, Sampling, generate
from moe.text.chat import prompt_ids
from serving.app import endpoint
from serving.decoding import DecodingThread
from serving.replies import Served
from tests.serving.conftest import CONTEXT, LINES, Tiny, data, listening

QUESTION = [{"role": "user", "content": "举头望明月"}]


@pytest.fixture
def address(tiny: Tiny) -> Iterator[str]:
    """An endpoint that keeps what ended, and has nothing yet."""
    decoding = DecodingThread(Engine(tiny.model, 2, tiny.tokenizer.stop, keep=4), waiting=6)
    with listening(endpoint(Served("tiny", tiny.tokenizer, decoding, CONTEXT, 16), Serve())) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def client(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=600) as client:
        yield client


def test_each_word_reaches_the_engine(client: OpenAI, tiny: Tiny) -> None:
    ids = prompt_ids(tiny.tokenizer, QUESTION)
    likeliest = generate(tiny.model, [ids], [Sampling(1, temperature=0.0)], stop=())[0].tokens[0]
    named: dict[str, Any] = {
        "min_p": 0.2,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 1.5,
        "logit_bias": {str(likeliest): -100.0, "9": 1},
    }
    drawn = set()
    for names in (*([name] for name in named), list(named)):
        said = {name: named[name] for name in names}
        biases: dict[str, Any] = (
            {"logit_bias": tuple(sorted({likeliest: -100.0, 9: 1.0}.items()))} if "logit_bias" in said else {}
        )
        sampling = Sampling(12, seed=5, **(said | biases))
        expected = tiny.tokenizer.decode(generate(tiny.model, [ids], [sampling], stop=tiny.tokenizer.stop)[0].tokens)
        how: dict[str, Any] = {"model": "tiny", "seed": 5, "max_tokens": 12, "extra_body": said}
        chat: Any = client.chat.completions.create(**(how | {"messages": QUESTION}))
        assert chat.choices[0].message.content == expected, names
        assert client.completions.create(prompt=ids, **how).choices[0].text == expected, names
        drawn.add(expected)
    assert len(drawn) > 3  # each of them does something


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
def test_a_token_that_is_none_is_refused(address: str, tiny: Tiny, path: str) -> None:
    asked: dict[str, Any] = {"model": "tiny", "logit_bias": {str(tiny.tokenizer.size): 1}}
    asked |= {"messages": QUESTION} if path.startswith("chat") else {"prompt": "月"}
    response = httpx.post(f"{address}/v1/{path}", json=asked, timeout=600)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "logit_bias")
    assert f"which has {tiny.tokenizer.size}" in response.json()["error"]["message"]


def test_usage_says_what_the_prefix_cache_had(address: str, client: OpenAI, tiny: Tiny) -> None:
    ids = [*tiny.tokenizer.encode("".join(LINES)), *tiny.tokenizer.encode("".join(LINES[::-1]))][:60]
    how: dict[str, Any] = {"model": "tiny", "max_tokens": 4}

    def complete(**fields: Any) -> Any:
        return client.completions.create(**(how | fields))

    made = [complete(prompt=ids, temperature=0) for _ in range(2)]
    *_, last = complete(prompt=[ids, ids[:30]], n=2, stream=True, stream_options={"include_usage": True})
    found = [each.usage.prompt_tokens_details.cached_tokens for each in (*made, last)]
    assert found == [0, 59, 59 + 29]  # all but a prompt's last token
    assert (made[1].usage.prompt_tokens, made[1].usage.total_tokens) == (60, 64)
    assert made[0].choices[0].text == made[1].choices[0].text

    talk = [{"role": "user", "content": "".join(LINES)}]
    size = len(prompt_ids(tiny.tokenizer, talk))
    chat: dict[str, Any] = {"model": "tiny", "messages": talk, "max_tokens": 4, "temperature": 0}

    def post(path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(f"{address}/v1/{path}", json=body, timeout=600)

    assert size > 17
    assert post("chat/completions", chat).json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    usage = post("chat/completions", chat).json()["usage"]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]) == (size, size - 1)
    asked = {"model": "tiny", "input": talk, "max_output_tokens": 4, "temperature": 0}
    assert post("responses", asked).json()["usage"]["input_tokens_details"]["cached_tokens"] == size - 1
    usage = post("messages", chat).json()["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (1, size - 1)  # as Anthropic counts
    events = [each for each in post("messages", chat | {"stream": True}).text.split("\n\n") if "message_delta" in each]
    assert data(events[0])["usage"] == usage
    text = httpx.get(f"{address}/metrics").text
    hits = next(line for line in text.splitlines() if line.startswith("vllm:prefix_cache_hits_total"))
    assert float(hits.split()[-1]) == 59 * 3 + 29 * 2 + 4 * (size - 1)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "usage counts what was cached of a prompt once",
        "serving/replies.py",
        "sum(min(cached[at : at + self._each])",
        "sum(sum(cached[at : at + self._each])",
        "test_usage_says_what_the_prefix_cache_had",
    ),
    (
        "a penalty that is asked for is paid",
        "serving/asking.py",
        "frequency_penalty=request.frequency_penalty or 0.0",
        "frequency_penalty=0.0",
        "test_each_word_reaches_the_engine",
    ),
]

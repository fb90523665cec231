"""OpenAI's Responses over real HTTP, asked by its own client and on the wire."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import APIStatusError, OpenAI

from moe.generation.engine import Engine, Sampling, Token, generate
from moe.text.chat import prompt_ids
from tests.serving.conftest import CONTEXT, Tiny
from tests.serving.dialects.conftest import Dying, events, running

ASK: dict[str, Any] = {"model": "tiny", "input": "举头望明月", "temperature": 0, "max_output_tokens": 12}
QUESTION = {"role": "user", "content": "举头望明月"}


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=600) as client:
        yield client


def directly(tiny: Tiny, messages: list[dict[str, str]]) -> str:
    ids = prompt_ids(tiny.tokenizer, messages)
    made = generate(tiny.model, [ids], [Sampling(12, temperature=0)], stop=tiny.tokenizer.stop)
    return tiny.tokenizer.decode(made[0].tokens)


def test_its_client_gets_the_engines_answer(client: OpenAI, tiny: Tiny) -> None:
    response = client.responses.create(**ASK, instructions="你是诗人", metadata={"trace": "7"}, store=False)
    asked = [{"role": "system", "content": "你是诗人"}, QUESTION]
    assert response.output_text == directly(tiny, asked)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.usage and response.usage.input_tokens == len(prompt_ids(tiny.tokenizer, asked))
    assert (response.usage.output_tokens, response.usage.total_tokens) == (12, 12 + response.usage.input_tokens)
    assert (response.metadata, response.model_dump()["store"]) == ({"trace": "7"}, False)
    [message] = response.output
    assert (message.type, message.status) == ("message", "incomplete")


def test_what_it_answered_is_input_again(client: OpenAI, tiny: Tiny) -> None:
    first = client.responses.create(**ASK)
    later = client.responses.create(
        **ASK | {"input": [QUESTION, *(item.model_dump() for item in first.output), {"role": "user", "content": "再"}]}
    )
    said = {"role": "assistant", "content": first.output_text}
    assert later.output_text == directly(tiny, [QUESTION, said, {"role": "user", "content": "再"}])
    parts = [
        {"role": "user", "content": [{"type": "input_text", "text": "举头"}, {"type": "input_text", "text": "望明月"}]}
    ]
    assert client.responses.create(**ASK | {"input": parts}).output_text == first.output_text


def test_its_client_streams_the_same(client: OpenAI) -> None:
    plain = client.responses.create(**ASK)
    seen = list(client.responses.create(**ASK, stream=True))
    final = seen[-1].response
    pieces = [each.delta for each in seen if each.type == "response.output_text.delta"]
    assert len(pieces) > 5
    assert "".join(pieces) == plain.output_text == final.output_text
    assert [each.sequence_number for each in seen] == list(range(len(seen)))
    assert final.usage == plain.usage
    assert seen[-1].type == "response.incomplete"
    assert seen[0].response.output == [] and seen[0].response.status == "in_progress"


def test_a_stream_on_the_wire(address: str) -> None:
    response = httpx.post(f"{address}/v1/responses", json=ASK | {"stream": True}, timeout=600)
    named = events(response)
    assert all(data["type"] == name for name, data in named)
    names = [name.removeprefix("response.") for name, _ in named]
    assert names == [
        "created", "in_progress", "output_item.added", "content_part.added",
        *["output_text.delta"] * names.count("output_text.delta"),
        "output_text.done", "content_part.done", "output_item.done", "incomplete",
    ]  # fmt: skip
    places = {(each["output_index"], each["content_index"], each["item_id"]) for _, each in named if "item_id" in each}
    assert places == {(0, 0, named[2][1]["item"]["id"])}


def test_an_answer_that_ends_by_itself_is_completed(tiny: Tiny) -> None:
    class Ending(Engine):
        def step(self) -> list[Token]:
            return [Token(each.request, self.stop[0], 0.0, "stop") for each in super().step()]

    with running(Ending(tiny.model, 2, tiny.tokenizer.stop), tiny.tokenizer) as address:
        made = httpx.post(f"{address}/v1/responses", json=ASK, timeout=600).json()
        last = events(httpx.post(f"{address}/v1/responses", json=ASK | {"stream": True}, timeout=600))[-1]
    assert (made["status"], made["incomplete_details"], made["output"][0]["content"][0]["text"]) == (
        "completed",
        None,
        "",
    )
    assert last[0] == "response.completed"


@pytest.mark.parametrize(
    ("fields", "status", "param", "named"),
    [
        ({"model": "gpt-5"}, 404, "model", "'tiny'"),
        ({"previous_response_id": "resp_1"}, 400, "previous_response_id", "no response is kept here"),
        ({"store": True}, 400, "store", "no response is kept here"),
        ({"conversation": "conv_1"}, 400, "conversation", "no response is kept here"),
        ({"background": True}, 400, "background", "background=True is not supported"),
        ({"max_output_tokens": CONTEXT}, 400, "max_output_tokens", "or ask for max_output_tokens="),
        ({"max_output_tokens": 0}, 400, "max_output_tokens", "max_output_tokens=0"),
        ({"input": "月" * CONTEXT}, 400, "input", "shorten the input"),
        ({"input": []}, 400, "input", "input=[]"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, 400, "input[0].type", "'item_reference'"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, 400, "input[0].content[0].type", "image"),
        ({"reasoning": {"effort": "high"}}, 400, "reasoning", "is not supported"),
        ({"prompt": {"id": "p"}}, 400, "prompt", "prompt is not a field"),
    ],
)
def test_what_is_refused(client: OpenAI, fields: dict[str, Any], status: int, param: str, named: str) -> None:
    with pytest.raises(APIStatusError) as caught:
        client.responses.create(**ASK | fields)
    assert (caught.value.status_code, caught.value.param) == (status, param)
    assert named in caught.value.message


def test_a_stream_that_fails_says_so_in_its_last_event(tiny: Tiny) -> None:
    with running(Dying(tiny.model, 2, tiny.tokenizer.stop), tiny.tokenizer) as address:
        response = httpx.post(f"{address}/v1/responses", json=ASK | {"stream": True}, timeout=600)
    last = events(response)[-1]
    name, failed = last
    assert (name, failed["response"]["status"]) == ("response.failed", "failed")
    error = {"code": "server_error", "message": "decoding stopped: ArithmeticError: off"}
    assert failed["response"]["error"] == error


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what another server would have kept is refused by name",
        "serving/dialects/responses.py",
        '@field_validator("store", "previous_response_id", "conversation")',
        '@field_validator("store", "conversation")',
        "test_what_is_refused",
    ),
    (
        "a response that was cut off is incomplete",
        "serving/dialects/responses.py",
        'cut = {"reason": "max_output_tokens"} if finish == "length" else None',
        "cut = None",
        "test_its_client_gets_the_engines_answer",
    ),
]

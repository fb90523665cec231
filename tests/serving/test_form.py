"""Answers that must have a form: JSON, and JSON that a schema holds for, whatever the model would rather say."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from openai import APIStatusError, OpenAI

from conf.errors import InputError
from moe.generation.engine import Engine, Sampling, Token
from moe.generation.guides import MAX_SCHEMA, Grammar
from moe.generation.masks import masked
from moe.text.tokenizer import Tokenizer
from tests.moe.text.parents import parent
from tests.serving.conftest import Tiny
from tests.serving.dialects.conftest import running

PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["李白", "杜甫"]}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "谁？"}], "max_tokens": 200, "seed": 3}
AS_PERSON: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}


@pytest.fixture(scope="module")
def address(tiny: Tiny) -> Iterator[str]:
    with running(Engine(tiny.model, 4, tiny.tokenizer.stop), tiny.tokenizer) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=600) as client:
        yield client


def person(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    jsonschema.validate(found, PERSON)
    return found


def test_several_answers_keep_the_schema_each_its_own_way(client: OpenAI) -> None:
    reply = client.chat.completions.create(**ASK, n=4, temperature=1.5, response_format=AS_PERSON)
    assert {choice.finish_reason for choice in reply.choices} == {"stop"}
    found = [person(choice.message.content or "") for choice in reply.choices]
    assert len({json.dumps(each) for each in found}) > 1
    free = client.chat.completions.create(**ASK, n=1, temperature=1.5)
    with pytest.raises(json.JSONDecodeError):
        json.loads(free.choices[0].message.content or "")


def test_a_stream_keeps_it_beside_one_that_need_not(client: OpenAI) -> None:
    plain = client.chat.completions.create(**ASK, response_format=AS_PERSON).choices[0].message.content
    chunks = client.chat.completions.create(**ASK, response_format=AS_PERSON, stream=True)
    first = next(chunks)
    beside = client.chat.completions.create(**ASK).choices[0].message.content
    text = "".join(chunk.choices[0].delta.content or "" for chunk in [first, *chunks])
    assert text == plain
    person(text)
    assert beside == client.chat.completions.create(**ASK).choices[0].message.content != plain


def test_responses_and_messages_keep_it_too(client: OpenAI, address: str) -> None:
    response = client.responses.create(
        model="tiny", input="谁？", max_output_tokens=200,
        text={"format": {"type": "json_schema", "name": "person", "schema": PERSON}},
    )  # fmt: skip
    assert response.status == "completed"
    person(response.output_text)
    assert response.text and response.text.format and response.text.format.type == "json_schema"
    body = {"model": "tiny", "max_tokens": 200, "messages": ASK["messages"]}
    body["output_config"] = {"format": {"type": "json_schema", "schema": PERSON}}
    made = httpx.post(f"{address}/v1/messages", json=body, timeout=600).json()
    assert made["stop_reason"] == "end_turn"
    person(made["content"][0]["text"])


def test_an_object_is_one(client: OpenAI) -> None:
    whole = []
    for seed in range(8):
        reply = client.chat.completions.create(
            **ASK | {"seed": seed}, temperature=1.0, response_format={"type": "json_object"}
        ).choices[0]
        assert reply.message.content and reply.message.content.startswith("{")
        whole += [json.loads(reply.message.content)] if reply.finish_reason == "stop" else []
    assert all(isinstance(each, dict) for each in whole)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "robot"}, "'person' is not supported: Invalid type: robot"),
        ({"type": "object", "not": {}}, 'Unimplemented keys: ["not"]'),
        ({"type": "object", "x-guidance": {"lenient": True}, "not": {}}, 'Unimplemented keys: ["not"]'),
        ({"$ref": "https://example.org/x.json"}, "https://example.org/x.json"),
        ({"type": "object", "properties": {"a": {"type": "string", "pattern": "a+"}}}, "pattern: regular expressions"),
        ({"anyOf": [{"patternProperties": {"a": {}}}]}, "patternProperties: regular expressions"),
        ({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}, "NoExtension"),
        (nested(150), "recursion limit exceeded"),
        ({"const": "月" * MAX_SCHEMA}, f"may have {MAX_SCHEMA}"),
    ],
)
def test_a_schema_that_is_not_supported_is_refused_by_name(client: OpenAI, schema: Any, named: str) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    with pytest.raises(APIStatusError) as caught:
        client.chat.completions.create(**ASK, response_format=form)
    assert (caught.value.status_code, caught.value.param) == (400, "response_format")
    assert named in caught.value.message
    assert len(caught.value.message) < 500


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ({"type": "json_schema"}, "response_format: type='json_schema' needs a json_schema"),
        ({"type": "grammar"}, "response_format.type='grammar'"),
        ({"type": "json_schema", "json_schema": {"schema": {}}}, "response_format.json_schema.name"),
    ],
)
def test_what_is_no_form_is_refused(client: OpenAI, form: Any, named: str) -> None:
    with pytest.raises(APIStatusError) as caught:
        client.chat.completions.create(**ASK, response_format=form)
    assert caught.value.status_code == 400
    assert named in caught.value.message


def test_names_and_values_that_look_like_keywords_are_neither(tiny: Tiny) -> None:
    schema = {"type": "object", "properties": {"pattern": {"enum": ["pattern"]}, "b": {"const": {"pattern": "a"}}}}
    Grammar.of_schema(tiny.tokenizer, schema)


values = some.sampled_from([0, 7, -3, 2.5, True, None, "月", 'a"b\\', ""])
leaves = some.one_of(
    some.builds(lambda each: {"enum": each}, some.lists(values, min_size=1, max_size=3)),
    some.builds(lambda each: {"const": each}, values),
    some.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["boolean", "null"]}]),
    some.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more},
                some.integers(-50, 50), some.integers(0, 60)),
    some.builds(lambda most: {"type": "string", "maxLength": most}, some.integers(0, 6)),
)  # fmt: skip


def wider(inner: Any) -> Any:
    def thing(properties: dict[str, Any], required: int) -> dict[str, Any]:
        needed = list(properties)[:required]
        return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}

    names = some.text('ab月"\\', min_size=1, max_size=3)
    return some.one_of(
        some.builds(thing, some.dictionaries(names, inner, max_size=3), some.integers(0, 3)),
        some.builds(
            lambda items, most: {"type": "array", "items": items, "maxItems": most}, inner, some.integers(0, 3)
        ),
        some.builds(lambda each: {"anyOf": each}, some.lists(inner, min_size=1, max_size=2)),
    )


ENDED: list[bool] = []


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=some.recursive(leaves, wider, max_leaves=4), seed=some.integers(0, 2**32))
def test_whatever_the_schema_a_completed_answer_parses_and_validates(tiny: Tiny, schema: Any, seed: int) -> None:
    """Masked noise: this model's own answers are never JSON."""
    tokenizer = tiny.tokenizer
    engine = Engine(tiny.model, 1, tokenizer.stop)
    guide = Grammar.of_schema(tokenizer, schema).guide()
    engine.add("a", tokenizer.encode("谁？"), Sampling(120, temperature=2.0, seed=seed), guide)
    made: list[Token] = []
    while not engine.idle:
        made += engine.step()
    assert guide.error == ""
    ENDED.append(made[-1].finish == "stop")
    if made[-1].finish == "stop":
        found = json.loads(tokenizer.decode([token.id for token in made]))
        jsonschema.validate(found, schema)


def test_what_the_schema_forbids_cannot_come(tiny: Tiny) -> None:
    guide = Grammar.of_schema(tiny.tokenizer, {"type": "boolean"}).guide()
    likely = masked(torch.full((2, tiny.tokenizer.padded_size), 9.0), [guide, None])
    open_, free = (row > -1e9 for row in likely)
    begins = {tiny.tokenizer.decode([int(token)]) for token in open_.nonzero().flatten()}
    assert {"t", "f"} <= begins and all("true".startswith(text) or "false".startswith(text) for text in begins)
    assert likely[0][~open_].max() == float("-inf") and bool(free.all())


def test_most_of_them_were_completed() -> None:
    assert sum(ENDED) >= 0.5 * len(ENDED)


@pytest.mark.parametrize("family", ["smollm2", "qwen3", "llama3", "llama2", "deepseek_v3"])
def test_any_familys_tokenizer_will_do(family: str, tmp_path: Path) -> None:
    """Each text is taken token by token as its family writes it, and then the end is all that may come."""
    tokenizer = Tokenizer.load(parent(family, tmp_path))
    guide = Grammar.of_schema(tokenizer, PERSON).guide()
    for token in tokenizer.encode('{"name": "李白", "age": 61}'):
        assert guide.allowed()[token], tokenizer.bytes_of(token)
        guide.took(token)
    assert set(guide.allowed().nonzero().flatten().tolist()) == set(tokenizer.stop)
    assert guide.error == ""


def test_a_guide_that_fails_ends_its_answer_alone(tiny: Tiny) -> None:
    guide = Grammar.of_schema(tiny.tokenizer, {"type": "integer"}).guide()
    guide.took(tiny.tokenizer.encode("月")[0])
    assert "doesn't satisfy the grammar" in guide.error
    assert set(guide.allowed().nonzero().flatten().tolist()) == set(tiny.tokenizer.stop)
    with pytest.raises(InputError, match="Invalid type"):
        Grammar.of_schema(tiny.tokenizer, {"type": "x"})


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "every completed answer keeps its schema",
        "moe/generation/masks.py",
        'row[: len(allowed)].masked_fill_(~allowed, float("-inf"))',
        "row[: len(allowed)].masked_fill_(~allowed, -1.0)",
        "test_what_the_schema_forbids_cannot_come",
    ),
    (
        "each of several answers follows the schema by itself",
        "moe/generation/guides.py",
        "self._begun.deep_copy()",
        "self._begun",
        "test_several_answers_keep_the_schema_each_its_own_way",
    ),
    (
        "no regular expression is taken from a request",
        "moe/generation/guides.py",
        "    _without_expressions(schema)\n    return text",
        "    return text",
        "test_a_schema_that_is_not_supported_is_refused_by_name",
    ),
]

import json
from typing import Any

import pytest

from serving.dialects.strict import ApiError, parse
from serving.schema import ChatRequest

CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def refusal(**fields: object) -> dict[str, Any]:
    with pytest.raises(ApiError) as caught:
        parse(json.dumps(HELLO | fields).encode(), ChatRequest)
    assert caught.value.status_code == 400
    error: dict[str, Any] = caught.value.body["error"]
    assert error["type"] == "invalid_request_error"
    return error


def test_what_is_not_said_is_none() -> None:
    request = parse(json.dumps(HELLO).encode(), ChatRequest)
    assert (request.temperature, request.bound, request.stops, request.stream) == (None, None, [], None)


def test_edges_of_every_bound_are_accepted() -> None:
    given = {"temperature": 2, "top_p": 1, "n": 8, "max_tokens": 1, "stop": ["a"] * 4, "seed": -(2**63)}
    request = parse(json.dumps(HELLO | given).encode(), ChatRequest)
    assert (request.temperature, request.top_p, request.n, request.bound) == (2.0, 1.0, 8, 1)
    assert (request.stops, request.seed) == (["a"] * 4, -(2**63))
    assert (
        parse(json.dumps(HELLO | {"messages": HELLO["messages"] * 256}).encode(), ChatRequest).messages[255].content
        == "hi"
    )


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("temperature", 2.001, "temperature"),
        ("temperature", -0.1, "temperature"),
        ("temperature", float("nan"), "temperature"),
        ("temperature", float("inf"), "temperature"),
        ("temperature", "1", "temperature"),
        ("top_p", 0, "top_p"),
        ("top_p", 1.01, "top_p"),
        ("n", 0, "n"),
        ("n", 9, "n"),
        ("n", 1.5, "n"),
        ("n", True, "n"),
        ("max_tokens", 0, "max_tokens"),
        ("max_completion_tokens", -1, "max_completion_tokens"),
        ("seed", 2**63, "seed"),
        ("stop", ["a"] * 5, "stop"),
        ("stop", 7, "stop"),
        ("stream", "yes", "stream"),
        ("messages", [], "messages"),
        ("messages", HELLO["messages"] * 257, "messages"),
        ("messages", [{"role": "robot", "content": "x"}], "messages[0].role"),
        ("messages", [{"role": "tool", "content": "x"}], "messages[0]"),
        ("messages", [{"role": "user", "content": "x", "tool_call_id": "c"}], "messages[0]"),
        ("messages", [{"role": "user", "content": "x", "tool_calls": [CALL]}], "messages[0]"),
        ("messages", [{"role": "assistant", "tool_calls": []}], "messages[0].content"),
        ("messages", [{"role": "user"}], "messages[0].content"),
        ("messages", [{"role": "user", "content": None}], "messages[0].content"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0].type"),
        ("messages", [{"role": "user", "content": "x", "images": ["a"]}], "messages[0].images"),
        ("messages", [{"role": "assistant", "content": "x", "prefix": True}], "messages[0].prefix"),
        ("messages", [{"role": "user", "content": [{"type": "text", "text": "", "k": 1}]}], "messages[0].content[0].k"),
        ("stream_options", {"continuous_usage_stats": True}, "stream_options.continuous_usage_stats"),
        ("reasoning_effort", "high", "reasoning_effort"),
        ("prediction", {"type": "content", "content": "x"}, "prediction"),
        ("model", None, "model"),
        ("presence_penalty", 2.1, "presence_penalty"),
        ("presence_penalty", False, "presence_penalty"),
        ("frequency_penalty", -2.1, "frequency_penalty"),
        ("repetition_penalty", 0, "repetition_penalty"),
        ("min_p", 1.01, "min_p"),
        ("logit_bias", {"5": 101}, "logit_bias"),
        ("logit_bias", {"five": 1}, "logit_bias.five"),
        ("logit_bias", {"-1": 1}, "logit_bias"),
        ("logit_bias", {str(token): 1 for token in range(1025)}, "logit_bias"),
        ("logit_bias", [5], "logit_bias"),
        ("logprobs", True, "logprobs"),
        ("tools", [{"type": "function"}], "tools[0].function"),
        ("tools", [{"type": "web_search"}], "tools[0].type"),
        ("tools", [{"type": "function", "function": {"name": "a b"}}], "tools[0].function.name"),
        ("tool_choice", "always", "tool_choice"),
        ("tool_choice", {"type": "function"}, "tool_choice.function"),
        ("top_k", -1, "top_k"),
        ("response_format", {"type": "xml"}, "response_format.type"),
        ("chat_template", "{{ 1 }}", "chat_template"),
    ],
)
def test_a_bad_value_is_refused_by_name(field: str, value: object, param: str) -> None:
    error = refusal(**{field: value})
    assert error["param"] == param
    assert str(error["message"]).startswith(param)


def test_values_that_ask_for_nothing_are_accepted() -> None:
    idle = {"presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "logprobs": False, "tools": None}
    assert (
        parse(json.dumps(HELLO | idle | {"response_format": {"type": "text"}, "user": "u"}).encode(), ChatRequest).user
        == "u"
    )
    replayed: dict[str, Any] = {
        "role": "assistant",
        "content": "x",
        "refusal": None,
        "tool_calls": None,
        "annotations": [],
    }
    assert (
        parse(json.dumps(HELLO | {"messages": [replayed]}).encode(), ChatRequest).messages[0].plain()["content"] == "x"
    )


def test_a_label_is_accepted_at_any_value_and_named_in_a_warning() -> None:
    said = {
        "metadata": {"trace": "7"}, "prompt_cache_key": "k", "safety_identifier": "u", "prompt_cache_retention": "24h",
        "prediction": None, "reasoning_effort": None, "a_field_of_tomorrow": None, "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": None},
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
            {"role": "assistant", "content": "y", "name": "", "reasoning_content": "because", "月\r\nX: 1": 1},
            {"role": "user", "content": "z", "name": "bob", "weight": 1, "ignored": ["mine"]},
        ],
    }  # fmt: skip
    request = parse(json.dumps(HELLO | said).encode(), ChatRequest)
    assert [message.plain()["content"] for message in request.messages] == ["x", "y", "z"]
    assert request.labels == [
        "metadata", "prompt_cache_key", "safety_identifier", "prompt_cache_retention",
        "messages.content.cache_control", "messages.name", "messages.reasoning_content", "messages.月\r\nX: 1",
        "messages.name", "messages.weight", "messages.ignored",
    ]  # fmt: skip
    assert request.headers == {
        "Warning": '299 conclave "no answer hangs on: metadata, prompt_cache_key, safety_identifier, '
        "prompt_cache_retention, messages.content.cache_control, messages.name, messages.reasoning_content, ..., "
        '..."'
    }
    assert parse(json.dumps(HELLO).encode(), ChatRequest).headers == {}


def test_contradictions_are_refused() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert "tools: 'f' is there twice" in str(refusal(tools=tools * 2))
    assert "tool_choice='required' needs tools" in str(refusal(tool_choice="required"))
    assert "'g' is none of the tools" in str(
        refusal(tools=tools, tool_choice={"type": "function", "function": {"name": "g"}})
    )
    assert "needs an assistant's message" in str(refusal(continue_final_message=True))
    assert "max_tokens=1 and max_completion_tokens=2 differ" in str(refusal(max_tokens=1, max_completion_tokens=2))
    assert "stop=''" in str(refusal(stop=["a", ""]))
    assert "needs stream=true" in str(refusal(stream_options={"include_usage": True}))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b"[" * 10_000, b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}']
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse(body, ChatRequest)
    assert caught.value.status_code == 400
    assert caught.value.body["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"null", b"3"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError, match="object"):
        parse(body, ChatRequest)


def test_a_long_value_is_quoted_short() -> None:
    assert len(str(refusal(messages=[{"role": "x" * 10_000, "content": "y"}])["message"])) < 200


def test_parts_are_joined_and_developer_is_system() -> None:
    parts = [{"type": "text", "text": "作一首"}, {"type": "text", "text": "五言绝句"}]
    request = parse(json.dumps(HELLO | {"messages": [{"role": "developer", "content": parts}]}).encode(), ChatRequest)
    assert request.messages[0].plain() == {"role": "system", "content": "作一首五言绝句"}


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what would change the answer is refused by name",
        "serving/dialects/strict.py",
        "if labels is not None and name not in labels:",
        "if labels is not None and not name:",
        None,
    ),
    (
        "a label that changes nothing is named in a warning",
        "serving/dialects/strict.py",
        'kept["ignored"].append(name)',
        "pass",
        None,
    ),
]

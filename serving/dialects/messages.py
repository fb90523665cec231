"""Anthropic's `/v1/messages`: its requests as chats of ours, and our answers as its messages and events."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, Tag, model_validator

from serving import asking
from serving.decoding import Answers, Died
from serving.dialects import shapes
from serving.dialects.streams import Streams
from serving.dialects.strict import Idle, Said, Strict, built, by_type, parse, warning
from serving.dialects.tools import MAX_TOOLS, Call, Name
from serving.failover.origin import Origin, origin
from serving.replies import Reply, Served, event, unavailable
from serving.schema import MAX_MESSAGES, MAX_STOPS, ChatRequest, TextPart

PATH = "/v1/messages"
_NAMES = asking.Names(form="output_config.format")
_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}
_IDLE: Idle = {
    "thinking": (None, {"type": "disabled"}),
    "service_tier": (None, "auto", "standard_only"),
    "mcp_servers": (None, []),
    "speed": (None, "standard"),
}


class ToolUse(Said):
    """A call that the assistant made."""

    labelled = frozenset({"cache_control", "caller"})

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]

    def call(self) -> dict[str, Any]:
        arguments = json.dumps(self.input, ensure_ascii=False)
        return {"id": self.id, "function": {"name": self.name, "arguments": arguments}}


class ToolResult(Said):
    labelled = frozenset({"cache_control", "is_error"})

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES)] = ""


Block = Annotated[
    Annotated[TextPart, Tag("type text")]
    | Annotated[ToolUse, Tag("type tool_use")]
    | Annotated[ToolResult, Tag("type tool_result")],
    by_type(),
]


class Turn(Said):
    role: Annotated[str, Field(pattern="^(user|assistant)$")]
    content: str | Annotated[list[Block], Field(max_length=MAX_MESSAGES)]

    @model_validator(mode="after")
    def _of_its_role(self) -> "Turn":
        other = ToolResult if self.role == "assistant" else ToolUse
        if not isinstance(self.content, str) and any(isinstance(block, other) for block in self.content):
            raise ValueError(f"role={self.role!r} has no {'tool_result' if other is ToolResult else 'tool_use'}")
        return self

    def messages(self) -> list[dict[str, Any]]:
        """As chat completions have it: results of calls are messages of their own, and come first."""
        if isinstance(self.content, str):
            return [{"role": self.role, "content": self.content}]
        results = [each for each in self.content if isinstance(each, ToolResult)]
        said: list[dict[str, Any]] = [
            {"role": "tool", "tool_call_id": each.tool_use_id, "content": _text(each.content)} for each in results
        ]
        calls = [each.call() for each in self.content if isinstance(each, ToolUse)]
        texts = [each for each in self.content if isinstance(each, TextPart)]
        if texts or calls or not results:
            message = {"role": self.role, "content": _text(texts)}
            said.append(message | {"tool_calls": calls} if calls else message)
        return said


class ToolOffer(Said):
    labelled = frozenset({"cache_control"})

    type: Literal["custom"] | None = None
    name: Name
    description: str | None = None
    input_schema: dict[str, Any]

    def tool(self) -> dict[str, Any]:
        said = {"name": self.name, "description": self.description, "parameters": self.input_schema}
        return {"type": "function", "function": said}


class ToolChoice(Said):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> "ToolChoice":
        if (self.type == "tool") != (self.name is not None):
            raise ValueError(f"type={self.type!r} " + ("needs a" if self.type == "tool" else "has no") + " name")
        return self

    def choice(self) -> str | dict[str, Any]:
        if self.name is not None:
            return {"type": "function", "function": {"name": self.name}}
        return "required" if self.type == "any" else self.type


class Format(Strict):
    type: Literal["json_schema"]
    definition: Annotated[dict[str, Any], Field(alias="schema")]


class Output(Said):
    format: Format | None = None


class CountRequest(Said):
    """The body of POST /v1/messages/count_tokens: what a prompt is made of."""

    idle = _IDLE
    labelled = frozenset("metadata cache_control user_profile_id workspace_id".split())

    model: str
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: str | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES)] | None = None
    output_config: Output | None = None
    tools: Annotated[list[ToolOffer], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None

    @property
    def labels(self) -> list[str]:
        said = [self.system, *(turn.content for turn in self.messages)]
        blocks = [block for content in said if isinstance(content, list) for block in content]
        inner = [*(f"content.{name}" for block in blocks for name in block.ignored)]
        return [*self.ignored, *inner, *(f"tools.{name}" for tool in self.tools or [] for name in tool.ignored)]

    def inner(self, **more: Any) -> ChatRequest:
        """The same as a chat of ours. Turns of one role that follow each other are one, and a last one of the
        assistant's is the beginning of the answer. Raises `ApiError`."""
        turns: list[dict[str, Any]] = [{"role": "system", "content": _text(self.system)}] if self.system else []
        for message in (message for turn in self.messages for message in turn.messages()):
            if turns and turns[-1]["role"] == message["role"] != "tool" and "tool_calls" not in turns[-1]:
                turns[-1] |= message | {"content": f"{turns[-1]['content']}\n{message['content']}"}
            else:
                turns.append(message)
        begun = turns[-1]["role"] == "assistant" and "tool_calls" not in turns[-1]
        if self.tools:
            more["tools"] = [tool.tool() for tool in self.tools]
        if self.tool_choice:
            more["tool_choice"] = self.tool_choice.choice()
            more["parallel_tool_calls"] = not self.tool_choice.disable_parallel_tool_use
        return built(ChatRequest, model=self.model, messages=turns, continue_final_message=begun, **more)


class MessagesRequest(CountRequest):
    """The body of POST /v1/messages."""

    max_tokens: Annotated[int, Field(ge=1, le=2**20)]
    stop_sequences: Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    temperature: Annotated[float | None, Field(ge=0, le=1)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=0)] = None

    @model_validator(mode="after")
    def _agree(self) -> "MessagesRequest":
        if "" in (self.stop_sequences or []):
            raise ValueError("stop_sequences has an empty text, which would end every answer at once; leave it out")
        return self

    def chat(self) -> ChatRequest:
        names = "max_tokens temperature top_p top_k stream".split()
        given = {name: getattr(self, name) for name in names}
        if self.output_config and self.output_config.format:
            schema = self.output_config.format.definition
            given["response_format"] = {"type": "json_schema", "json_schema": {"name": "output", "schema": schema}}
        return self.inner(stop=self.stop_sequences, **given)


def _text(content: str | Sequence[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class MessageReply(Reply):
    prefix = "msg_"

    def __init__(
        self, served: Served, request: MessagesRequest, origin: Origin, prompt: list[int], answers: Answers
    ) -> None:
        super().__init__(served, request.chat(), origin, [prompt], answers)
        self.headers = warning(request.labels)

    def _message(self) -> dict[str, Any]:
        return {"id": self.id, "type": "message", "role": "assistant", "model": self._served.name, "content": []}

    def _ended(self, finish: str) -> dict[str, str | None]:
        stop = self._texts[0].stop
        reason = _REASONS.get(finish) or ("stop_sequence" if stop else "end_turn")
        return {"stop_reason": reason, "stop_sequence": stop or None}

    def _usage(self) -> dict[str, int]:
        """What came from the cache is counted beside `input_tokens`; before the first token nobody knows it."""
        (prompt, made), cached = self._tokens(), self._cached
        return {
            **{"input_tokens": prompt - cached, "output_tokens": made},
            **{"cache_creation_input_tokens": 0, "cache_read_input_tokens": cached},
        }

    async def whole(self) -> dict[str, Any]:
        [ended] = await self._ends()
        content: list[dict[str, Any]] = [{"type": "text", "text": ended.text}] if ended.text else []
        content += [_use(call, json.loads(call.arguments)) for call in ended.calls]
        return self._message() | {"content": content} | self._ended(ended.finish) | {"usage": self._usage()}

    async def events(self) -> AsyncIterator[str]:
        begun = self._message() | {"stop_reason": None, "stop_sequence": None, "usage": self._usage()}
        yield _event({"type": "message_start", "message": begun})
        place, ended, inside = 0, "length", False  # of the block; inside one of text
        try:
            async for _, piece, finish in self._pieces():
                ended = finish or ended
                if isinstance(piece, Call):
                    if inside:
                        yield _event({"type": "content_block_stop", "index": place})
                        place, inside = place + 1, False
                    change = {"type": "input_json_delta", "partial_json": piece.arguments}
                    yield _event({"type": "content_block_start", "index": place, "content_block": _use(piece, {})})
                    yield _event({"type": "content_block_delta", "index": place, "delta": change})
                    yield _event({"type": "content_block_stop", "index": place})
                    place += 1
                elif piece:
                    if not inside:
                        empty = {"type": "text", "text": ""}
                        yield _event({"type": "content_block_start", "index": place, "content_block": empty})
                        inside = True
                    change = {"type": "text_delta", "text": piece}
                    yield _event({"type": "content_block_delta", "index": place, "delta": change})
        except Died as error:
            yield shapes.event(PATH, unavailable(error))
            return
        if inside:
            yield _event({"type": "content_block_stop", "index": place})
        yield _event({"type": "message_delta", "delta": self._ended(ended), "usage": self._usage()})
        yield _event({"type": "message_stop"})


def _use(call: Call, given: dict[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": given}


def _event(value: dict[str, Any]) -> str:
    return event(value, value["type"])


def routes(served: Served, streams: Streams) -> APIRouter:
    router = APIRouter()

    @router.post(PATH)
    async def create(http: Request) -> Response:
        request, drawn = parse(await http.body(), MessagesRequest), origin(http)
        made = await asking.chat(served, request.chat(), drawn, _NAMES)
        return await streams.answered(MessageReply(served, request, drawn, *made), http)

    @router.post(f"{PATH}/count_tokens")
    async def count(http: Request) -> dict[str, int]:
        request = parse(await http.body(), CountRequest)
        return {"input_tokens": len(await asking.chat_prompt(served, request.inner()))}

    return router

"""OpenAI's `/v1/responses`: its requests as chats of ours, and our answers as its items and events.

Nothing is kept: who goes on with a conversation sends the whole of it.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field, field_validator

from serving import asking
from serving.decoding import Answers, Died
from serving.dialects.items import FunctionChoice, FunctionTool, Item, Items, Text
from serving.dialects.streams import Streams
from serving.dialects.strict import Idle, Said, built, parse, warning
from serving.dialects.tools import MAX_TOOLS, Call
from serving.failover.origin import Origin, origin
from serving.replies import Reply, Served, event, unavailable
from serving.schema import MAX_MESSAGES, ChatRequest

PATH = "/v1/responses"
_IDLE: Idle = {
    "background": (None, False),
    "include": (None, [], ["reasoning.encrypted_content"]),  # of thoughts, which there are none of
    "reasoning": (None, {}, {"effort": None}, {"effort": "none"}),
    "service_tier": (None, "auto", "default"),
    "stream_options": (None, {}, {"include_obfuscation": False}),
    "top_logprobs": (None, 0),
    "truncation": (None, "disabled"),
}
_NAMES = asking.Names(messages="input", bound="max_output_tokens", form="text.format")


_PLAIN = {"format": {"type": "text"}}


class ResponsesRequest(Said):
    """The body of POST /v1/responses."""

    idle = _IDLE
    labelled = frozenset("prompt_cache_key prompt_cache_retention safety_identifier".split())

    model: str
    input: str | Annotated[list[Items], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: Annotated[int | None, Field(ge=1, le=2**20)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    text: Text | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None

    @field_validator("store", "previous_response_id", "conversation")
    @classmethod
    def _nothing_is_kept(cls, value: Any) -> Any:
        if value:
            raise ValueError("no response is kept here; leave it out, and send the whole conversation as input")
        return value

    @property
    def labels(self) -> list[str]:
        items = [] if isinstance(self.input, str) else self.input
        return [*self.ignored, *(f"input.{name}" for item in items for name in item.ignored)]

    def chat(self) -> ChatRequest:
        """The same as a chat of ours. Raises `ApiError`."""
        begun = [{"role": "system", "content": self.instructions}] if self.instructions else []
        said: list[dict[str, Any]] = []
        for item in [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input:
            message = item.message()
            calls = said and said[-1]["role"] == message["role"] == "assistant" and message.get("tool_calls")
            if calls:  # of one answer, which items take apart
                said[-1]["tool_calls"] = [*said[-1].get("tool_calls", []), *calls]
            else:
                said.append(message)
        names = "model temperature top_p stream parallel_tool_calls".split()
        given = {name: getattr(self, name) for name in names}
        if self.tools:
            given["tools"] = [tool.tool() for tool in self.tools]
        named = isinstance(self.tool_choice, FunctionChoice) and {"name": self.tool_choice.name}
        given["tool_choice"] = {"type": "function", "function": named} if named else self.tool_choice
        if self.text and self.text.format:
            given["response_format"] = self.text.format.form()
        return built(ChatRequest, messages=[*begun, *said], max_tokens=self.max_output_tokens, **given)


class ResponseReply(Reply):
    prefix = "resp_"

    def __init__(
        self, served: Served, request: ResponsesRequest, origin: Origin, prompt: list[int], answers: Answers
    ) -> None:
        super().__init__(served, request.chat(), origin, [prompt], answers)
        self.headers = warning(request.labels)
        self._asked = request
        self._count = 0  # events so far

    def _response(self, output: list[dict[str, Any]], finish: str | None) -> dict[str, Any]:
        """The object, its answer under way where there is no finish."""
        asked = self._asked
        form = asked.text.format if asked.text else None
        cut = {"reason": "max_output_tokens"} if finish == "length" else None
        made = {
            "id": self.id,
            "object": "response",
            "created_at": self._origin.created,
            "status": "in_progress" if finish is None else "incomplete" if cut else "completed",
            "error": None,
            "incomplete_details": cut,
            "model": self._served.name,
            "output": output,
            "usage": None if finish is None else self._usage(),
        }
        said = {
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "metadata": asked.metadata or {},
            "text": {"format": form.model_dump(by_alias=True, exclude_none=True)} if form else _PLAIN,
            "temperature": 1.0 if asked.temperature is None else asked.temperature,
            "top_p": 1.0 if asked.top_p is None else asked.top_p,
            "user": asked.user,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "tools": [tool.model_dump(exclude={"ignored"}) for tool in asked.tools or []],
            "tool_choice": asked.tool_choice.model_dump()
            if isinstance(asked.tool_choice, FunctionChoice)
            else asked.tool_choice or "auto",
        }
        always = {
            "background": False,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "service_tier": "default",
            "store": False,
            "top_logprobs": 0,
            "truncation": "disabled",
        }
        return made | said | always

    def _usage(self) -> dict[str, Any]:
        prompt, made = self._tokens()
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": self._cached, "cache_write_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": prompt + made,
        }

    def _message(self, place: int, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        name = f"msg_{self.id.removeprefix(self.prefix)}_{place}"
        return {"id": name, "type": "message", "role": "assistant", "status": status, "content": content}

    async def whole(self) -> dict[str, Any]:
        [ended] = await self._ends()
        output = [_called(call) for call in ended.calls]
        if ended.text or not output:
            output.insert(0, self._message(0, _status(ended.finish), [_part(ended.text)]))
        return self._response(output, ended.finish)

    async def events(self) -> AsyncIterator[str]:
        for name in ("created", "in_progress"):
            yield self._event(name, response=self._response([], None))
        output: list[dict[str, Any]] = []
        text: str | None = None  # of the message under way
        ended = "length"
        try:
            async for _, piece, finish in self._pieces():
                ended = finish or ended
                if text is None and (not isinstance(piece, Call) if piece else finish and not output):
                    text = ""
                    for line in self._begun(len(output)):
                        yield line
                if isinstance(piece, Call):
                    for line in self._written(output, text, "completed"):
                        yield line
                    text = None
                    for line in self._call(output, piece):
                        yield line
                elif piece and text is not None:
                    text += piece
                    yield self._event("output_text.delta", **self._place(len(output)), delta=piece, logprobs=[])
        except Died as error:
            said = unavailable(error).body["error"]
            failed = {"status": "failed", "error": {"code": "server_error", "message": said["message"]}}
            yield self._event("failed", response=self._response([], None) | failed)
            return
        for line in self._written(output, text, _status(ended)):
            yield line
        yield self._event(_status(ended), response=self._response(output, ended))

    def _place(self, place: int) -> dict[str, Any]:
        return {"item_id": self._message(place, "", [])["id"], "output_index": place, "content_index": 0}

    def _begun(self, place: int) -> Iterator[str]:
        """The events that open a message."""
        yield self._event("output_item.added", output_index=place, item=self._message(place, "in_progress", []))
        yield self._event("content_part.added", **self._place(place), part=_part(""))

    def _written(self, output: list[dict[str, Any]], text: str | None, status: str) -> Iterator[str]:
        """The events that close a message where one is open, which joins the output."""
        if text is None:
            return
        place = len(output)
        output.append(self._message(place, status, [_part(text)]))
        yield self._event("output_text.done", **self._place(place), text=text, logprobs=[])
        yield self._event("content_part.done", **self._place(place), part=_part(text))
        yield self._event("output_item.done", output_index=place, item=output[-1])

    def _call(self, output: list[dict[str, Any]], call: Call) -> Iterator[str]:
        """The events of a call, which joins the output."""
        item, place = _called(call), len(output)
        named = {"item_id": item["id"], "output_index": place}
        output.append(item)
        begun = item | {"status": "in_progress", "arguments": ""}
        yield self._event("output_item.added", output_index=place, item=begun)
        yield self._event("function_call_arguments.delta", **named, delta=call.arguments)
        yield self._event("function_call_arguments.done", **named, name=call.name, arguments=call.arguments)
        yield self._event("output_item.done", output_index=place, item=item)

    def _event(self, name: str, /, **fields: Any) -> str:
        kind = f"response.{name}"
        made = event({"type": kind, "sequence_number": self._count} | fields, kind)
        self._count += 1
        return made


def _status(finish: str) -> str:
    return "incomplete" if finish == "length" else "completed"


def _called(call: Call) -> dict[str, Any]:
    named = {"id": call.id.replace("call_", "fc_"), "type": "function_call", "status": "completed"}
    return named | {"call_id": call.id, "name": call.name, "arguments": call.arguments}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def routes(served: Served, streams: Streams) -> APIRouter:
    router = APIRouter()

    @router.post(PATH)
    async def create(http: Request) -> Response:
        request, drawn = parse(await http.body(), ResponsesRequest), origin(http)
        made = await asking.chat(served, request.chat(), drawn, _NAMES)
        return await streams.answered(ResponseReply(served, request, drawn, *made), http)

    return router

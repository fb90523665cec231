"""What crosses the HTTP endpoint: OpenAI's requests for chat and text completions, bounded, their answers and errors.

Knows nothing of models or Ray.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from serving.dialects.strict import Idle, Said, Strict, warning
from serving.dialects.tools import MAX_TOOLS, Choice, Tool, ToolCall

MAX_MESSAGES = 256
MAX_ANSWERS = 8
MAX_STOPS = 4
MAX_PROMPTS = 256
MAX_TOP = 5  # likeliest tokens at each place
MAX_BIASES = 1024  # tokens of a logit_bias
DEFAULT_TOKENS = 16  # of a text completion, as with OpenAI

# Fields that clients send without wanting anything: accepted at these values, refused by name at any other.
_IDLE_CHAT: Idle = {
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "add_generation_prompt": (None, True),
}
_IDLE_COMPLETION: Idle = {"suffix": (None, ""), "best_of": (None, 1)}
_IDLE_MESSAGE: Idle = dict.fromkeys("refusal audio function_call images videos files prefix".split(), (None, [], False))
# What a client may say and no answer hangs on, at any value: accepted, and named in the header `Warning`.
_LABELS = frozenset("metadata prompt_cache_key prompt_cache_retention safety_identifier".split())
_LABELS_PART = frozenset({"cache_control"})


class TextPart(Said):
    labelled = _LABELS_PART

    type: Literal["text"]
    text: str


class Message(Said):
    idle, labelled = _IDLE_MESSAGE, None

    role: Literal["system", "developer", "user", "assistant", "tool"]
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS)] | None = None  # that the assistant made
    tool_call_id: str | None = None  # which of them a tool's message is the result of
    content: Annotated[
        str | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES)] | None, Field(validate_default=True)
    ] = None

    @field_validator("content")
    @classmethod
    def _says_something(cls, value: Any, info: ValidationInfo) -> Any:
        if value is None and not info.data.get("tool_calls"):
            raise ValueError("needed where there are no tool_calls")
        return value

    @model_validator(mode="after")
    def _of_its_role(self) -> "Message":
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"role={self.role!r} has no tool_calls; the assistant's messages have")
        if (self.tool_call_id is None) == (self.role == "tool"):
            raise ValueError(
                f"role={self.role!r} " + ("needs a" if self.role == "tool" else "has no") + " tool_call_id"
            )
        return self

    @property
    def labels(self) -> list[str]:
        parts = self.content if isinstance(self.content, list) else []
        return [*self.ignored, *(f"content.{name}" for part in parts for name in part.ignored)]

    def plain(self) -> dict[str, Any]:
        """The message as the chat template knows it: `developer` is today's name of `system`, parts are joined."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content or [])
        said: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": text}
        if self.tool_calls:
            said["tool_calls"] = [{"type": "function", "function": call.function.offered()} for call in self.tool_calls]
        return said | ({"tool_call_id": self.tool_call_id} if self.tool_call_id is not None else {})


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False
    continuous_usage_stats: Literal[False] | None = None


TokenId = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]


class Request(Said):
    """What chat and text completions share. None means "not said" wherever OpenAI's clients may send null."""

    labelled = _LABELS

    model: str
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None  # 0: greedy
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=0)] = None  # 0: all
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None  # of the likeliest token's probability; 0: no bound
    repetition_penalty: Annotated[float | None, Field(gt=0, le=10)] = None  # 1: none
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    logit_bias: (
        Annotated[dict[TokenId, Annotated[float, Field(ge=-100, le=100)]], Field(max_length=MAX_BIASES)] | None
    ) = None  # what is added to a token's logit, by its id
    n: Annotated[int | None, Field(ge=1, le=MAX_ANSWERS)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    user: str | None = None  # the caller's name for its user; not used

    @model_validator(mode="after")
    def _agree(self) -> "Request":
        if "" in self.stops:
            raise ValueError("stop='' would end every answer at once; leave it out")
        if self.stream_options and not self.stream:
            raise ValueError("stream_options needs stream=true")
        return self

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def offered(self) -> list[Tool]:
        """The tools that an answer may call."""
        return []

    @property
    def single_call(self) -> bool:
        """An answer ends with its first call."""
        return False

    @property
    def labels(self) -> list[str]:
        """What was said and changes nothing."""
        return self.ignored

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        return warning(self.labels)


class JsonSchema(Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    definition: Annotated[dict[str, Any], Field(alias="schema")] = {}  # noqa: RUF012
    strict: bool | None = None  # an answer is held to the schema in any case


class Form(Strict):
    """What form an answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _with_its_schema(self) -> "Form":
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError(f"type={self.type!r} " + ("has no" if self.json_schema else "needs a") + " json_schema")
        return self

    @property
    def schema_of_answers(self) -> dict[str, Any] | None:
        """The JSON schema that answers must keep."""
        return self.json_schema.definition if self.json_schema else {"type": "object"} if self.type != "text" else None


class ChatRequest(Request):
    """The body of POST /v1/chat/completions."""

    idle = _IDLE_CHAT

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int | None, Field(ge=1, le=2**20)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=2**20)] = None
    response_format: Form | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None
    continue_final_message: bool | None = None  # the last message is the beginning of the answer

    @model_validator(mode="after")
    def _one_bound(self) -> "ChatRequest":
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError(
                f"max_tokens={self.max_tokens} and max_completion_tokens={self.max_completion_tokens} differ; send one"
            )
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise ValueError("continue_final_message=true needs an assistant's message as the last one")
        if self.continue_final_message and self.response_format and self.response_format.type != "text":
            raise ValueError("response_format is of whole answers; leave out continue_final_message")
        names = [tool.function.name for tool in self.tools or []]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"tools: {min(twice)!r} is there twice")
        if isinstance(self.tool_choice, Choice) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice: {self.tool_choice.function.name!r} is none of the tools")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice='required' needs tools")
        if self.must_call and self.response_format and self.response_format.type != "text":
            raise ValueError("response_format and a tool_choice that asks for a call are both given; give one")
        return self

    @property
    def labels(self) -> list[str]:
        return [*self.ignored, *(f"messages.{name}" for message in self.messages for name in message.labels)]

    @property
    def offered(self) -> list[Tool]:
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def single_call(self) -> bool:
        return self.parallel_tool_calls is False

    @property
    def must_call(self) -> list[Tool]:
        """The tools of which an answer has to call one; []: it need not."""
        if isinstance(self.tool_choice, Choice):
            return [tool for tool in self.offered if tool.function.name == self.tool_choice.function.name]
        return self.offered if self.tool_choice == "required" else []

    @property
    def bound(self) -> int | None:
        """The most tokens of one answer, where the client said so."""
        return self.max_completion_tokens or self.max_tokens


Ids = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


def _form(prompt: Any) -> str:
    """What a prompt is meant to be, by its beginning: the other forms have no say in what is wrong with it."""
    first = prompt[0] if isinstance(prompt, list) and prompt else None
    if isinstance(first, int):
        return "token ids"
    return "lists of token ids" if isinstance(first, list) else "a text" if first is None else "several texts"


Prompts = Annotated[
    Annotated[str, Tag("a text")]
    | Annotated[Ids, Tag("token ids")]
    | Annotated[list[str], Field(max_length=MAX_PROMPTS), Tag("several texts")]
    | Annotated[list[Ids], Field(max_length=MAX_PROMPTS), Tag("lists of token ids")],
    Discriminator(_form),
]


def each_prompt(prompts: Prompts) -> Sequence[str | list[int]]:
    """One or several, each as text or as token ids."""
    if isinstance(prompts, str) or (prompts and isinstance(prompts[0], int)):
        return [prompts]
    return cast(Sequence[str | list[int]], prompts)


class CompletionRequest(Request):
    """The body of POST /v1/completions: text that the model goes on with, as it is, without the marks of a chat."""

    idle = _IDLE_COMPLETION

    prompt: Prompts
    max_tokens: Annotated[int | None, Field(ge=0, le=2**20)] = None  # 0: only what `echo` and `logprobs` say
    echo: bool | None = None  # begin with the prompt
    logprobs: Annotated[int | None, Field(ge=0, le=MAX_TOP)] = None  # and so many of the likeliest at each place

    @model_validator(mode="after")
    def _no_stream_of_logprobs(self) -> "CompletionRequest":
        if self.stream and self.logprobs is not None:
            raise ValueError(f"logprobs={self.logprobs} needs stream=false")
        return self

    @property
    def prompts(self) -> Sequence[str | list[int]]:
        return each_prompt(self.prompt)

    @property
    def bound(self) -> int:
        return DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens


def usage(prompt: int, completion: int, cached: int) -> dict[str, Any]:
    said = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return said | {"prompt_tokens_details": {"cached_tokens": cached}}


def chat_choice(index: int, text: str, finish: str, calls: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if calls:
        message |= {"content": text or None, "tool_calls": list(calls)}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}


def delta(index: int, change: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": change, "logprobs": None, "finish_reason": finish}


def text_choice(
    index: int, text: str, finish: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

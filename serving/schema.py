"""What crosses the HTTP endpoint: OpenAI's requests for chat and text completions, bounded, their answers and errors.

Knows nothing of models or Ray.
"""

import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

MAX_MESSAGES = 256
MAX_ANSWERS = 8
MAX_STOPS = 4
MAX_PROMPTS = 256
MAX_TOP = 5  # likeliest tokens at each place
RETRY_AFTER = 1  # seconds
DEFAULT_TOKENS = 16  # of a text completion, as with OpenAI

# Fields that clients send without wanting anything: accepted at these values, refused by name at any other.
Idle = dict[str, tuple[Any, ...]]
_IDLE: Idle = {
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
}
_IDLE_CHAT: Idle = _IDLE | {
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "add_generation_prompt": (None, True),
}
_IDLE_COMPLETION: Idle = _IDLE | {"suffix": (None, ""), "best_of": (None, 1)}
_IDLE_MESSAGE: Idle = dict.fromkeys(
    "refusal audio tool_calls tool_call_id function_call images videos files prefix".split(), (None, [], False)
)
# What a client may say and no answer hangs on, at any value: accepted, and named in the header `Warning`.
_LABELS = frozenset("metadata prompt_cache_key prompt_cache_retention safety_identifier".split())
_LABELS_PART = frozenset({"cache_control"})
MAX_NAMED = 8  # of what is ignored
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)


class ApiError(HTTPException):
    """A refused or failed request. Becomes `{"error": {message, type, param, code}}` with its HTTP status."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None, retry: int = 0) -> None:
        super().__init__(status, message, headers={"Retry-After": str(retry)} if retry else None)
        kind = "invalid_request_error" if status < 500 else "server_error"
        kind = "rate_limit_error" if status == 429 else kind
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _without_idle(value: Any, kind: "type[Strict]", idle: Idle, labels: frozenset[str] | None) -> Any:
    """`value` with what asks for nothing left out, and its labels named in `ignored`; None: whatever `kind` does not
    know is a label."""
    if not isinstance(value, dict):
        return value
    kept: dict[str, Any] = {"ignored": []}
    for name, given in value.items():
        if name in kind.model_fields and name != "ignored":
            kept[name] = given
        elif given is None:  # a field that a newer client has and does not use
            continue
        elif name not in idle:
            if labels is not None and name not in labels:
                kept[name if name != "ignored" else "ignored "] = given  # refused by name
            else:
                kept["ignored"].append(name)
        elif not any(given == default and type(given) in {type(default), float} for default in idle[name]):
            raise PydanticCustomError("unsupported", "not supported", {"field": name, "value": _short(given)})
    return kept


def _short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class TextPart(Strict):
    type: Literal["text"]
    text: str
    ignored: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _drop_idle(cls, value: Any) -> Any:
        return _without_idle(value, cls, {}, _LABELS_PART)


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(max_length=MAX_MESSAGES)]
    ignored: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _drop_idle(cls, value: Any) -> Any:
        return _without_idle(value, cls, _IDLE_MESSAGE, None)

    @property
    def labels(self) -> list[str]:
        parts = [] if isinstance(self.content, str) else self.content
        return [*self.ignored, *(f"content.{name}" for part in parts for name in part.ignored)]

    def plain(self) -> dict[str, str]:
        """The message as the chat template knows it: `developer` is today's name of `system`, parts are joined."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False
    continuous_usage_stats: Literal[False] | None = None


class Request(Strict):
    """What chat and text completions share. None means "not said" wherever OpenAI's clients may send null."""

    idle: ClassVar[Idle]

    model: str
    temperature: Annotated[float | None, Field(ge=0, le=2)] = None  # 0: greedy
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    n: Annotated[int | None, Field(ge=1, le=MAX_ANSWERS)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    user: str | None = None  # the caller's name for its user; not used
    ignored: list[str] = []  # names of fields on which no answer hangs

    @model_validator(mode="before")
    @classmethod
    def _drop_idle(cls, value: Any) -> Any:
        return _without_idle(value, cls, cls.idle, _LABELS)

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
    def labels(self) -> list[str]:
        """What was said and changes nothing."""
        return self.ignored

    @property
    def headers(self) -> dict[str, str]:
        """Of the response: a warning that names the labels. A name is the client's: what no header may hold is left
        out."""
        names = dict.fromkeys(name if _NAME.fullmatch(name) else "..." for name in self.labels)
        named = ", ".join(list(names)[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
        return {"Warning": f'299 conclave "no answer hangs on: {named}"'} if named else {}


class ChatRequest(Request):
    """The body of POST /v1/chat/completions."""

    idle = _IDLE_CHAT

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int | None, Field(ge=1, le=2**20)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1, le=2**20)] = None
    continue_final_message: bool | None = None  # the last message is the beginning of the answer

    @model_validator(mode="after")
    def _one_bound(self) -> "ChatRequest":
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ValueError(
                f"max_tokens={self.max_tokens} and max_completion_tokens={self.max_completion_tokens} differ; send one"
            )
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise ValueError("continue_final_message=true needs an assistant's message as the last one")
        return self

    @property
    def labels(self) -> list[str]:
        return [*self.ignored, *(f"messages.{name}" for message in self.messages for name in message.labels)]

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


class CompletionRequest(Request):
    """The body of POST /v1/completions: text that the model goes on with, as it is, without the marks of a chat."""

    idle = _IDLE_COMPLETION

    prompt: Annotated[
        Annotated[str, Tag("a text")]
        | Annotated[Ids, Tag("token ids")]
        | Annotated[list[str], Field(max_length=MAX_PROMPTS), Tag("several texts")]
        | Annotated[list[Ids], Field(max_length=MAX_PROMPTS), Tag("lists of token ids")],
        Discriminator(_form),
    ]
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
        """One or several, each as text or as token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast(Sequence[str | list[int]], self.prompt)

    @property
    def bound(self) -> int:
        return DEFAULT_TOKENS if self.max_tokens is None else self.max_tokens


Kind = TypeVar("Kind", bound=Strict)


def parse(body: bytes, kind: type[Kind]) -> Kind:
    """The request in `body` (JSON). Raises `ApiError` 400 that names the field, its value and what is allowed."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # Every branch of a union complains: the branch that got furthest is the one the client meant.
        same = [each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]]
        worst = max(same, key=lambda each: (len(each["loc"]), each["type"] != "string_type"))
        raise _refusal(cast(dict[str, Any], worst)) from None


def _refusal(error: dict[str, Any]) -> ApiError:
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "json_invalid":
        return ApiError(400, f"the body is not JSON: {message.removeprefix('Invalid JSON: ')}", code="invalid_json")
    param = ""
    for part in error["loc"]:
        if isinstance(part, int):
            param += f"[{part}]"
        elif part.isidentifier() and part != "str":  # the rest name branches of a union, which no client knows
            param += f".{part}" if param else part
    if kind == "unsupported":
        param = f"{param}.{error['ctx']['field']}".lstrip(".")
        text = f"{param}={error['ctx']['value']} is not supported; leave it out"
        return ApiError(400, text, code="unsupported_value", param=param)
    if kind == "extra_forbidden":
        return ApiError(
            400, f"{param} is not a field of this endpoint; leave it out", code="unknown_field", param=param
        )
    given = "" if kind in {"missing", "value_error"} else f"={_short(error['input'])}"
    text = f"{param}{given}: {message}" if param else message
    return ApiError(400, text, code="invalid_value", param=param or None)


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def chat_choice(index: int, text: str, finish: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}


def delta(index: int, change: dict[str, str], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": change, "logprobs": None, "finish_reason": finish}


def text_choice(
    index: int, text: str, finish: str | None = None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

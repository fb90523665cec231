"""How the body of a request is read, whatever the API: bounded, unknown fields refused by name, errors in one line."""

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Discriminator, ValidationError, model_validator
from pydantic_core import PydanticCustomError
from starlette.exceptions import HTTPException

RETRY_AFTER = 1  # seconds
MAX_NAMED = 8  # of what is ignored
_BRANCHES = ("str", "Choice", "FunctionChoice")  # of unions, as pydantic names them
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)

Idle = dict[str, tuple[Any, ...]]  # fields that clients send without wanting anything: refused at any other value


class ApiError(HTTPException):
    """A refused or failed request. Becomes `{"error": {message, type, param, code}}` with its HTTP status."""

    def __init__(self, status: int, message: str, *, code: str, param: str | None = None, retry: int = 0) -> None:
        super().__init__(status, message, headers={"Retry-After": str(retry)} if retry else None)
        kind = "invalid_request_error" if status < 500 else "server_error"
        kind = "rate_limit_error" if status == 429 else kind
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def without_idle(value: Any, kind: "type[Strict]", idle: Idle, labels: frozenset[str] | None) -> Any:
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
            raise PydanticCustomError("unsupported", "not supported", {"field": name, "value": short(given)})
    return kept


def short(value: Any, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class Said(Strict):
    """What may have fields that ask for nothing (`idle`), and some on which no answer hangs (`labelled`; None: all that
    it does not know), which `ignored` names."""

    idle: ClassVar[Idle] = {}
    labelled: ClassVar[frozenset[str] | None] = frozenset()

    ignored: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _drop_idle(cls, value: Any) -> Any:
        return without_idle(value, cls, cls.idle, cls.labelled)


def by_type(default: str = "") -> Discriminator:
    """Which of several kinds an object is, by its field `type`; their tags are "type <name>"."""

    def kind(value: Any) -> str:
        given = value.get("type", default) if isinstance(value, dict) else getattr(value, "type", default)
        return f"type {given}"

    return Discriminator(kind)


def warning(labels: Sequence[str]) -> dict[str, str]:
    """The header of a response that names the labels. A name is the client's: what no header may hold is left out."""
    names = dict.fromkeys(name if _NAME.fullmatch(name) else "..." for name in labels)
    named = ", ".join(list(names)[:MAX_NAMED]) + (", ..." if len(names) > MAX_NAMED else "")
    return {"Warning": f'299 conclave "no answer hangs on: {named}"'} if named else {}


Kind = TypeVar("Kind", bound=Strict)


def parse(body: bytes, kind: type[Kind]) -> Kind:
    """The request in `body` (JSON). Raises `ApiError` 400 that names the field, its value and what is allowed."""
    return _checked(lambda: kind.model_validate_json(body))


def built(kind: type[Kind], **fields: Any) -> Kind:
    """The same of fields that another API's request had. Raises `ApiError` 400."""
    return _checked(lambda: kind.model_validate(fields))


def _checked(read: Callable[[], Kind]) -> Kind:
    try:
        return read()
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
        elif part.isidentifier() and part not in _BRANCHES:  # the rest name branches of a union, which no client knows
            param += f".{part}" if param else part
    if kind == "unsupported":
        param = f"{param}.{error['ctx']['field']}".lstrip(".")
        text = f"{param}={error['ctx']['value']} is not supported; leave it out"
        return ApiError(400, text, code="unsupported_value", param=param)
    if kind == "union_tag_invalid":  # of `by_type`
        given, known = error["ctx"]["tag"].removeprefix("type "), error["ctx"]["expected_tags"].replace("'type ", "'")
        param = f"{param}.type"
        text = f"{param}={short(given)}: Input should be one of {known}"
        return ApiError(400, text, code="invalid_value", param=param)
    if kind == "extra_forbidden":
        return ApiError(
            400, f"{param} is not a field of this endpoint; leave it out", code="unknown_field", param=param
        )
    given = "" if kind in {"missing", "value_error"} else f"={short(error['input'])}"
    text = f"{param}{given}: {message}" if param else message
    return ApiError(400, text, code="invalid_value", param=param or None)

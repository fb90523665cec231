"""What goes into and beside the input of `/v1/responses`: items, tools, the form of the answer."""

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from serving.dialects.strict import Said, Strict, by_type
from serving.dialects.tools import Name
from serving.schema import MAX_MESSAGES


class Part(Said):
    labelled = frozenset({"annotations", "logprobs"})

    type: Literal["input_text", "output_text", "text"]
    text: str


def text_of(content: str | list[Part]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


class Item(Said):
    """A message; one of the assistant's may be an earlier response's output as it came."""

    labelled = frozenset({"phase"})

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=MAX_MESSAGES)]
    id: str | None = None
    status: str | None = None

    def message(self) -> dict[str, Any]:
        return {"role": self.role, "content": text_of(self.content)}


class FunctionCall(Said):
    """A call that the assistant made, as it came in an earlier response."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: str | None = None
    status: str | None = None

    def message(self) -> dict[str, Any]:
        call = {"id": self.call_id, "function": {"name": self.name, "arguments": self.arguments}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}


class FunctionOutput(Said):
    type: Literal["function_call_output"]
    call_id: str
    output: str | Annotated[list[Part], Field(max_length=MAX_MESSAGES)]
    id: str | None = None
    status: str | None = None

    def message(self) -> dict[str, Any]:
        return {"role": "tool", "tool_call_id": self.call_id, "content": text_of(self.output)}


Items = Annotated[
    Annotated[Item, Tag("type message")]
    | Annotated[FunctionCall, Tag("type function_call")]
    | Annotated[FunctionOutput, Tag("type function_call_output")],
    by_type("message"),
]


class FunctionTool(Said):
    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None

    def tool(self) -> dict[str, Any]:
        said = self.model_dump(include={"name", "description", "parameters", "strict"})
        return {"type": "function", "function": said}


class FunctionChoice(Strict):
    type: Literal["function"]
    name: Name


class Format(Strict):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    definition: Annotated[dict[str, Any] | None, Field(alias="schema")] = None
    strict: bool | None = None

    @model_validator(mode="after")
    def _whole(self) -> "Format":
        if self.type == "json_schema" and (self.name is None or self.definition is None):
            raise ValueError("type='json_schema' needs a name and a schema")
        return self

    def form(self) -> dict[str, Any]:
        """As chat completions have it."""
        said = self.model_dump(by_alias=True, exclude_none=True, exclude={"type"})
        return {"type": self.type} | ({"json_schema": said} if said or self.type == "json_schema" else {})


class Text(Said):
    idle = {"verbosity": (None, "medium")}  # noqa: RUF012

    format: Format | None = None

"""Tools: what a client may offer, and the calls in what a model says, written as Hermes and Qwen write them.

<tool_call>
{"name": "weather", "arguments": {"city": "Oslo"}}
</tool_call>
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from serving.dialects.strict import Said, Strict
from serving.text import overlap

OPEN, CLOSE = "<tool_call>", "</tool_call>"
MAX_TOOLS = 128

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Function(Said):
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Said):
    labelled = frozenset({"cache_control"})

    type: Literal["function"]
    function: Function

    def offered(self) -> dict[str, Any]:
        """As a chat template has it."""
        said = self.function.model_dump(exclude={"ignored", "strict"}, exclude_none=True)
        return {"type": "function", "function": {"parameters": {"type": "object", "properties": {}}} | said}


class Called(Said):
    name: Name
    arguments: str

    def offered(self) -> dict[str, Any]:
        """Templates write arguments as JSON themselves."""
        try:
            given = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            given = self.arguments
        return {"name": self.name, "arguments": given}


class ToolCall(Said):
    labelled = frozenset({"index"})

    id: str
    type: Literal["function"] = "function"
    function: Called


class Chosen(Strict):
    name: Name


class Choice(Strict):
    type: Literal["function"]
    function: Chosen


@dataclass(frozen=True)
class Call:
    """What an answer calls."""

    name: str
    arguments: str  # JSON
    id: str = ""  # which its reply gives

    def shown(self) -> dict[str, Any]:
        """As chat completions have it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class CallStream:
    """Feed it the text of one answer; it gives text and calls in their order, as soon as they are certain.

    What stands between the marks and is no call of one of the tools `names` is text like any other. Blanks before calls
    and after the last one are left out.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._held = ""  # text that may open a call, or belongs to one
        self._blanks = ""  # before what may be a call
        self._inside = False
        self.calls = 0  # so far

    def push(self, text: str) -> Iterator[str | Call]:
        self._held += text
        while True:
            before, mark, after = self._held.partition(CLOSE if self._inside else OPEN)
            if not mark:
                break
            self._held, self._inside = after, not self._inside
            if not self._inside:
                yield from self._called(before, CLOSE)
                continue
            said = before.rstrip()
            self._blanks = before[len(said) :]
            yield from self._text(said)
        if not self._inside:
            certain = self._held[: len(self._held) - overlap(self._held, OPEN)].rstrip()
            self._held = self._held[len(certain) :]
            yield from self._text(certain)

    def finish(self) -> Iterator[str | Call]:
        """What is left when no text follows: some models end a call with their answer."""
        held, self._held = self._held, ""
        if self._inside:
            yield from self._called(held, "")
        elif held.strip() or not self.calls:
            yield from self._text(held)

    def _text(self, text: str) -> Iterator[str]:
        if text and self.calls and not text.strip():
            return
        if text:
            yield text

    def _called(self, said: str, end: str) -> Iterator[str | Call]:
        call = _read(said, self._names)
        if call is None:
            yield f"{self._blanks}{OPEN}{said}{end}"
            return
        self.calls += 1
        yield call


def _read(said: str, names: Sequence[str]) -> Call | None:
    try:
        found = json.loads(said)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("name") not in names or not isinstance(found["name"], str):
        return None
    given = found.get("arguments", {})
    return Call(found["name"], json.dumps(given, ensure_ascii=False)) if isinstance(given, dict) else None


def grammar(tools: Sequence[Tool], options: dict[str, Any], schema: dict[str, Any] | None = None) -> str:
    """What an answer must be, in llguidance's notation: a call of one of the tools, or JSON of the schema, if any.
    `options` are those of all its JSON."""
    made = [f"call{number}" for number in range(len(tools))]
    rules = [f'call: "{OPEN}\\n" ({" | ".join(made)}) "\\n{CLOSE}"']
    for name, tool in zip(made, tools, strict=True):
        given = dict(tool.function.parameters or {"type": "object"})
        shared = {key: given.pop(key) for key in ("$defs", "definitions") if key in given}  # found from the root
        call = {
            "type": "object",
            "properties": {"name": {"const": tool.function.name}, "arguments": given},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        rules.append(f"{name}: %json {json.dumps(call | shared | {'x-guidance': options})}")
    if schema is None:
        return "\n".join(["start: call", *rules])
    return "\n".join(["start: call | form", f"form: %json {json.dumps(schema | {'x-guidance': options})}", *rules])

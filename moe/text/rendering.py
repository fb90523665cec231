"""A conversation as a folder's own chat template writes it: text, and where in it the answers stand.

The template is the folder's; what people wrote only ever fills it. Jinja's sandbox runs it, set up as transformers
does. Where a content holds the spelling of a mark (`<|eot_id|>`), a guard is put into it before the template sees it:
the tokenizer takes the spelling for text there, and the guard out again.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from conf.errors import InputError
from moe.text.format import Format

TODAY = date(2024, 7, 26)  # Llama 3's day for want of another: tomorrow's rows and answers must be those of today
CALL = "<tool_call>"  # what begins a call in the form of Hermes and Qwen: JSON follows, and `</tool_call>`
_SAID = ("role", "content", "tool_calls", "tool_call_id")  # what a template gets of a message
_PRIVATE = range(0x100000, 0x10FFFE)  # characters that no text means anything by

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Rendered:
    text: str
    answers: tuple[tuple[int, int], ...]  # characters of each answer, the mark that ends it included
    dropped: str  # a character that is no part of the text, nor cuts it
    cut: str  # one at which the text is to be encoded in two


class Writer:
    """Writes conversations in a format. `marks` are the special tokens of its tokenizer, `added` its other added
    tokens, by their spelling."""

    def __init__(self, form: Format, marks: Collection[str], added: Collection[str]) -> None:
        self._form, self._marks = form, _any_of(marks)
        self._first = _any_of({mark[0] for mark in marks})
        written, looked_for = _constants(form)
        known = {token for token in added if token in written}
        self._ends = _any_of({*marks, *known})
        self._typed = _any_of(known)  # marks in all but name: whoever asks must not type them
        # An answer may: its thoughts and calls are such. But not what opens a turn and stands in every conversation.
        plain = self._plain() if known else ""
        self._opening = _any_of({token for token in known if token in plain and token not in looked_for})
        # Whether it can offer tools, and shows a model the form of a call that we know.
        self.calls = _names(form, "tools") and CALL in written and CALL not in marks

    def prompt(self, messages: Messages, tools: Sequence[Mapping[str, Any]] = ()) -> Rendered:
        """The conversation so far with the tools that it may use, and what comes before the next answer."""
        return self._safely(messages, lambda given, _, offered: (self._render(given, offered, prompt=True), ()), tools)

    def whole(self, messages: Messages) -> Rendered:
        """A whole conversation. Raises `InputError` for an answer that the template leaves out or does not end."""
        plain = [{key: message[key] for key in ("role", "content")} for message in messages]
        return self._safely(plain, lambda given, place, _: self._answered(given, place))

    def end(self) -> str:
        """The spelling of the mark that ends an answer; the folder's eos_token if the template writes none."""
        place = chr(_PRIVATE[0])
        told = [{"role": "user", "content": "a"}, {"role": "assistant", "content": place}]
        ending = self._ending(self._render(told, prompt=False).partition(place)[2])
        return ending[1] if ending else self._form.spelled("eos_token")

    def _safely(
        self,
        messages: Messages,
        write: Callable[[Messages, str, Messages], tuple[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Rendered:
        said = [text for value in (*messages, *tools) for text in _texts(value)]
        typed = {char for text in said for char in text}
        free = (chr(code) for code in _PRIVATE if chr(code) not in typed)
        dropped, cut, place = (next(free) for _ in range(3))

        def written(*, strict: bool) -> tuple[str, Any]:
            safe = [self._guarded(message, dropped, cut, strict=strict) for message in messages]
            offered = [self._guard(tool, self._typed, dropped, cut, strict=strict) for tool in tools]
            return write(safe, place, offered)

        text, answers = written(strict=False)
        if any(map(self._first.search, said)):
            # A template that takes contents apart could still put a mark together: then no content begins one.
            other, spans = written(strict=True)
            if self._marks.findall(text) != self._marks.findall(other):
                text, answers = other, spans
        return Rendered(text, tuple(answers), dropped, cut)

    def _guarded(self, message: Mapping[str, Any], dropped: str, cut: str, *, strict: bool = False) -> dict[str, Any]:
        """All that a message says, but its role; what an answer says may hold marks that what others say may not."""
        answers = message["role"] == "assistant"
        return {
            key: value
            if key == "role"
            else self._guard(
                value, self._opening if answers and key == "content" else self._typed, dropped, cut, strict=strict
            )
            for key, value in message.items()
            if key in _SAID
        }

    def _guard(self, value: Any, typed: re.Pattern[str], dropped: str, cut: str, *, strict: bool) -> Any:
        """`value` with a guard in the spelling of every mark, wherever in it a text stands."""
        if isinstance(value, str):
            names = self._first if strict else self._marks
            value = typed.sub(lambda found: f"{found[0][0]}{cut}{found[0][1:]}", value)
            return names.sub(lambda found: f"{found[0][0]}{dropped}{found[0][1:]}", value)
        inner = partial(self._guard, typed=typed, dropped=dropped, cut=cut, strict=strict)
        if isinstance(value, Mapping):
            return {inner(key): inner(each) for key, each in value.items()}
        return [inner(each) for each in value] if isinstance(value, list | tuple) else value

    def _answered(self, messages: Messages, place: str) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the characters of each answer: from where its prompt ends to the mark that ends it."""
        text, found = self._render(messages, prompt=False), []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            marked = [*messages[:number], {**message, "content": place}, *messages[number + 1 :]]
            before, shown, after = self._render(marked, prompt=False).partition(place)
            if not shown or not text.endswith(after):
                raise self._error(f"it does not write messages[{number}] as it stands, so it cannot be learnt")
            start, stop = self._before(messages, number, text, before), len(text) - len(after)
            ending = self._ending(after)
            if ending is None:
                raise self._error(f"it ends messages[{number}] with no mark, so nobody could learn to stop there")
            found.append((start, stop + ending.end()))
        return text, found

    def _ending(self, after: str) -> re.Match[str] | None:
        return re.match(rf"\s*({self._ends.pattern})", after)

    def _before(self, messages: Messages, number: int, text: str, before: str) -> int:
        """Where an answer begins: behind its prompt, as generation will; else where its content does."""
        prompt = self._render(messages[:number], prompt=True) if number else ""
        if prompt and text.startswith(prompt):
            return len(prompt)
        same = next((at for at, (a, b) in enumerate(zip(text, before, strict=False)) if a != b), len(before))
        return min(same, len(text))

    def _plain(self) -> str:
        turns = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
        return self._render(turns, prompt=True)

    def _render(self, messages: Messages, tools: Messages = (), *, prompt: bool) -> str:
        try:
            return str(
                _compiled(self._form.template).render(
                    messages=[dict(message) for message in messages],
                    add_generation_prompt=prompt,
                    tools=list(tools) or None,
                    documents=None,
                    **self._form.words,
                )
            )
        except Exception as error:  # a folder's program: whatever it says, the line must name the folder
            raise self._error(" ".join(str(error).split()) or type(error).__name__) from None

    def _error(self, said: str) -> InputError:
        return InputError(f"{self._form.where}: the chat template refuses this conversation: {said}")


def finder(added: Sequence[Mapping[str, Any]]) -> re.Pattern[str]:
    """Finds added tokens of a tokenizer.json in rendered text, with the blanks beside them that some take along; a
    group of each match is the spelling."""
    blank = {True: r"\s*", False: ""}
    longest = sorted(added, key=lambda token: -len(token["content"]))
    each = [f"{blank[t['lstrip']]}({re.escape(t['content'])}){blank[t['rstrip']]}" for t in longest]
    first = {re.escape(token["content"][0]) for token in added} | {r"\s" for token in added if token["lstrip"]}
    return re.compile(f"(?=[{''.join(sorted(first))}])(?:{'|'.join(each)})" if each else "(?!)")


def _any_of(spellings: Collection[str]) -> re.Pattern[str]:
    """Any of them, the longest first, as a tokenizer looks for its tokens."""
    longest = sorted(spellings, key=lambda text: (-len(text), text))
    first = "".join(sorted({re.escape(text[0]) for text in spellings}))  # looked at first: a family has hundreds
    return re.compile(f"(?=[{first}])(?:{'|'.join(map(re.escape, longest))})" if longest else "(?!)")


def _constants(form: Format) -> tuple[str, str]:
    """(all literal text of a template, the literals that it compares contents with or cuts them at)."""
    tree = _parsed(form)
    written = [node.data for node in tree.find_all(nodes.TemplateData)] + _strings(tree)
    looked_for = [text for node in tree.find_all((nodes.Compare, nodes.Call)) for text in _strings(node)]
    return "\0".join(written), "\0".join(looked_for)


def _names(form: Format, name: str) -> bool:
    """Whether a template uses what is called so."""
    return any(node.name == name and node.ctx == "load" for node in _parsed(form).find_all(nodes.Name))


def _texts(value: Any) -> Iterator[str]:
    """Every text in a message or a tool."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _texts(key)
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _strings(tree: nodes.Node) -> list[str]:
    return [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]


def _parsed(form: Format) -> nodes.Template:
    try:
        return _environment().parse(form.template)
    except TemplateError as error:
        raise InputError(f"{form.where}: the chat template is no Jinja: {' '.join(str(error).split())}") from None


@lru_cache
def _compiled(template: str) -> Template:
    return _environment().from_string(template)


@lru_cache
def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Answer, loopcontrols])
    made.filters["tojson"] = _as_json
    made.globals |= {"raise_exception": _refuse, "strftime_now": TODAY.strftime}
    return made


class _Answer(Extension):
    """`{% generation %}` around an answer, which transformers knows: what is inside is written."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _refuse(said: str) -> None:
    raise TemplateError(said)


def _as_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **settings: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **settings)  # Jinja's own escapes HTML

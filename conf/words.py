"""What a command line says about the knobs: the help text, and one line for each way in which a word can be wrong."""

import difflib
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, get_origin

from conf import schema
from conf.schema import Config

_MUST = (  # what OmegaConf says, and what the value must be
    (r"converted to Integer", "a whole number"),
    (r"converted to Float", "a number"),
    (r"not a valid bool", "true or false"),
    (r"is not a ListConfig|is not a List", "a list: [a,b]"),
    (r"is not Optional", "a value, not null"),
)


def groups() -> dict[str, list[str]]:
    """The choices of each group: {"model": ["base", "demo", ...], ...}."""
    here = Path(__file__).parent
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(here.iterdir())
        if folder.is_dir() and any(folder.glob("*.yaml"))
    }


@cache
def knobs() -> dict[str, tuple[Any, str]]:
    """Every knob: {"optim.lr": (default, comment)}."""
    return {name: (default, comment) for name, default, comment in _walk(Config, "")}


@cache
def dict_knobs() -> tuple[str, ...]:
    return tuple(name for name, (default, _) in knobs().items() if isinstance(default, dict))


def _walk(kind: type, prefix: str) -> Iterator[tuple[str, Any, str]]:
    made, comments = kind(), _comments(kind)
    for item in fields(kind):
        if is_dataclass(item.type):
            yield from _walk(item.type, f"{prefix}{item.name}.")  # type: ignore[arg-type]  # a class, not an instance
        else:
            yield prefix + item.name, getattr(made, item.name), comments.get(item.name, "")


def _comments(kind: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for parent in reversed([kind, *(base for base in kind.__mro__[1:] if base.__module__ == schema.__name__)]):
        found |= dict(re.findall(r"^    (\w+): [^#\n]*  # (.+)$", inspect.getsource(parent), re.MULTILINE))
    return found


def help_text(about: str, module: str) -> str:
    """What `--help` prints: the job, how to call it, the groups and every knob with its default."""
    lines = [about.strip(), "", f"usage: python -m {module} [group=choice ...] [knob=value ...]", "", "groups"]
    lines += [f"  {group}={{{','.join(choices)}}}" for group, choices in groups().items()]
    section = ""
    for name, (default, comment) in knobs().items():
        head, _, _ = name.partition(".")
        if head != section:
            section = head
            lines += ["", head]
        lines.append(f"  {name}={_shown(default)}".ljust(44) + (f"  {comment}" if comment else ""))
    lines += ["", "--cfg job prints the resolved config; --hydra-help lists the other flags."]
    return "\n".join(line.rstrip() for line in lines)


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list):
        return f"[{','.join(_shown(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{_shown(item)}' for name, item in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def stray(tree: Mapping[str, Any]) -> str:
    """Hydra's `+name=value` adds to the tree what nothing reads: the line that says so, or ''."""
    for name in _names(tree, Config, ""):
        return f"{name}: no such knob{_nearest(name)}; --help lists them all"
    return ""


def _names(tree: Mapping[str, Any], kind: type, prefix: str) -> Iterator[str]:
    known = {item.name: item.type for item in fields(kind)}
    for name, value in tree.items():
        if name not in known:
            yield prefix + name
        elif is_dataclass(known[name]) and get_origin(known[name]) is None:
            yield from _names(value, known[name], f"{prefix}{name}.")  # type: ignore[arg-type]


def reason(error: Exception, words: list[str]) -> str:
    """One line that names the wrong word and says what is wrong with it."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    text = " ".join(" ".join(str(link) for link in chain).split())
    if nameless := next((word for word in words if word.lstrip("+~").startswith("=")), ""):
        return f"{nameless}: no knob is named; write knob=value"
    broken = getattr(error, "override", None)
    if broken is not None:
        return _unreadable(str(broken).lstrip("+~"))
    if missing := re.search(r"Could not override '([^']+)'", text):
        return f"{missing[1]}: no such knob{_nearest(missing[1])}; --help lists them all"
    if choice := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        have = groups().get(choice[1], [])
        return f"{choice[1]}={choice[2]}: no such choice; there are {', '.join(have)}"
    named = re.search(r"full_key: ([\w.]+)", text) or re.search(r"argument '([\w.]+)=", text)
    key = named[1] if named else ""
    word = next((word.lstrip("+") for word in words if key and word.lstrip("+~").startswith(f"{key}=")), key)
    if "does not support deletion" in text:
        return f"~{key}: a knob cannot be taken away, only set"
    if "Ambiguous value" in text:
        return f"{word}: a list is written {key}=[a,b], a text with commas in quotes"
    if "not a subclass of" in text:
        return f"{word}: {key} is a section; set its knobs, such as {next(k for k in knobs() if k.startswith(key))}"
    if expected := re.search(r"expected one of \[([^\]]+)\]", text):
        return f"{word} must be one of {expected[1]}"
    for pattern, must in _MUST:
        if re.search(pattern, text):
            return f"{word} must be {must}"
    return f"{word}: {text}" if word else text


def _unreadable(word: str) -> str:
    name, equals, value = word.partition("=")
    if equals:
        return f"{word}: the value cannot be read; quote it: '{name}=\"{value}\"'"
    if name in groups():
        return f"{name}: which one? write {name}= and one of {', '.join(groups()[name])}"
    if name in knobs():
        return f"{name}: a value is missing; write {name}={_shown(knobs()[name][0])}"
    return f"{name}: no such knob{_nearest(name)}; write knob=value, and --help lists the knobs"


def _nearest(name: str) -> str:
    sections = {knob.partition(".")[0] for knob in knobs()}
    known = [*knobs(), *groups(), *sections] if "." not in name else list(knobs())
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    near = near or [knob for knob in knobs() if knob.endswith(f".{name}")][:1]  # the section was left out
    return f"; did you mean {near[0]}?" if near else ""

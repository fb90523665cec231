"""What a command line says about the knobs: the help text, and one line for each way in which a word can be wrong."""

import difflib
import inspect
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, get_origin

from conf.decides import RENAMED
from conf.schema import Config

SECTIONS = {  # what a job reads of the tree, its own first: what its --help shows
    "trainers.corpus": "corpus run cluster tracker",
    "trainers.why": "why run",
    "trainers.forget": "forget run cluster",
    "trainers.proxy.compare": "proxy model optim corpus compute cluster run",
    "trainers.tokenizer": "tokenizer parent run",
    "trainers.tokens": "tokens run cluster",
    "trainers.tasks": "tasks sft rank run",
    "trainers.pretrain": "pretrain optim model parent adapt compute spikes doctor checkpoints evaluate "
    "tokens gpu cluster tracker run sweep",
    "trainers.twin": "pretrain optim model parent compute spikes doctor checkpoints evaluate gpu cluster tracker run",
    "trainers.parent": "parent tokenizer run",
    "trainers.sft": "sft parent optim adapt compute spikes doctor checkpoints evaluate "
    "tasks gpu cluster tracker run sweep",
    "trainers.reward": "reward parent optim adapt compute spikes doctor checkpoints evaluate "
    "tasks gpu cluster tracker run sweep",
    "trainers.hfft": "hfft parent optim adapt compute spikes doctor checkpoints evaluate "
    "tasks gpu cluster tracker run sweep",
    "trainers.cohft": "cohft parent optim adapt compute spikes doctor checkpoints evaluate "
    "tasks gpu cluster tracker run sweep",
    "trainers.evaluate": "evaluate tasks cluster tracker run",
    "trainers.prune": "prune evaluate run",
    "rlhf.rank": "rank judge parent tasks cluster run",
    "rlhf.judges.label": "label run",
    "rlhf.teacher.teach": "teach judge cluster run",
    "rlhf.ppo": "ppo parent compute checkpoints evaluate tasks pipeline cluster tracker run sweep",
    "rlhf.inspect": "inspect run",
    "rlhf.replay": "replay run cluster",
    "rlhf.compare": "compare judge evaluate tasks pipeline cluster tracker run",
    "moe.convert": "convert parent run",
    "moe.plan": "plan gpu model parent compute optim pretrain tokens tokenizer serve cluster",
    "serving.serve": "serve tasks run cluster",
    "serving.chat": "serve tasks run cluster",
    "serving.promote": "promote serve run",
    "cluster.report": "run",
    "cluster.pipeline": "pipeline run cluster tracker",
}

_MUST = (  # what OmegaConf says, and what the value must be
    (r"converted to Integer", "a whole number"),
    (r"converted to Float", "a number"),
    (r"not a valid bool", "true or false"),
    (r"is not a ListConfig|is not a List", "a list"),
    (r"is not Optional", "a value, not null"),
)
_PLAIN = re.compile(r"[\w./*?-]+")  # what a list holds without quotes


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
    for parent in reversed([kind, *(base for base in kind.__mro__[1:] if base.__module__.startswith("conf."))]):
        found |= dict(re.findall(r"^    (\w+): [^#\n]*  # (.+)$", inspect.getsource(parent), re.MULTILINE))
    return found


def help_text(about: str, module: str, config: Config, *, whole: bool = False) -> str:
    """What `--help` prints: the job, how to call it, the groups, and each knob that it reads with its value in
    `config`, what presets and words make of it; `whole` shows the knobs of all jobs."""
    lines = [about.strip(), "", f"usage: python -m {module} [group=choice ...] [knob=value ...]", "", "groups"]
    lines += [f"  {group}={{{','.join(choices)}}}" for group, choices in groups().items()]
    own = SECTIONS.get(module, "").split()
    every = list(dict.fromkeys(name.partition(".")[0] for name in knobs()))
    shown = [*own, *(section for section in every if section not in own)] if whole or not own else own
    for section in shown:
        lines += ["", section]
        for name, (_, comment) in knobs().items():
            if name.startswith(f"{section}."):
                lines.append(f"  {name}={_shown(_value(config, name))}".ljust(44) + (f"  {comment}" if comment else ""))
    lines += ["", "Values are those of the words given, such as --help preset=test."]
    if rest := [section for section in every if section not in shown]:
        lines += [f"--help all shows the sections of other jobs too: {', '.join(rest)}."]
    if "sweep" in shown and own:
        lines += [f"-m runs a job for each of several values: python -m {module} -m {own[0]}.steps=100,200"]
    lines += ["--cfg job prints the resolved config; --hydra-help lists the other flags."]
    return "\n".join(line.rstrip() for line in lines)


def _value(config: Config, name: str) -> Any:
    found: Any = config
    for part in name.split("."):
        found = getattr(found, part)
    return found


def quoted(text: str) -> str:
    """A text as hydra reads it whatever letters it has: in double quotes, with those inside it escaped."""
    inner = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + found[2].replace('"', '\\"'), text)
    return f'"{inner}"'


def _shown(value: Any) -> str:
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, list):
        return f"[{','.join(_shown(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{name}:{_shown(item)}' for name, item in value.items())}}}"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def stray(tree: Mapping[str, Any], module: str = "") -> str:
    """Hydra's `+name=value` adds to the tree what nothing reads: the line that says so, or ''."""
    for name in _names(tree, Config, ""):
        return f"{name}: no such knob{_nearest(name, module)}; --help all lists them"
    return ""


def _names(tree: Mapping[str, Any], kind: type, prefix: str) -> Iterator[str]:
    known = {item.name: item.type for item in fields(kind)}
    for name, value in tree.items():
        if name not in known:
            yield prefix + name
        elif is_dataclass(known[name]) and get_origin(known[name]) is None:
            yield from _names(value, known[name], f"{prefix}{name}.")  # type: ignore[arg-type]


def reason(error: Exception, words: list[str], module: str = "") -> str:
    """One line that names the wrong word, one of `words` given to the job `module`, and says what is wrong with it."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    text = " ".join(" ".join(str(link) for link in chain).split())
    if nameless := next((word for word in words if word.lstrip("+~").startswith("=")), ""):
        return f"{nameless}: no knob is named; write knob=value"
    broken = getattr(error, "override", None)
    if broken is not None:
        return _unreadable(_given(str(broken), words), module)
    if missing := re.search(r"Could not override '([^']+)'", text):
        return f"{missing[1]}: no such knob{_nearest(missing[1], module)}; --help all lists them"
    if choice := re.search(r"Could not find '([^']+)/([^'/]+)'", text):
        have = groups().get(choice[1], [])
        return f"{choice[1]}={choice[2]}: no such choice; there are {', '.join(have)}"
    named = re.search(r"full_key: ([^\s\[]+)", text) or re.search(r"[aA]rgument '([\w.]+)=|parameters '([\w.]+)=", text)
    key = next(filter(None, named.groups())) if named else ""
    word = _given(key, words) if key else ""
    if "does not support deletion" in text:
        return f"~{key}: a knob cannot be taken away, only set"
    if "Ambiguous value" in text or "requires --multirun" in text:
        return f"{word}: {_several(key, word.partition('=')[2])}"
    if "not a subclass of" in text:
        return f"{word}: {key} is a section; set its knobs, such as {next(k for k in knobs() if k.startswith(key))}"
    if expected := re.search(r"expected one of \[([^\]]+)\]", text):
        return f"{word} must be one of {expected[1]}"
    for pattern, must in _MUST:
        if re.search(pattern, text):
            return f"{word} must be {must}" + (f": {_list_word(key, word)}" if must == "a list" else "")
    return f"{word}: {text}" if word else text


def _given(word: str, words: list[str]) -> str:
    """The word that was typed for the same knob as `word`, without signs in front."""
    key = word.lstrip("+~").partition("=")[0]
    typed = (each.lstrip("+~") for each in words)
    return next((each for each in typed if each == key or each.startswith(f"{key}=")), key)


def _list_word(name: str, word: str) -> str:
    """`name=value` for a knob that is a list, with each of its texts quoted, as one can type it."""
    value = word.partition("=")[2].strip()
    if value[:1] in ('"', "'") and value[-1:] == value[:1]:
        value = value[1:-1]
    items = [item.strip().strip("\"'") for item in value.removeprefix("[").removesuffix("]").split(",")]
    return shlex.quote(f"{name}=[{','.join(item if _PLAIN.fullmatch(item) else quoted(item) for item in items)}]")


def _several(name: str, value: str) -> str:
    """What to write instead of several values after a knob."""
    default = knobs().get(name, (None, ""))[0]
    if isinstance(default, list):
        return f"a list is written {_list_word(name, f'{name}={value}')}"
    sweep = "several values are a sweep, which -m runs"
    return f"{sweep}; a text is written {shlex.quote(f'{name}={quoted(value)}')}" if isinstance(default, str) else sweep


def _unreadable(word: str, module: str) -> str:
    name, equals, value = word.partition("=")
    if not equals:
        if name in groups():
            return f"{name}: which one? write {name}= and one of {', '.join(groups()[name])}"
        if name in knobs():
            return f"{name}: a value is missing; write {name}={_shown(knobs()[name][0])}"
        return f"{name}: no such knob{_nearest(name, module)}; write knob=value, and --help all lists the knobs"
    default = knobs().get(name, ("", ""))[0]
    if isinstance(default, list):
        return f"{word}: the list cannot be read; quote what is in it: {_list_word(name, word)}"
    if isinstance(default, dict):
        return f"{word}: names and values cannot be read; write {name}.<name>=<value>, a word for each"
    if isinstance(default, bool):
        return f"{word} must be true or false"
    if isinstance(default, int | float):
        return f"{word} must be a {'whole ' if isinstance(default, int) else ''}number"
    if isinstance(default, Enum):
        return f"{word} must be one of {', '.join(type(default).__members__)}"
    return f"{word}: the value cannot be read; quote it: {shlex.quote(f'{name}={quoted(value)}')}"


def _nearest(name: str, module: str) -> str:
    """What `name` may have meant: a knob that the job reads sooner than another."""
    if name in RENAMED:
        return f"; it is called {RENAMED[name]} now"
    ends = [knob for knob in knobs() if knob.endswith(f".{name}")]  # the section was left out
    for section in SECTIONS.get(module, "").split():
        if own := [knob for knob in ends if knob.startswith(f"{section}.")]:
            return f"; did you mean {own[0]}?"
    sections = {knob.partition(".")[0] for knob in knobs()}
    known = [*knobs(), *groups(), *sections] if "." not in name else list(knobs())
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6) or ends[:1]
    return f"; did you mean {near[0]}?" if near else ""

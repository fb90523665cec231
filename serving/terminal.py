"""A conversation with a model in this process, line by line: what is said is answered, what begins with / is done."""

import json
import secrets
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.feedback import Store
from conf.errors import InputError
from moe.generation.engine import Engine, Sampling
from moe.text.chat import prompt_ids
from moe.text.tokenizer import Tokenizer
from serving.text import TextStream

HELP = """\
  /system <text>          what the model is told first; without a text: nothing
  /temperature <number>   0: always the likeliest token
  /top_p <number>         of the likeliest tokens, so large a share
  /top_k <number>         at most so many of the likeliest; 0: all
  /min_p <number>         none with less than this share of the likeliest one's probability
  /repetition_penalty <number>   above 1: less of what was there; as in transformers
  /presence_penalty, /frequency_penalty <number>   above 0: less of what the answer has; as with OpenAI
  /max_tokens <number>    of an answer
  /seed <number>          of the draws; without a number: another each time
  /retry                  the last answer again
  /undo                   take back the last question
  /up, /down [principle]  rate the last answer
  /better <text>          what it should have been
  /save <file.jsonl>      append the conversation, as a sample for sft.files
  /new                    begin anew
  /quit                   or Ctrl-D; Ctrl-C stops an answer"""


class Left(Exception):
    """The user has had enough."""


@dataclass
class Session:
    """The model, what was said so far, and how the next answer is drawn."""

    engine: Engine
    tokenizer: Tokenizer
    name: str  # of the model
    version: str
    principles: tuple[str, ...]
    store: Store
    sampling: Sampling
    seed: int | None = None
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    conversation: str = field(default_factory=lambda: secrets.token_hex(8))
    finished: bool = True  # the last answer, by itself

    def answer(self, words: str) -> Generator[str, None, None]:
        """The pieces of the answer to `words`; whoever stops in between keeps what has come. Raises `InputError` for
        what the model cannot be asked."""
        self.turns.append({"role": "user", "content": words})
        try:
            ids = prompt_ids(self.tokenizer, self.messages)
            room = self.engine.model.cfg.context - len(ids)
            if room < 1:
                raise InputError(f"the conversation has {len(ids)} tokens, more than the model's context; try /new")
            seed = secrets.randbits(63) if self.seed is None else self.seed
            self.sampling = replace(self.sampling, seed=seed)
            bound = min(self.sampling.max_new_tokens, room)
            self.engine.add("answer", ids, replace(self.sampling, max_new_tokens=bound))
        except InputError:
            self.turns.pop()
            raise
        made: list[str] = []
        self.finished = False
        try:
            for piece in self._pieces():
                made.append(piece)
                yield piece
        finally:
            self.engine.cancel("answer")
            self.turns.append({"role": "assistant", "content": "".join(made)})

    def _pieces(self) -> Iterator[str]:
        stream = TextStream(self.tokenizer, [])
        while not self.engine.idle:
            for token in self.engine.step():
                text = stream.push(token.id)
                if token.finish is not None:
                    self.finished = token.finish == "stop"
                    text += stream.finish()
                if text:
                    yield text

    @property
    def messages(self) -> list[dict[str, str]]:
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.turns]

    def do(self, line: str) -> tuple[str, str | None]:
        """What a command answers, and what is to be asked again. Raises `InputError` for one that cannot be done, and
        `Left`."""
        name, _, rest = line[1:].strip().partition(" ")
        commands: dict[str, Callable[[str], tuple[str, str | None]]] = {
            "system": self._system, "seed": self._seed, "retry": self._retry, "undo": self._undo, "new": self._new,
            "up": lambda why: self._rate("up", why), "down": lambda why: self._rate("down", why),
            "better": self._better, "save": self._save, "quit": self._quit, "help": lambda _: (HELP, None),
            **{knob: lambda value, knob=knob: self._knob(knob, value) for knob in _KNOBS},  # type: ignore[misc]
        }  # fmt: skip
        if name not in commands:
            raise InputError(f"/{name} is no command; /help lists them")
        return commands[name](rest.strip())

    def _knob(self, name: str, value: str) -> tuple[str, None]:
        kind, lowest, highest, field_name = _KNOBS[name]
        try:
            number = kind(value)
        except ValueError:
            raise InputError(f"/{name} {value}: give a number") from None
        if not lowest <= number <= highest:
            raise InputError(f"/{name} {value}: must lie in [{lowest:g}, {highest:g}]")
        changed: dict[str, Any] = {field_name: number}
        self.sampling = replace(self.sampling, **changed)
        return f"{name}={number:g}", None

    def _system(self, text: str) -> tuple[str, None]:
        self.system = text
        return f"system prompt: {text or 'none'}", None

    def _seed(self, value: str) -> tuple[str, None]:
        if value and not value.isdecimal():
            raise InputError(f"/seed {value}: give a whole number, or none")
        self.seed = int(value) % 2**63 if value else None
        return f"seed={value or 'another each time'}", None

    def _retry(self, _: str) -> tuple[str, str]:
        question = self._last()[-2]["content"]
        del self.turns[-2:]
        return "", question

    def _undo(self, _: str) -> tuple[str, None]:
        self._last()
        del self.turns[-2:]
        return "taken back", None

    def _new(self, _: str) -> tuple[str, None]:
        self.turns, self.conversation = [], secrets.token_hex(8)
        return "a new conversation", None

    def _quit(self, _: str) -> tuple[str, None]:
        raise Left

    def _save(self, name: str) -> tuple[str, None]:
        self._last()
        if not name.endswith(".jsonl"):
            raise InputError(f"/save {name}: give a file whose name ends in .jsonl")
        try:
            with open(name, "a", encoding="utf-8") as file:
                line = {"id": self.conversation, "task": "chat", "messages": self.messages}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        except OSError as error:
            raise InputError(f"/save {name}: {error.strerror}") from None
        return f"appended to {Path(name).absolute()}", None

    def _rate(self, kind: str, principle: str) -> tuple[str, None]:
        if principle and principle not in self.principles:
            raise InputError(f"/{kind} {principle}: no such principle; there are {', '.join(self.principles)}")
        return self._vote({"kind": kind, **({"principle": principle} if principle else {})})

    def _better(self, text: str) -> tuple[str, None]:
        if not text or text == self._last()[-1]["content"]:
            raise InputError("/better needs what should have been said instead")
        return self._vote({"kind": "correction", "correction": text})

    def _vote(self, said: dict[str, Any]) -> tuple[str, None]:
        answer = self._last()[-1]["content"]
        sampling = {name: getattr(self.sampling, own) for name, (*_, own) in _KNOBS.items()}
        sampling["seed"] = self.sampling.seed
        given = {"text": answer, "finished": self.finished, "model": self.name, "version": self.version}
        said = {**said, "messages": self.messages[:-1], "answers": [{**given, "sampling": sampling}]}
        self.store.add("", secrets.token_hex(8), self.conversation, said, trains=True)
        return f"kept in {self.store.path}", None

    def _last(self) -> list[dict[str, str]]:
        if len(self.turns) < 2:
            raise InputError("nothing has been answered yet")
        return self.turns


_KNOBS: dict[str, tuple[type[int] | type[float], float, float, str]] = {
    "temperature": (float, 0, 2, "temperature"),
    "top_p": (float, 0.01, 1, "top_p"),
    "top_k": (int, 0, 2**20, "top_k"),
    "min_p": (float, 0, 1, "min_p"),
    "repetition_penalty": (float, 0.01, 10, "repetition_penalty"),
    "presence_penalty": (float, -2, 2, "presence_penalty"),
    "frequency_penalty": (float, -2, 2, "frequency_penalty"),
    "max_tokens": (int, 1, 2**20, "max_new_tokens"),
}

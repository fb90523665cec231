"""The seam between the system and a domain: what is asked, and when an answer is good.

A domain is a module that `tasks.domain` names. It has two functions, and says what they are about:

    PRINCIPLES: tuple[str, ...]      the names under which it scores an answer; without it the five of `PRINCIPLES`
    OPTIONS: Mapping[str, float]     the weights that `tasks.options.<name>` may change, with their defaults
    FIELDS: tuple[str, ...]          the fields of its own that a line of `tasks.queries` may have

    samples(source: Source, cfg: Tasks, seed: int) -> dict[str, list[Sample]]
        "train" and "val" are instruction samples; "prompts" are queries for rankings and reinforcement learning,
        "test_prompts" queries that only measure. What its judge needs later it writes into `source.folder`.
    judge(folder: Path, options: Mapping[str, float]) -> Judge
        `folder` is the stage `tasks` of the run.

It may have a third, asked before the first stage of a pipeline:

    check(cfg: Tasks, record: dict[str, Any] | None) -> None
        Raises `InputError` where nothing can be made of a corpus whose first record this is; None: of no corpus.

Loads neither torch nor ray.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

PRINCIPLES = ("harmless", "helpful", "truthful", "fluent", "clear")

CORPUS = "corpus:"  # what the origin of a sample begins with that was made of a record of the corpus

Message = dict[str, str]  # role, content
_OWN = ("id", "task", "messages", "label", "muted", "origin")  # of a line of a file, a sample's own fields


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An instruction sample, whose last turn is the answer to learn, or a query, whose last turn is the user's."""

    id: str
    task: str
    messages: list[Message]
    label: str | None = None  # the one right answer, or what a right answer names
    muted: tuple[int, ...] = ()  # the messages, by their place, whose answers are not learnt: they carry no loss
    fields: Mapping[str, Any] = field(default_factory=dict)  # reference(s), choices, checks, and the domain's own
    # what it was made of: file:line of a user's own, or see `of_corpus`; two samples that say the same are the same
    origin: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> "Sample":
        """From a line of a file of the stage tasks."""
        own = {name: value for name, value in line.items() if name not in _OWN}
        return cls(
            id=line["id"],
            task=line["task"],
            messages=line["messages"],
            label=line.get("label"),
            muted=tuple(line.get("muted", ())),
            fields=own,
            origin=tuple(line.get("origin", ())),
        )

    @property
    def line(self) -> dict[str, Any]:
        """As a line of a file."""
        more: dict[str, Any] = {} if self.label is None else {"label": self.label}
        more |= {"muted": list(self.muted)} if self.muted else {}
        more |= {"origin": list(self.origin)} if self.origin else {}
        return {"id": self.id, "task": self.task, "messages": self.messages, **more, **self.fields}

    @property
    def prompt(self) -> str:
        """The last thing that the user says."""
        return next(turn["content"] for turn in reversed(self.messages) if turn["role"] == "user")


def of_corpus(number: int) -> tuple[str, ...]:
    """The origin of a sample that was made of one record of the corpus, by its number."""
    return (f"{CORPUS}{number}",)


def query(sample: Sample) -> Sample:
    """The sample without its answer."""
    return replace(sample, messages=sample.messages[:-1], muted=())


def hashed(seed: int, purpose: str, name: object) -> int:
    """A number of 64 bits that depends on nothing else, for choices that more data must not change."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{purpose}:{name}".encode(), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class Verdict:
    """What the domain's rules say of one answer; made once, and used for rankings, rewards, selection and metrics."""

    scores: Mapping[str, float]  # each principle, in [0, 1]
    reward: float  # all in all, about [-1, 1]
    placed: tuple[tuple[int, float], ...] = ()  # (place of a character, the part of the reward that is earned there)
    measures: Mapping[str, float] = field(default_factory=dict)  # their means over the answers that have them: metrics
    reasons: tuple[str, ...] = ()  # in words, one for each rule that the answer broke
    free: bool = True  # a text of the model's own, which should differ from its others; a label should not


Judge = Callable[[Sample, str, bool], Verdict]  # (query, answer, whether the model ended it by itself)


@dataclass(frozen=True)
class Source:
    """What a domain may make its samples from."""

    records: Callable[[str], Iterator[tuple[int, dict[str, Any]]]]  # of a split of the corpus: (number, record)
    documents: Callable[
        [str], Iterator[str]
    ]  # of a split of the corpus: the text of each record, as `records` has them
    own: Sequence[Sample]  # of `sft.files`
    queries: Sequence[Sample]  # of `tasks.queries`
    folder: Path  # of the stage tasks
    # the splits that these two make, apart from each other: what takes the place of a domain's own
    given: Mapping[str, Sequence[Sample]] = field(default_factory=dict)

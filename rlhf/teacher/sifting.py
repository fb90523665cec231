"""Which of a teacher's questions and answers serve: grounded in the passage, of a fit length, in its language, hard
enough, and each once; and which of one passage are turns of one conversation. Pure.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conf.knobs.teacher import Teach
from moe.tasks.writing import main_writing
from rlhf.teacher.prompts import Pair

_UNIT = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+")
_SPEAKS_OF_IT = re.compile(
    r"\b(the|this|that) (passage|text|excerpt|document|article)\b|according to the (author|passage|text)"
    r"|这段文字|该段文字|上文|文中|本文|这篇文章|段落中",
    re.IGNORECASE,
)
RUN = 2  # units of a run by which an answer is compared with the passage


@dataclass(frozen=True)
class Passage:
    """Text that a teacher is asked about."""

    record: int  # its document's number in the corpus
    place: int  # of its first character in the document
    text: str


@dataclass(frozen=True)
class Gone:
    """Why a pair does not serve."""

    rule: str
    value: float
    limit: float


@dataclass
class Sieve:
    """Lets the pairs of one passage after the other through, and remembers those that it let through."""

    cfg: Teach
    _seen: dict[str, None] = field(default_factory=dict)
    _by_unit: dict[str, list[frozenset[str]]] = field(default_factory=dict)

    def gone(self, pair: Pair, passage: Passage) -> Gone | None:
        """Why this pair does not serve; None where it does."""
        cfg = self.cfg
        writing = main_writing(passage.text)
        for name, text, least, most in (
            ("question", pair.question, cfg.least_question, cfg.most_question),
            ("answer", pair.answer, cfg.least_answer, cfg.most_answer),
        ):
            size = len(units(text))
            if size < least:
                return Gone(f"{name} too short", size, least)
            if size > most:
                return Gone(f"{name} too long", size, most)
            if main_writing(text) != writing:
                return Gone(f"{name} in another writing", 0.0, 1.0)
            if _SPEAKS_OF_IT.search(text):
                return Gone(f"{name} speaks of the passage", 1.0, 0.0)
        if not cfg.easiest <= pair.difficulty <= cfg.hardest:
            limit = cfg.easiest if pair.difficulty < cfg.easiest else cfg.hardest
            return Gone("difficulty", pair.difficulty, limit)
        if (share := grounded(pair.answer, passage.text)) < cfg.grounded:
            return Gone("not grounded", share, cfg.grounded)
        if (share := len(units(pair.answer)) / max(1, len(units(passage.text)))) > cfg.copied:
            return Gone("answer is the passage", share, cfg.copied)
        if (share := self._likeness(pair.question)) >= cfg.alike:
            return Gone("asked before", share, cfg.alike)
        self._remember(pair.question)
        return None

    def _likeness(self, question: str) -> float:
        """The share of its runs that a question has in common with the one before that it is most like."""
        own = runs(question)
        if "".join(units(question)) in self._seen:
            return 1.0
        others = {id(one): one for run in own for one in self._by_unit.get(run, ())}.values()
        return max((len(own & other) / len(own | other) for other in others), default=0.0)

    def _remember(self, question: str) -> None:
        self._seen["".join(units(question))] = None
        own = runs(question)
        for run in own:
            self._by_unit.setdefault(run, []).append(own)


def units(text: str) -> list[str]:
    """Han characters, and words of other scripts."""
    return _UNIT.findall(text.lower())


def runs(text: str) -> frozenset[str]:
    found = units(text)
    return frozenset(" ".join(found[at : at + RUN]) for at in range(max(1, len(found) - RUN + 1)))


def grounded(answer: str, passage: str) -> float:
    """The share of the answer's different runs of two units that the passage has, in [0, 1]."""
    own = runs(answer)
    return len(own & runs(passage)) / len(own)


def related(one: Pair, other: Pair) -> float:
    """The share of the shorter one's runs that two pairs have in common, questions and answers together."""
    first, second = (runs(f"{pair.question} {pair.answer}") for pair in (one, other))
    return len(first & second) / min(len(first), len(second))


def conversations(pairs: Sequence[Pair], cfg: Teach) -> list[list[Pair]]:
    """The pairs of one passage, in their order, as conversations: one that is related to the turn before goes on with
    it, up to `cfg.turns` turns."""
    found: list[list[Pair]] = []
    for pair in pairs:
        if found and len(found[-1]) < cfg.turns and related(found[-1][-1], pair) >= cfg.related:
            found[-1].append(pair)
        else:
            found.append([pair])
    return found


def sample(turns: Sequence[Pair], passage: Passage, number: int) -> dict[str, Any]:
    """A line that `sft.files` reads: the record that it was made of goes along as `passage`."""
    messages = []
    for pair in turns:
        messages += [{"role": "user", "content": pair.question}, {"role": "assistant", "content": pair.answer}]
    about = {"record": passage.record, "place": passage.place, "difficulty": max(pair.difficulty for pair in turns)}
    name = f"taught-{passage.record}-{passage.place}-{number}"
    return {"id": name, "task": "taught", "messages": messages, "passage": about}


def rejected(pair: Pair, gone: Gone, passage: Passage) -> dict[str, Any]:
    """A line of the reject report."""
    told: Mapping[str, Any] = {"rule": gone.rule, "value": round(gone.value, 4), "limit": gone.limit}
    where = {"record": passage.record, "place": passage.place}
    return {**told, **where, "question": pair.question, "answer": pair.answer, "difficulty": pair.difficulty}

"""People as a judge of the answers that the stage samples: they wait in a store, and the labelling page shows them.

The first call samples the answers and asks for ranks; the same command later finds them there, samples nothing, and
goes on once `rank.labelled` of the queries were seen. What somebody ranked gives each answer the share of the others
that it is better than, a tie counting half; of several people the mean. Who skipped a query has seen it, and said
nothing of it. Answers with the same text are one, and tie.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cluster.agreement import key, plain
from cluster.people.labels import FILE, Item, Label, Labels
from conf.errors import InputError
from conf.schema import Config
from rlhf.judges.agreement import alpha
from rlhf.judges.opinions import Asked, Opinion

SOURCE = "rank"  # whose set it is in the store
EXACT = 1e-6  # of scores: people's ranks are whole, and what is further apart than rounding is meant
_SAMPLED = ("prompts", "answers", "temperatures", "max_new_tokens")  # knobs that the answers hang on

Answers = dict[str, list[dict[str, Any]]]  # {query: [{"text", "finished"}]}


@dataclass(frozen=True)
class People:
    """What they have said when the stage began: it hangs on that, and not on what comes meanwhile."""

    labels: Labels
    given: Mapping[str, Sequence[Label]]  # by item

    @classmethod
    def of(cls, cfg: Config) -> "People":
        labels = Labels(cfg.run.folder / FILE)
        return cls(labels, labels.given())

    @property
    def digests(self) -> dict[str, str]:
        """{item: of all that was said of it}, of the items that are asked for."""
        return {item.id: _digest(list(map(_said, self.given.get(item.id, ())))) for item in self.labels.items(SOURCE)}

    def answers(self, cfg: Config, reads: Sequence[str], make: Callable[[], Answers]) -> Answers:
        """Those that people were asked about, if they are still what the stages `reads` and the knobs come to; else of
        `make`, which are kept."""
        wanted = _digest(
            [
                {read: key(cfg.run.folder / read) for read in reads},
                {name: getattr(cfg.rank, name) for name in _SAMPLED},
                cfg.run.seed,
            ]
        )
        before, kept = self.labels.asked(SOURCE)
        if before == wanted:
            return dict(kept)
        made = make()
        self.labels.ask(SOURCE, [], key=wanted, more=made)
        return made

    def ask(self, asked: Sequence[Asked], principles: Sequence[str], least: float) -> None:
        """Ask for what of it can be ranked. Raises `InputError` saying what to do while less than the share `least` of
        it was seen."""
        items = [item for each in asked if len((item := item_of(each, principles)).texts) > 1]
        wanted, more = self.labels.asked(SOURCE)
        self.labels.ask(SOURCE, items, key=wanted, more=more)
        seen = sum(item.id in self.given for item in items)
        if seen < least * len(items):
            raise InputError(
                f"rank.judges has people, who have seen {seen} of {len(items)} queries: python -m serving.serve has a "
                "page for them at /label, python -m rlhf.judges.label writes and reads them as JSONL; then the same "
                f"command goes on, or now with what there is: rank.labelled={100 * seen // len(items) / 100:g}"
            )

    def opinions(self, asked: Sequence[Asked], principles: Sequence[str]) -> tuple[list[Opinion], dict[str, float]]:
        """One for each query, and as metrics how many labels there are, how many queries they skip and how many nobody
        has seen, and Krippendorff's alpha of the people, where two ranked the same."""
        said = [self.given.get(item_of(each, principles).id, ()) for each in asked]
        metrics = {
            "people/labels": float(sum(map(len, said))),
            "people/skipped": float(sum(bool(of) and all(label.skipped for label in of) for of in said)),
            "people/waiting": float(sum(not of for of in said)),
        }
        together = alpha(
            values
            for of in said
            for name in principles
            if len(ranked := [label.ranks[name] for label in of if name in label.ranks]) > 1
            for values in zip(*ranked, strict=True)
        )
        agreed = {"people/alpha": together} if together == together else {}
        return [opinion(each, of, principles) for each, of in zip(asked, said, strict=True)], metrics | agreed


def item_of(asked: Asked, principles: Sequence[str]) -> Item:
    texts = dict.fromkeys(str(answer["text"]) for answer in asked.answers)
    return Item(asked.query.messages, tuple(texts), tuple(principles))


def opinion(asked: Asked, labels: Sequence[Label], principles: Sequence[str]) -> Opinion:
    """What the labels of one query come to."""
    texts = item_of(asked, principles).texts
    own = [texts.index(answer["text"]) for answer in asked.answers]
    scores, missing = {}, {}
    for name in principles:
        ranked = [[label.ranks[name][place] for place in own] for label in labels if name in label.ranks]
        if len(texts) == 1:
            scores[name] = [0.5] * len(own)  # nobody is asked about the same text twice
        elif ranked:
            each = [_shares(ranks) for ranks in ranked]
            scores[name] = [sum(shares[place] for shares in each) / len(each) for place in range(len(own))]
        else:
            missing[name] = "skipped" if any(label.skipped for label in labels) else "nobody has ranked it"
    why = [
        {"by": {_name(label): {name: ranks[place] for name, ranks in label.ranks.items()} for label in labels}}
        for place in own
    ]
    return Opinion(scores, why, missing, [_said(label) for label in labels])


def _shares(ranks: Sequence[int]) -> list[float]:
    """Of each answer, the share of the others that it is better than, a tie counting half."""
    others = len(ranks) - 1
    return [(sum(own < other for other in ranks) + (ranks.count(own) - 1) / 2) / others for own in ranks]


def _said(label: Label) -> dict[str, Any]:
    """Who said something of a query, when, and what beside ranks."""
    when = datetime.fromtimestamp(label.created, UTC).isoformat(timespec="seconds")
    return {"by": _name(label), "at": when, "ranked": plain(dict(label.ranks))} | {
        name: value for name in ("skipped", "comment") if (value := getattr(label, name))
    }


def _name(label: Label) -> str:
    return label.owner or "someone"  # whom the server asked for no key


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]

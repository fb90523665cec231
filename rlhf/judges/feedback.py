"""People as a judge: what they said of answers, in the store that the server keeps, becomes rankings and samples.

They judge the answers that they were given, so that the rankings are of their own conversations and not of answers that
the stage samples. A ranking is of two answers to one conversation, once for each two of which somebody said something:
a chosen one against the other, a correction against what it corrects, a thumb up against a thumb down. More than half
of the votes on the two decide, in all and under each principle that was named; else they tie. A thumb alone compares
with nothing, a vote that only its sender may see is left out.

A correction is an instruction sample besides, in which only it is learnt and not what the model said before.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from cluster.feedback import FILE, Vote, for_training
from conf.errors import InputError
from conf.schema import Config

Messages = list[dict[str, str]]
ALL = None  # in the place of a principle: in all


@dataclass(frozen=True)
class Better:
    """Somebody's word that one answer to a conversation is better than another."""

    first: str  # texts
    second: str
    principle: str | None


@dataclass
class Talk:
    """Votes on the answers to one conversation so far."""

    messages: Messages
    votes: list[Vote]

    @property
    def name(self) -> str:
        return "feedback-" + hashlib.sha256(json.dumps(self.messages, ensure_ascii=False).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Told:
    """What all votes come to."""

    rankings: list[dict[str, Any]]  # lines of rankings.jsonl
    samples: list[dict[str, Any]]  # lines of corrections.jsonl, as sft.files takes them
    conversations: dict[str, str]  # name, after its owner's: digest of what was said of it
    metrics: dict[str, float]


def store(cfg: Config) -> Path:
    """The file that `rank.feedback` names, or the run's."""
    return Path(cfg.rank.feedback).absolute() if cfg.rank.feedback else cfg.run.folder / FILE


def check(cfg: Config) -> None:
    """Raise `InputError` where there is no store."""
    if not store(cfg).is_file():
        raise InputError(
            f"rank.judges has feedback, and {store(cfg)} is not there; a server of this run makes it with the first "
            "vote, or give another run's: rank.feedback=<file>"
        )


def told(path: Path, principles: Sequence[str]) -> Told:
    """What the votes of a store come to under `principles`; one under another counts in all. Raises `InputError` for a
    file that cannot be read."""
    try:
        votes = for_training(path)
    except OSError as error:
        raise InputError(f"rank.feedback: {error}") from None
    by_messages: dict[str, Talk] = {}
    for vote in votes:
        key = json.dumps(vote.said["messages"], ensure_ascii=False)
        by_messages.setdefault(key, Talk(vote.said["messages"], [])).votes.append(vote)
    talks = list(by_messages.values())
    rankings = [line for talk in talks for line in _rankings(talk, principles)]
    samples = [_sample(talk, vote, place) for talk in talks for place, vote in enumerate(_corrections(talk))]
    conversations = _conversations(votes)
    metrics = {"votes": len(votes), "conversations": len(conversations), "corrections": len(samples)}
    return Told(rankings, samples, conversations, {f"feedback/{name}": float(n) for name, n in metrics.items()})


def _corrections(talk: Talk) -> list[Vote]:
    return [vote for vote in talk.votes if vote.said["kind"] == "correction"]


def _sample(talk: Talk, vote: Vote, place: int) -> dict[str, Any]:
    before = [{**turn, "weight": 0} if turn["role"] == "assistant" else turn for turn in talk.messages]
    answer = {"role": "assistant", "content": vote.said["correction"]}
    return {"id": f"{talk.name}-{place}", "task": "feedback", "messages": [*before, answer]}


def _said(vote: Vote) -> Iterator[Better]:
    """What one vote says by itself."""
    said, texts = vote.said, [answer["text"] for answer in vote.said["answers"]]
    if said["kind"] == "better":
        yield Better(texts[said["better"]], texts[1 - said["better"]], said.get("principle"))
    elif said["kind"] == "correction":
        yield Better(said["correction"], texts[0], said.get("principle"))


def _thumbs(talk: Talk) -> Iterator[Better]:
    """Every answer with a thumb up against every one with a thumb down, under a principle that both name."""
    up, down = (
        [(vote.said["answers"][0]["text"], vote.said.get("principle")) for vote in talk.votes if vote.said["kind"] == k]
        for k in ("up", "down")
    )
    for (liked, why), (disliked, why_not) in product(up, down):
        if liked != disliked:
            yield Better(liked, disliked, why if why == why_not else None)


def _rankings(talk: Talk, principles: Sequence[str]) -> Iterator[dict[str, Any]]:
    pairs: dict[tuple[str, str], list[Better]] = defaultdict(list)
    for better in [*(each for vote in talk.votes for each in _said(vote)), *_thumbs(talk)]:
        pair = better.first, better.second
        pairs[pair if pair[::-1] not in pairs else pair[::-1]].append(better)
    whole = _whole(talk)
    for place, (texts, words) in enumerate(pairs.items()):
        under: dict[str | None, list[Better]] = {ALL: words}
        under |= {name: [word for word in words if word.principle == name] for name in principles}
        shares = {name: sum(w.first == texts[0] for w in said) / len(said) for name, said in under.items() if said}
        answers = [
            {
                "text": text,
                "finished": whole[text],
                "scores": {name: round(_of(share, own), 4) for name, share in shares.items() if name is not ALL},
                "total": round(_of(shares[ALL], own), 4),
                "judges": {"feedback": {"votes": dict(_votes(words, text))}},
                "rank": int(_of(shares[ALL], own) < 0.5),
                "ranks": {name: int(_of(share, own) < 0.5) for name, share in shares.items() if name is not ALL},
            }
            for own, text in enumerate(texts)
        ]
        yield {"id": f"{talk.name}-{place}", "task": "feedback", "messages": talk.messages, "answers": answers}


def _of(share: float, place: int) -> float:
    """Of the votes, the share for the first of two answers or for the second."""
    return 1 - share if place else share


def _votes(words: Sequence[Better], text: str) -> Counter[str]:
    return Counter("better" if word.first == text else "worse" for word in words)


def _whole(talk: Talk) -> dict[str, bool]:
    """{text: whether it came to its end}; what a person wrote did."""
    found = {a["text"]: bool(a.get("finished", True)) for vote in talk.votes for a in vote.said["answers"]}
    return found | {vote.said["correction"]: True for vote in _corrections(talk)}


def _conversations(votes: Sequence[Vote]) -> dict[str, str]:
    by_name: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for vote in votes:
        by_name["/".join(filter(None, (vote.owner, vote.conversation)))].append(vote.said)
    return {
        name: hashlib.sha256(json.dumps(said, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]
        for name, said in sorted(by_name.items())
    }

"""What rankings teach without a reward model: the best answer to a query, or a good and a worse one after each other.

Pure: records of `trainers.files.rankings` in, samples out.
"""

import json
from collections.abc import Sequence

from conf.knobs.alignment import Cohft, Phrases
from moe.tasks.task import Message, Sample, hashed
from moe.tasks.writing import main_writing
from trainers.files.rankings import Record, judged

PLAIN, CHAIN = "best", "chain"  # tasks of the samples


def best(answers: Sequence[Record], principle: str | None = None) -> int | None:
    """The place in the list of the best answer, in total or under a principle: of the whole answers that have a place
    the one with the first; of those that share it the one with the highest score, then the first. An answer that was
    cut off or is blank is nobody's best, for its end would not be learnt: None where there is no other."""
    return _first(answers, principle, sign=1)


def worst(answers: Sequence[Record], principle: str | None = None) -> int | None:
    """As `best`, from the other end of the ranks and the scores; of equals the first."""
    return _first(answers, principle, sign=-1)


def _first(answers: Sequence[Record], principle: str | None, *, sign: int) -> int | None:
    ranks, scores = judged(answers, principle)
    places = [
        (sign * rank, -sign * (score if score is not None else 0.0), number)
        for number, (answer, rank, score) in enumerate(zip(answers, ranks, scores, strict=True))
        if rank is not None and answer.get("finished", True) and answer["text"].strip()
    ]
    return min(places)[-1] if places else None


def good(records: Sequence[Record], at_least: float) -> tuple[list[Record], dict[str, float]]:
    """(the rankings whose best answer has a total of `at_least` or none, {"below": how many have a lower one,
    "no_best": how many have no best answer})."""
    kept, below, without = [], 0, 0
    for record in records:
        place = best(record["answers"])
        total = None if place is None else judged(record["answers"], None)[1][place]
        if place is None:
            without += 1
        elif total is not None and total < at_least:
            below += 1
        else:
            kept.append(record)
    return kept, {"below": float(below), "no_best": float(without)}


def plain(record: Record) -> Sample:
    """The query and its best answer, as anybody asks."""
    place = best(record["answers"])
    assert place is not None, "a ranking that `good` kept"
    return _sample(record, PLAIN, [*record["messages"], _said(record["answers"][place])])


def chains(record: Record, principles: Sequence[str], cfg: Cohft, seed: int) -> list[Sample]:
    """Chains of hindsight (Liu et al. 2023): a conversation for the total, and one for each of `principles`, wherever
    its best answer has a better place than its worst. The query ends with a phrase that says what answer comes, and the
    next turn asks by the other phrase for the other answer; which of the two is first, a hash of the query decides."""
    answers, found = record["answers"], []
    phrases = language(record["messages"], cfg)
    for name in (None, *principles):
        high, low = best(answers, name), worst(answers, name)
        ranks = judged(answers, name)[0]
        if high is None or low is None or ranks[high] == ranks[low]:
            continue
        pair = list(zip(spoken(phrases, name), (answers[high], answers[low]), strict=True))
        asked = json.dumps(record["messages"], ensure_ascii=False)
        if hashed(seed, f"cohft {name}", asked) % 2:
            pair.reverse()
        (first, one), (second, other) = pair
        turns = [*asking(record["messages"], first), _said(one), {"role": "user", "content": second}, _said(other)]
        found.append(_sample(record, CHAIN, turns, name or "total"))
    return found


def language(messages: Sequence[Message], cfg: Cohft) -> Phrases:
    """The phrases of a conversation's language: Chinese where Han characters are most of what the user last wrote."""
    last = next((turn["content"] for turn in reversed(messages) if turn["role"] == "user"), "")
    return cfg.zh if main_writing(last) == "han" else cfg.en


def spoken(phrases: Phrases, principle: str | None) -> tuple[str, str]:
    """(what is said before the better answer, before the worse)."""
    if principle is None:
        return phrases.good, phrases.worse
    name = phrases.names.get(principle, principle)
    return phrases.more.replace("{principle}", name), phrases.less.replace("{principle}", name)


def asking(messages: Sequence[Message], phrase: str) -> list[Message]:
    """The conversation, whose last turn is the user's, with a phrase at its end."""
    *before, last = messages
    if last["role"] != "user":
        return [*messages, {"role": "user", "content": phrase}]
    return [*before, {**last, "content": f"{last['content']}\n{phrase}"}]


def _said(answer: Record) -> Message:
    return {"role": "assistant", "content": answer["text"]}


def _sample(record: Record, task: str, messages: list[Message], *more: str) -> Sample:
    where = record["where"].rpartition("/")[2]  # the same on every machine
    origin = tuple(record.get("origin", ()))
    return Sample(id=" ".join([where, *more]), task=task, messages=messages, origin=origin)

"""Read rankings, made by rules or by people: .jsonl, .json, .parquet or a dataset, a query and its answers a record.

    {"messages": [{"role": "user", "content": "..."}],
     "answers": [{"text": "...", "finished": true, "rank": 0, "ranks": {"helpful": 1}},
                 {"text": "...", "rank": 1, "total": 0.4, "scores": {"clear": 0.7}}]}

`rank` is an answer's place in total and `ranks` its place under single principles, whole numbers, the best the lowest,
equal where answers tie. Where no answer of the line has a place, the order is that of `total` or `scores`, of which
more is better. Everything but `text` may be missing: an answer that has neither is compared with nothing there.
`finished` (true where it is missing) says that the answer is whole, and not cut off. Pairs of a chosen and a rejected
answer and lists with ranks or scores are read as others publish them: see `trainers.files.comparisons`.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from conf.errors import InputError
from moe.tasks.task import hashed
from moe.text.chat import check
from trainers.files.comparisons import comparison
from trainers.files.forgotten import NOTHING, Forgotten
from trainers.files.readers import unchanged
from trainers.files.rejects import Rejects, made_of, rejects_in

Record = dict[str, Any]  # what a line holds, `where`: file:line, and `origin`: that, and what its query was made of
LARGEST = 100_000  # score


def read_rankings(
    path: str | Path,
    principles: Sequence[str],
    rejects: Rejects | None = None,
    forgotten: Forgotten = NOTHING,
    *,
    ours: bool = False,
) -> list[Record]:
    """The rankings of a file that are not forgotten, under `principles`; what a file of `ours` says of its queries'
    origin holds. Raises `InputError` "file:line: ..." at the first that is none, unless `rejects` allows it."""

    def made(record: dict[str, Any], _: int, where: str) -> Record:
        told = comparison(record, where)
        messages, answers = told["messages"], told["answers"]
        try:
            check(messages if isinstance(messages, list) else [])
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if not isinstance(answers, list) or len(answers) < 2:
            raise InputError(f"{where}: answers must be a list of two or more: one alone has no rank")
        for place, answer in enumerate(answers):
            _check_answer(answer, f"{where}: answers[{place}]", principles)
        return {**told, "where": where, "origin": [where, *(origin_of(record) if ours else [])]}

    return list(made_of(path, made, rejects or Rejects("", 0.0), forgotten))


def origin_of(record: Mapping[str, Any]) -> list[str]:
    """What the query of a ranking was made of, as the stage that wrote it says."""
    told = record.get("origin")
    return [one for one in told if isinstance(one, str)] if isinstance(told, list) else []


def read_all(
    own: Mapping[str, str],
    ranked: Path,
    principles: Sequence[str],
    folder: Path,
    knob: str,
    most: float,
    forgotten: Forgotten = NOTHING,
) -> tuple[list[Record], dict[str, float]]:
    """(the rankings of a user's `own` files {file: digest}, else those of the stage `ranked`; {"read", "rejected"}).
    `knob` allows the share `most` of bad ones, which are set aside in `folder`. Raises `InputError` where more are bad,
    or a file was changed meanwhile."""
    files = list(own) or [str(ranked / "rankings.jsonl")]
    with rejects_in(folder, knob, most) as rejects:
        records = [
            record for file in files for record in read_rankings(file, principles, rejects, forgotten, ours=not own)
        ]
    unchanged(own)
    return records, {"read": float(rejects.read), "rejected": float(rejects.bad)}


def split(records: Sequence[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """(train, held out) by query, one query at least, so that no held-out ranking shares its query with one that is
    learnt from; in one run every stage with the same share holds out the same queries."""
    asked = {record["where"]: json.dumps(record["messages"], ensure_ascii=False) for record in records}
    queries = sorted(set(asked.values()), key=lambda query: hashed(seed, "reward", query))
    held = set(queries[: max(1, round(share * len(queries)))])
    return (
        [record for record in records if asked[record["where"]] not in held],
        [record for record in records if asked[record["where"]] in held],
    )


def _check_answer(answer: object, at: str, principles: Sequence[str]) -> None:
    if not isinstance(answer, dict) or not isinstance(answer.get("text"), str):
        raise InputError(f"{at} must be an object whose text is a string")
    if not isinstance(answer.get("finished", True), bool):
        raise InputError(f"{at}.finished={answer['finished']!r:.40} must be true or false")
    _check_rank(answer.get("rank"), f"{at}.rank")
    _check_score(answer.get("total"), f"{at}.total")
    for field, check_value in (("ranks", _check_rank), ("scores", _check_score)):
        under = answer.get(field)
        if under is not None and not isinstance(under, dict):
            raise InputError(f'{at}.{field}={under!r:.40} must be an object, such as {{"helpful": 1}}')
        for name, value in (under or {}).items():
            if name not in principles:
                raise InputError(f"{at}.{field}: {name!r:.40} is no principle; there are {', '.join(principles)}")
            check_value(value, f"{at}.{field}.{name}")


def _check_rank(value: object, at: str) -> None:
    if value is not None and not (type(value) is int and 0 <= value <= LARGEST):
        raise InputError(f"{at}={value!r:.40} must be a whole number from 0, the best, to {LARGEST}")


def _check_score(value: object, at: str) -> None:
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST):
        return
    raise InputError(f"{at}={value!r:.40} must be a number from -{LARGEST} to {LARGEST}")


def judged(answers: Sequence[Record], principle: str | None) -> tuple[list[int | None], list[float | None]]:
    """(place, score) of each answer in total or under a principle, None where it has none."""
    if principle is None:
        ranks, scores = ([answer.get(field) for answer in answers] for field in ("rank", "total"))
    else:
        ranks, scores = (
            [(answer.get(field) or {}).get(principle) for answer in answers] for field in ("ranks", "scores")
        )
    if all(rank is None for rank in ranks):
        given = [score for score in scores if score is not None]
        ranks = [None if score is None else sum(other > score for other in given) for score in scores]
    return ranks, scores


def telling(records: Iterable[Record], principles: Sequence[str]) -> tuple[str, ...]:
    """Those of the principles under which some answer is better than another."""
    lines = [record["answers"] for record in records]
    return tuple(
        name for name in principles if any(len(set(judged(answers, name)[0]) - {None}) > 1 for answers in lines)
    )

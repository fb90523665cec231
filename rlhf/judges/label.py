"""Write what awaits people's ranks as JSONL, for another tool or another place, and read it or the ranks back.

python -m rlhf.judges.label run.name=demo label.out=to_rank.jsonl
python -m rlhf.judges.label run.name=demo 'label.files=[ranked.jsonl]'

A line is a query with its answers and, where somebody said something of it, what one person said:

    {"id": "5c0f...", "query": "...", "messages": [{"role": "user", "content": "..."}], "answers": ["...", "..."],
     "principles": ["helpful", "clear"], "status": "ranked", "annotator": "alice", "at": 1764288000.0,
     "ranks": {"helpful": [1, 2], "clear": [1, 1]}, "comment": "..."}

`ranks` has a place for each answer, in their order, 1 the best and equal where they tie; `status` is waiting, ranked
or skipped. Read, a line needs `answers` (texts, or objects with a `text`) and `messages` or `query`; without
`annotator` it is the file's name that said it. A query that no stage has asked for is asked for from then on.
"""

from conf.entry import early, job

early(__name__)

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.people.labels import FILE, Item, Label, Labels, places
from cluster.storage import write_file
from conf.errors import InputError
from conf.schema import Config
from moe.text.chat import check


@job
def main(cfg: Config) -> dict[str, float]:
    """Take `label.files` in, write `label.out`; print and return how many queries wait, are ranked or skipped."""
    store = Labels(cfg.run.folder / FILE)
    for file in cfg.label.files:
        take(store, Path(file))
    lines = list(written(store))
    if cfg.label.out:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_file(Path(cfg.label.out).absolute(), text)
    count = Counter(line["status"] for line in lines)
    found = {status: float(count[status]) for status in ("waiting", "ranked", "skipped")}
    print(f"{store.path}: " + ", ".join(f"{value:.0f} {status}" for status, value in found.items()))
    return found


def written(store: Labels) -> Iterator[dict[str, Any]]:
    """A line for each query that is asked for and everybody who said something of it."""
    given = store.given()
    for item in store.items():
        line = {
            "id": item.id,
            "query": item.messages[-1]["content"],
            "messages": [dict(turn) for turn in item.messages],
            "answers": list(item.texts),
            "principles": list(item.principles),
        }
        for label in given.get(item.id, ()):
            more = {"annotator": label.owner, "at": label.created, "ranks": _from_one(label.ranks)}
            yield line | {"status": "skipped" if label.skipped else "ranked"} | more | {"comment": label.comment}
        if item.id not in given:
            yield line | {"status": "waiting"}


def take(store: Labels, path: Path) -> None:
    """Keep the ranks of a file, and ask for the queries that are not asked for yet. Raises `InputError` "file:line:
    ..." at the first line that is none, and then keeps nothing of the file."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"label.files: {path}: {error}") from None
    items: dict[str, Item] = {}
    labels: list[Label] = []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        where = f"{path}:{number}"
        try:
            line = json.loads(text)
        except ValueError as error:
            raise InputError(f"{where}: no JSON ({error})") from None
        if not isinstance(line, dict):
            raise InputError(f"{where}: no JSON object")
        item = _item(line, where)
        items.setdefault(item.id, item)
        if (label := _label(line, item, path.stem, where)) is not None:
            labels.append(label)
    there = {item.id for item in store.items()}
    if new := [item for name, item in items.items() if name not in there]:
        store.ask(path.name, new)
    store.give(*labels)


def _item(line: Mapping[str, Any], where: str) -> Item:
    messages = line.get("messages") or [{"role": "user", "content": line.get("query")}]
    try:
        check(messages)
    except InputError as error:
        raise InputError(f"{where}: messages, or query: {error}") from None
    answers = line.get("answers")
    texts: list[Any] = [each.get("text") if isinstance(each, dict) else each for each in answers or ()]
    if len(texts) < 2 or not all(isinstance(text, str) for text in texts) or len(set(texts)) < len(texts):
        raise InputError(f"{where}: answers must be two or more different texts")
    principles = line.get("principles") or sorted(line.get("ranks") or ())
    if not isinstance(principles, list) or not all(isinstance(name, str) for name in principles) or not principles:
        raise InputError(f"{where}: principles must be a list of names; it is what the answers are ranked under")
    return Item(messages, tuple(texts), tuple(principles))


def _label(line: Mapping[str, Any], item: Item, annotator: str, where: str) -> Label | None:
    """What the line says of its item; None if nothing."""
    ranks, skipped = line.get("ranks") or {}, line.get("status") == "skipped"
    if not ranks and not skipped:
        return None
    if not isinstance(ranks, dict) or (ranks and skipped):
        raise InputError(f"{where}: ranks must be places by principle, of a query that is not skipped")
    for name, given in ranks.items():
        if not isinstance(given, list) or [type(place) for place in given] != [int] * len(item.texts):
            raise InputError(f"{where}: ranks.{name} must be {len(item.texts)} whole numbers, one for each answer")
        if name not in item.principles:
            raise InputError(f"{where}: ranks.{name} is none of its principles {', '.join(item.principles)}")
    when = {"created": float(line["at"])} if isinstance(line.get("at"), int | float) else {}
    return Label(
        str(line.get("annotator") or annotator),
        item.id,
        {name: places(given) for name, given in ranks.items()},
        skipped,
        str(line.get("comment") or ""),
        **when,
    )


def _from_one(ranks: Mapping[str, Any]) -> dict[str, list[int]]:
    return {name: [place + 1 for place in given] for name, given in ranks.items()}


if __name__ == "__main__":
    main()

"""From working shards to the corpus: which split every document is in, the Parquet files of the splits, and the ledger
with what became of every record."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.storage import fsync
from conf.errors import InputError
from conf.knobs.text import Corpus
from trainers.clean import score, shards
from trainers.clean.copies import Shards, Spread
from trainers.files.documents import SPLITS

ROWS_PER_FILE = 50_000
GROUP_BYTES = 8 * 2**20  # of text that a writer holds
SHARDS_PER_TASK = 16
LEDGER = "ledger"
DOCUMENTS = pa.schema({"id": pa.int64(), "text": pa.string(), "record": pa.string()})
# One row for each record: its place, what decided, and the row that holds it. `start` of a document that went.
LIFE = pa.schema(
    {
        "id": pa.int64(),
        "file": pa.string(),
        "line": pa.int64(),
        "offset": pa.int64(),
        "step": pa.string(),  # read, empty, a step's name, exact or near; "" for a document that stays
        "rule": pa.string(),
        "value": pa.float64(),
        "limit": pa.float64(),
        "note": pa.string(),
        "twin": pa.int64(),  # the id of the document that it copies
        "changes": pa.string(),
        "language": pa.string(),
        "score": pa.float64(),  # bits per byte where a model said them, else what the steps said
        "bucket": pa.string(),  # head, middle or tail of its language's scores
        "characters": pa.int64(),
        "split": pa.string(),
        "row": pa.int64(),  # of the split, the first is 0
        "start": pa.string(),
    }
)
Counts = dict[str, dict[str, int]]  # {split: {documents, characters, repaired}}


def gather(there: Shards, cfg: Corpus, target: Path, spread: Spread) -> Counter[str]:
    """Write the splits and the ledger of what the `Shards` hold into `target`; the counts that the stage tells of.

    There is a `gone.npy` beside the shards. Raises `InputError` for a split that would be empty.
    """
    fractions = {"val": cfg.val_fraction, "test": cfg.test_fraction}
    sources = score.sources(cfg) if "source" in cfg.buckets or cfg.weights else {}
    common = there.common(**fractions, moved={}, bounds={}, weights=cfg.weights, sources=sources, by=cfg.buckets)
    groups = [
        {"from": start, "to": min(len(there.names), start + SHARDS_PER_TASK)}
        for start in range(0, len(there.names), SHARDS_PER_TASK)
    ]
    if cfg.score:
        common["bounds"] = score.bounds(spread(scored, common, groups), cfg.tail)
    told = list(spread(count, common, groups))
    totals = _totals(told)
    if empty := _empty(totals, fractions):
        given = (one for item in spread(shares, common, groups) for one in item)
        common["moved"] = _moved(list(given), empty)
        told = list(spread(count, common, groups))
        totals = _totals(told)
    _check(totals, cfg)
    common |= {"target": str(target), "before": list(_before(told))}
    files = [
        {"split": split, "number": number}
        for split in SPLITS
        for number in range(-(-totals[f"{split}_documents"] // ROWS_PER_FILE))
    ]
    ledgers = [{**group, "ledger": number} for number, group in enumerate(groups)]
    for _ in spread(write, common, [*files, *ledgers]):
        pass
    return totals


def scored(folder: Path, item: Mapping[str, Any]) -> list[dict[str, dict[str, int]]]:
    """How many documents of each language have which score, for each shard of an item."""
    found = []
    for at in range(item["from"], item["to"]):
        judged = _Judged(folder, item, at)
        assert judged.bits is not None
        found.append(score.counted(judged.groups[judged.stays].tolist(), judged.bits[judged.stays]))
    return found


def count(folder: Path, item: Mapping[str, Any]) -> list[dict[str, int]]:
    """The counts of each shard of an item."""
    return [dict(_counts(_Judged(folder, item, at))) for at in range(item["from"], item["to"])]


class _Judged:
    """A working shard with what the whole corpus decides of its rows."""

    def __init__(self, folder: Path, item: Mapping[str, Any], at: int, columns: Sequence[str] = ()) -> None:
        self.first = item["firsts"][at]
        needed = ["characters", "reason", "step", "share", "repaired", "whole_file", "language", *columns]
        needed += ["file"] * bool(item["sources"] and "file" not in columns)
        self.table = shards.read(folder, item["names"][at], needed)
        self.ids = self.first + np.arange(len(self.table))
        self.counts = self.ids < item["end"]
        gone = np.load(folder / "gone.npy", mmap_mode="r", allow_pickle=False)
        low, high = np.searchsorted(gone["id"], [self.first, self.first + len(self.table)])
        self.copies = np.array(gone[low:high])
        self.passed = shards.passing(self.table) & self.counts
        self.stays = self.passed.copy()
        self.stays[self.copies["id"] - self.first] = False
        self.bits = shards.bits(folder, item["names"][at])
        self.bucket = np.full(len(self.table), "", object)
        self.beyond = np.full(len(self.table), np.nan)  # the bound of the tail that a document lies behind
        sources = [item["sources"].get(file, "") for file in self.table["file"].to_pylist()] if item["sources"] else []
        self.groups = score.groups(self.table["language"].to_pylist(), sources, item["by"])
        if self.bits is not None and item["bounds"]:
            score.sort(self.bits, self.groups, item["bounds"], self.stays, self.bucket, self.beyond)
        share = self.table["share"].to_numpy()
        test, val = item["test"], item["val"]
        self.split = np.where(share < test, "test", np.where(share < test + val, "val", "train"))
        for document, split in item["moved"].items():
            if 0 <= (row := int(document) - self.first) < len(self.table):
                self.split[row] = split
        # how often each document is in its split; what is measured on is neither thinned out nor repeated
        self.times = np.ones(len(self.table), np.int64)
        self.weight = np.ones(len(self.table))
        if item["weights"]:
            names = zip(self.table["language"].to_pylist(), sources, self.bucket, strict=True)
            self.weight = score.weights(names, item["weights"])
            self.weight[self.split != "train"] = 1.0
            self.times = score.times(self.weight, self.ids)
        self.thinned = self.stays & (self.times == 0)
        self.stays &= self.times > 0
        self.split[~self.stays] = ""


def _counts(judged: _Judged) -> Counter[str]:
    found: Counter[str] = Counter()
    table, counts = judged.table, judged.counts
    reasons = np.array([bool(reason) for reason in table["reason"].to_pylist()], bool)
    steps = np.array([bool(step) for step in table["step"].to_pylist()], bool)
    characters = table["characters"].to_numpy()
    found["read"] = int(counts.sum())
    found["rejected"] = int((reasons & counts).sum())
    found["removed"] = int((steps & counts).sum() + (~np.isnan(judged.beyond)).sum() + judged.thinned.sum())
    found["empty"] = int((counts & ~reasons & ~steps & (characters == 0)).sum())
    found["duplicates"] = int((~judged.copies["near"]).sum())
    found["near_duplicates"] = int(judged.copies["near"].sum())
    found["kept"] = int(judged.stays.sum())
    found["repaired"] = int((judged.stays & table["repaired"].to_numpy(zero_copy_only=False)).sum())
    for split in SPLITS:
        mine = judged.split == split
        found[f"{split}_documents"] = int(judged.times[mine].sum())
        found[f"{split}_characters"] = int((characters * judged.times)[mine].sum())
    return found


def _totals(told: Sequence[Sequence[Mapping[str, int]]]) -> Counter[str]:
    totals: Counter[str] = Counter()
    for shard in (one for item in told for one in item):
        totals.update(shard)
    return totals


def _before(told: Sequence[Sequence[Mapping[str, int]]]) -> Iterator[dict[str, int]]:
    """How many documents each split has before each shard."""
    before = dict.fromkeys(SPLITS, 0)
    for shard in (one for item in told for one in item):
        yield dict(before)
        for split in SPLITS:
            before[split] += shard[f"{split}_documents"]


def _empty(totals: Counter[str], fractions: Mapping[str, float]) -> list[str]:
    """The splits that a small corpus leaves empty."""
    sizes = [totals[f"{split}_documents"] for split in SPLITS]
    wanted = {"train": 1.0, **fractions}
    found = [split for split, share in wanted.items() if share and not totals[f"{split}_documents"]]
    return found if max(sizes) < ROWS_PER_FILE and sum(sizes) > 1 else []


def _moved(given: list[list[Any]], empty: Sequence[str]) -> dict[str, str]:
    """{id: split} of the documents, [id, share, split] each, that go to the `empty` splits: each from the largest, the
    one whose hash is the nearest. Train comes before val, and val before test."""
    moved: dict[str, str] = {}
    for split in empty:
        sizes = Counter(one[2] for one in given)
        largest = max(SPLITS, key=lambda name: sizes[name])
        if sizes[largest] < 2:
            break
        pick = max if split == "train" else min  # test has the lowest shares, then val
        document = pick((one for one in given if one[2] == largest), key=lambda one: one[1])
        document[2] = split
        moved[str(document[0])] = split
        print(f"corpus: {len(given)} documents left the {split} split empty; one of the {largest} split is in it")
    return moved


def shares(folder: Path, item: Mapping[str, Any]) -> list[list[Any]]:
    """[id, share, split] of each document of an item that stays."""
    found = []
    for at in range(item["from"], item["to"]):
        judged = _Judged(folder, item, at)
        share = judged.table["share"].to_pylist()
        rows = np.flatnonzero(judged.stays).tolist()
        found += [[judged.first + row, share[row], str(judged.split[row])] for row in rows]
    return found


def _check(totals: Counter[str], cfg: Corpus) -> None:
    read, kept = totals["read"], totals["kept"]
    if not kept:
        raise InputError(f"corpus.files={cfg.files}: none of the {read} records has any text" + _why_none(totals))
    # two documents are one to train on and one to validate; nothing hangs on the test split
    few = kept == 2 and cfg.val_fraction > 0
    for split, share in (("val", cfg.val_fraction), ("test", cfg.test_fraction * (not few)), ("train", 1.0)):
        if share and not totals[f"{split}_documents"]:
            knob = f"corpus.{split}_fraction={share}" if split != "train" else f"corpus.val_fraction={cfg.val_fraction}"
            raise InputError(
                f"{knob} leaves the {split} split of {kept} documents empty; give more text or another share"
            )


def _why_none(totals: Counter[str]) -> str:
    return f" that every step lets through: they removed {totals['removed']}" if totals["removed"] else ""


def write(folder: Path, item: Mapping[str, Any]) -> str:
    """Write one file: of a split, or of the ledger."""
    name = f"{item['split']}-{item['number']:05d}" if "split" in item else f"{LEDGER}-{item['ledger']:05d}"
    path = Path(item["target"]) / f"{name}.parquet"
    if path.exists():
        return name
    aside = path.with_name(f".{path.name}.tmp")
    rows, schema = (_split_rows, DOCUMENTS) if "split" in item else (_lives, LIFE)
    with pq.ParquetWriter(aside, schema, compression="zstd") as file:
        for table in rows(folder, item):
            file.write_table(table)
    fsync(aside)
    aside.replace(path)
    fsync(path.parent)
    return name


def _split_rows(folder: Path, item: Mapping[str, Any]) -> Iterator[pa.Table]:
    """The documents of one file of a split, in tables of about `GROUP_BYTES`: where they are cut hangs on the text."""
    split, low = item["split"], item["number"] * ROWS_PER_FILE
    held: list[pa.Table] = []
    size = 0
    for at, before in enumerate(item["before"]):
        after = item["before"][at + 1][split] if at + 1 < len(item["before"]) else None
        if before[split] >= low + ROWS_PER_FILE or (after is not None and after <= low):
            continue
        judged = _Judged(folder, item, at, ["text", "record"])
        mine = np.flatnonzero(judged.split == split)
        rows = np.repeat(mine, judged.times[mine])
        rows = rows[max(0, low - before[split]) : max(0, low + ROWS_PER_FILE - before[split])]
        table = judged.table.take(pa.array(rows)).select(["text", "record"])
        table = table.add_column(0, "id", pa.array(judged.ids[rows], pa.int64())).cast(DOCUMENTS)
        held.append(table)
        size += table.nbytes
        if size >= GROUP_BYTES:
            yield pa.concat_tables(held).combine_chunks()
            held, size = [], 0
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _lives(folder: Path, item: Mapping[str, Any]) -> Iterator[pa.Table]:
    columns = ["file", "line", "offset", "rule", "value", "limit", "note", "changes", "score", "text"]
    for at in range(item["from"], item["to"]):
        judged = _Judged(folder, item, at, columns)
        counts = pa.array(judged.counts)
        table = judged.table
        twins = np.full(len(table), -1, np.int64)
        likeness = np.full(len(table), np.nan)
        places = judged.copies["id"] - judged.first
        twins[places], likeness[places] = judged.copies["twin"], judged.copies["likeness"]
        steps = _steps(judged)
        gone = ~np.isnan(judged.beyond)
        values = np.where(np.isnan(likeness), _numbers(table["value"]), likeness)
        values[judged.thinned] = judged.weight[judged.thinned]
        if judged.bits is not None:
            values = np.where(gone, judged.bits, values)
        made = {
            "id": pa.array(judged.ids),
            "step": pa.array(steps, pa.string()),
            "rule": pa.array(_rules(table, steps), pa.string()),
            "value": pa.array(values, from_pandas=True),
            "limit": pa.array(np.where(gone, judged.beyond, _numbers(table["limit"])), from_pandas=True),
            "score": table["score"] if judged.bits is None else pa.array(judged.bits, pa.float64(), from_pandas=True),
            "bucket": pa.array(judged.bucket, pa.string()),
            "twin": pa.array(twins, mask=twins < 0),
            "split": pa.array(judged.split.astype(object), pa.string()),
            "row": pa.array(_rows(judged, item["before"][at]), mask=~judged.stays),
            "start": pa.array(_starts(table, judged.stays), pa.string()),
        }
        whole = {name: made.get(name, table[name] if name in table.column_names else None) for name in LIFE.names}
        yield pa.table(whole).cast(LIFE).filter(counts)


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return np.asarray(column.to_numpy(), np.float64)


def _steps(judged: _Judged) -> list[str]:
    """What each row ended at: read, empty, a step, exact, near or, where it stays, nothing."""
    found = []
    near = dict(zip(judged.copies["id"].tolist(), judged.copies["near"].tolist(), strict=True))
    table = judged.table
    columns = (table[name].to_pylist() for name in ("reason", "step", "characters"))
    for number, (reason, step, characters) in zip(judged.ids.tolist(), zip(*columns, strict=True), strict=True):
        if reason or step:
            found.append("read" if reason else step)
        elif not characters:
            found.append("empty")
        else:
            found.append({True: "near", False: "exact"}[near[number]] if number in near else "")
    for step, gone in (("score", ~np.isnan(judged.beyond)), ("weights", judged.thinned)):
        for row in np.flatnonzero(gone):
            found[row] = step
    return found


def _rules(table: pa.Table, steps: Sequence[str]) -> list[str]:
    """The rule of a step; of a record that could not be read why."""
    both = zip(table["reason"].to_pylist(), table["rule"].to_pylist(), steps, strict=True)
    named = {"empty": "nothing to see", "exact": "copy", "near": "near copy", "score": "tail", "weights": "thinned out"}
    return [reason or rule or named.get(step, "") for reason, rule, step in both]


def _rows(judged: _Judged, before: Mapping[str, int]) -> NDArray[np.int64]:
    """[rows] the row of its split that each document is, the first of several."""
    found = np.zeros(len(judged.ids), np.int64)
    for split in SPLITS:
        mine = judged.split == split
        times = judged.times[mine]
        found[mine] = before[split] + np.cumsum(times) - times
    return found


def _starts(table: pa.Table, stays: NDArray[np.bool_]) -> list[str]:
    return ["" if kept else text[: shards.START] for text, kept in zip(table["text"].to_pylist(), stays, strict=True)]

"""What the corpus stage did, as report.json and report.html: each step's documents, what went and why, which copies."""

import heapq
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.storage import write_file, write_json
from trainers.clean import flow, shards
from trainers.clean.copies import Shards, Spread
from trainers.clean.gather import LEDGER
from trainers.clean.page import page
from trainers.clean.steps import Tally

SAMPLES = 6  # documents that are shown of a rule
PAIRS = 24  # near copies that are shown
REPORT = "report"


def write(
    there: Shards,
    target: Path,
    totals: Mapping[str, int],
    tallies: Mapping[str, Tally],
    spread: Spread,
    sources: Mapping[str, str],
) -> dict[str, Any]:
    """Write the report of the corpus in `target` beside it; what report.json holds. `sources`: {file: its source}."""
    ledgers = [{"ledger": path.name} for path in sorted(target.glob(f"{LEDGER}-*.parquet"))]
    whole: dict[str, Any] = {
        "files": {},
        "languages": {},
        "sources": {},
        "ends": {"source": {}, "language": {}},
        "buckets": {},
        "steps": {},
        "lengths": {},
        "samples": {},
        "pairs": [],
    }
    for part in spread(summary, {"target": str(target), "sources": dict(sources)}, ledgers):
        _add(whole, part)
    pairs = [_pair(there, pair) for pair in whole["pairs"]]
    told = {
        "totals": dict(totals),
        "steps": _steps(totals, tallies),
        "rejected": {step: dict(sorted(rules.items())) for step, rules in sorted(whole["steps"].items())},
        "languages": dict(sorted(whole["languages"].items())),
        "sources": dict(sorted(whole["sources"].items())),
        "flows": {
            what: {name: flow.flow(there_of, tallies) for name, there_of in sorted(ends.items())}
            for what, ends in whole["ends"].items()
        },
        "source_of": {file: sources[file] for file in sorted(sources)},
        "buckets": {name: _mean(counts) for name, counts in sorted(whole["buckets"].items())},
        "lengths": dict(sorted(whole["lengths"].items(), key=lambda item: int(item[0]))),
        "files": dict(sorted(whole["files"].items())),
        "samples": {
            rule: [{name: value for name, value in one.items() if name != "draw"} for one in found]
            for rule, found in sorted(whole["samples"].items())
        },
        "pairs": pairs,
    }
    write_json(target / f"{REPORT}.json", told)
    write_file(target / f"{REPORT}.html", page(told))
    return told


def summary(folder: Path, item: Mapping[str, Any]) -> dict[str, Any]:
    """What one file of the ledger adds: counts, and of each rule and of the copies a few that a hash draws."""
    table = pq.read_table(Path(item["target"]) / item["ledger"])
    ends = pc.if_else(pc.equal(table["step"], ""), "kept", table["step"])
    languages = pc.if_else(pc.equal(table["language"], ""), "other", table["language"])
    bits = pa.array(np.frexp(table["characters"].to_numpy())[1].astype(str).tolist())  # of the number of characters
    counted = table.append_column("end", ends).append_column("named", languages).append_column("bits", bits)
    counted = counted.append_column("source", flow.sourced(counted, item["sources"]))
    there = counted.filter(pc.invert(pc.is_in(table["step"], pa.array(["read", "empty"]))))
    gone = table.filter(pc.not_equal(table["step"], ""))
    samples: dict[str, list[dict[str, Any]]] = {}
    pairs = []
    for life in gone.to_pylist():
        draw, rule = _draw(life["id"]), _rule(life)
        shown = {name: life[name] for name in ("file", "line", "offset", "rule", "value", "limit", "note", "start")}
        samples.setdefault(f"{life['step']}: {rule}", []).append({"draw": draw, **shown})
        if life["step"] == "near":
            pairs.append({"draw": draw, **{name: life[name] for name in ("id", "twin", "value")}})
    return {
        "files": _by(counted, "file", "records"),
        "languages": _by(there, "named", "documents"),
        "sources": _by(there, "source", "documents"),
        "ends": {"source": flow.ends(there, "source"), "language": flow.ends(there, "named")},
        "lengths": _by(there, "bits", "documents"),
        "buckets": _buckets(there),
        "steps": _rules(gone),
        "samples": {rule: _drawn(found, SAMPLES) for rule, found in samples.items()},
        "pairs": _drawn(pairs, PAIRS),
    }


def _rule(life: Mapping[str, Any]) -> str:
    return "no record" if life["step"] == "read" else str(life["rule"])


def _rules(gone: pa.Table) -> dict[str, dict[str, int]]:
    found: dict[str, Counter[str]] = {}
    for row in gone.group_by(["step", "rule"]).aggregate([("id", "count")]).to_pylist():
        found.setdefault(row["step"], Counter())[_rule(row)] += row["id_count"]
    return {step: dict(rules) for step, rules in found.items()}


def _by(table: pa.Table, column: str, every: str) -> dict[str, dict[str, int]]:
    """{value of a column: {`every`: rows, what became of them: rows, characters_in: of all, characters: of those that
    stay}}."""
    found: dict[str, Counter[str]] = {}
    for row in table.group_by([column, "end"]).aggregate([("id", "count"), ("characters", "sum")]).to_pylist():
        counts = found.setdefault(row[column], Counter())
        counts.update({every: row["id_count"], row["end"]: row["id_count"]})
        counts["characters_in"] += row["characters_sum"] or 0
        if row["end"] == "kept":
            counts["characters"] += row["characters_sum"]
    return {value: dict(counts) for value, counts in found.items()}


def _buckets(table: pa.Table) -> dict[str, dict[str, int]]:
    sorted_ones = table.filter(pc.not_equal(table["bucket"], ""))
    hundredths = pc.round(pc.multiply(sorted_ones["score"], 100)).cast(pa.int64())
    found = sorted_ones.append_column("centibits", hundredths).group_by(["named", "bucket"])
    return {
        f"{row['named']}: {row['bucket']}": {
            "documents": row["id_count"],
            "characters": row["characters_sum"],
            "centibits": row["centibits_sum"],
        }
        for row in found.aggregate([("id", "count"), ("characters", "sum"), ("centibits", "sum")]).to_pylist()
    }


def _mean(counts: Mapping[str, int]) -> dict[str, Any]:
    """A bucket's documents, characters and mean bits per byte."""
    mean = counts.get("centibits", 0) / 100 / counts["documents"]
    return {
        "documents": counts["documents"],
        "characters": counts.get("characters", 0),
        "bits_per_byte": round(mean, 4),
    }


def _draw(number: int) -> str:
    return blake2b(number.to_bytes(8, "little"), digest_size=8).hexdigest()


def _drawn(found: Iterable[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    return heapq.nsmallest(most, found, key=lambda one: one["draw"])


def _add(whole: dict[str, Any], part: Mapping[str, Any]) -> None:
    for what, ends in part["ends"].items():
        flow.added(whole["ends"][what], ends)
    for what in ("files", "languages", "sources", "buckets", "steps", "lengths"):
        for name, counts in part[what].items():
            whole[what][name] = dict(Counter(whole[what].get(name, {})) + Counter(counts))
    for rule, found in part["samples"].items():
        whole["samples"][rule] = _drawn([*whole["samples"].get(rule, []), *found], SAMPLES)
    whole["pairs"] = _drawn([*whole["pairs"], *part["pairs"]], PAIRS)


def _steps(totals: Mapping[str, int], tallies: Mapping[str, Tally]) -> list[dict[str, Any]]:
    """A row for each step, in the order in which they are taken."""
    rows = [{"name": name, **tally.plain()} for name, tally in tallies.items()]
    left = totals["kept"] + totals["near_duplicates"]
    for name, gone, after in (("exact copies", "duplicates", left), ("near copies", "near_duplicates", totals["kept"])):
        rows.append({"name": name, "documents": after + totals[gone], "kept": after})
    return rows


def _pair(there: Shards, pair: Mapping[str, Any]) -> dict[str, Any]:
    """The two texts of a near copy, from the working shards."""
    return {
        "likeness": round(pair["value"], 4),
        "gone": _document(there, pair["id"]),
        "stays": _document(there, pair["twin"]),
    }


def _document(there: Shards, number: int) -> dict[str, Any]:
    at = _home(there.firsts, number)
    row = shards.read(there.folder, there.names[at], ["file", "line", "text"]).slice(number - there.firsts[at], 1)
    (found,) = row.to_pylist()
    return {**found, "text": found["text"][: shards.START]}


def _home(firsts: Sequence[int], number: int) -> int:
    """Which shard has a record."""
    return bisect_right(firsts, number) - 1

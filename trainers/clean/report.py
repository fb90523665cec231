"""What the corpus stage did, as report.json and report.html: each step's documents, what went and why, which copies."""

import heapq
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.storage import write_file, write_json
from trainers.clean import shards
from trainers.clean.copies import Shards, Spread
from trainers.clean.gather import LEDGER
from trainers.clean.page import page
from trainers.clean.steps import Tally

SAMPLES = 6  # documents that are shown of a rule
PAIRS = 24  # near copies that are shown
REPORT = "report"


def write(
    there: Shards, target: Path, totals: Mapping[str, int], tallies: Mapping[str, Tally], spread: Spread
) -> dict[str, Any]:
    """Write the report of the corpus in `target` beside it; what report.json holds."""
    ledgers = [{"ledger": path.name} for path in sorted(target.glob(f"{LEDGER}-*.parquet"))]
    whole: dict[str, Any] = {
        "files": {},
        "languages": {},
        "buckets": {},
        "steps": {},
        "lengths": {},
        "samples": {},
        "pairs": [],
    }
    for part in spread(summary, {"target": str(target)}, ledgers):
        _add(whole, part)
    pairs = [_pair(there, pair) for pair in whole["pairs"]]
    told = {
        "totals": dict(totals),
        "steps": _steps(totals, tallies),
        "rejected": {step: dict(sorted(rules.items())) for step, rules in sorted(whole["steps"].items())},
        "languages": dict(sorted(whole["languages"].items())),
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
    files: dict[str, Counter[str]] = {}
    languages: dict[str, Counter[str]] = {}
    steps: dict[str, Counter[str]] = {}
    lengths: dict[str, Counter[str]] = {}
    samples: dict[str, list[dict[str, Any]]] = {}
    buckets: dict[str, Counter[str]] = {}
    pairs = []
    for life in pq.read_table(Path(item["target"]) / item["ledger"]).to_pylist():
        step = life["step"]
        end = step or "kept"
        files.setdefault(life["file"], Counter()).update({"records": 1, end: 1})
        if not step:
            files[life["file"]]["characters"] += life["characters"]
        if step not in ("read", "empty"):
            language = life["language"] or "other"
            languages.setdefault(language, Counter()).update({"documents": 1, end: 1})
            if life["bucket"]:
                told = {"documents": 1, "characters": life["characters"], "centibits": round(100 * life["score"])}
                buckets.setdefault(f"{language}: {life['bucket']}", Counter()).update(told)
            lengths.setdefault(str(life["characters"].bit_length()), Counter()).update({"documents": 1, end: 1})
        if step:
            rule = "no record" if step == "read" else life["rule"]
            steps.setdefault(step, Counter())[rule] += 1
            shown = {name: life[name] for name in ("file", "line", "offset", "rule", "value", "limit", "note", "start")}
            samples.setdefault(f"{step}: {rule}", []).append({"draw": _draw(life["id"]), **shown})
        if step == "near":
            pairs.append({"draw": _draw(life["id"]), **{name: life[name] for name in ("id", "twin", "value")}})
    return {
        **{"files": files, "languages": languages, "buckets": buckets, "steps": steps, "lengths": lengths},
        "samples": {rule: _drawn(found, SAMPLES) for rule, found in samples.items()},
        "pairs": _drawn(pairs, PAIRS),
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
    for what in ("files", "languages", "buckets", "steps", "lengths"):
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

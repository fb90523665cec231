"""The corpus stage without Ray: every task done here, in turn."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from conf.knobs.text import Corpus
from trainers.clean import blocks, shards
from trainers.clean.copies import Spread, Work
from trainers.corpus import collect


def here(folder: Path) -> Spread:
    def spread(work: Work, common: Mapping[str, Any], items: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
        return (work(folder, {**common, **item}) for item in items)

    return spread


def made(folder: Path, cfg: Corpus, seed: int = 0, forgotten: str = "") -> Iterator[dict[str, Any]]:
    """The counts of each working shard."""
    for part in shards.parts(cfg.files, cfg.files):
        for row in blocks.load({"part": [json.dumps(asdict(part))]}, cfg, str(folder)):
            for told in blocks.make(row, cfg, str(folder), seed, forgotten).to_pylist():
                yield json.loads(told["counts"])


def collected(target: Path, cfg: Corpus, seed: int = 0, forgotten: str = "") -> dict[str, Any]:
    """Make the corpus of `cfg` in a folder that may have another; its metrics."""
    for old in target.glob("*.parquet"):
        old.unlink()
    folder = target / "shards"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return collect(made(folder, cfg, seed, forgotten), folder, target, cfg, here(folder))

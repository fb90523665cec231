"""The corpus stage without Ray: every task done here, in turn."""

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from conf.knobs.text import Corpus
from trainers.clean import shards
from trainers.clean.copies import Spread, Work
from trainers.clean.steps import chain
from trainers.corpus import collect


def here(folder: Path) -> Spread:
    def spread(work: Work, common: Mapping[str, Any], items: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
        return (work(folder, {**common, **item}) for item in items)

    return spread


def made(folder: Path, cfg: Corpus, seed: int = 0) -> Iterator[dict[str, Any]]:
    """The counts of each working shard."""
    for part in shards.parts(cfg.files, cfg.files):
        for number, table in enumerate(shards.blocks(part, cfg)):
            yield shards.make(folder, part.shard(number), table, cfg, chain(cfg), seed)


def collected(target: Path, cfg: Corpus, seed: int = 0) -> dict[str, Any]:
    """Make the corpus of `cfg` in a folder that may have another; its metrics."""
    for old in target.glob("*.parquet"):
        old.unlink()
    folder = target / "shards"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return collect(made(folder, cfg, seed), folder, target, cfg, here(folder))

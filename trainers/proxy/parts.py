"""The parts of a corpus that small models are trained on, and the clean text that all are measured on.

Pure but for the files that it reads. Which documents a model gets is drawn by the seed alone, and what is measured on
is in none of the parts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.storage import read_json
from conf.errors import InputError
from conf.knobs.text import By, Corpus, Proxy
from trainers.clean.gather import LEDGER
from trainers.clean.report import REPORT
from trainers.files.documents import clean, identity, renderer
from trainers.files.readers import expand, read_records
from trainers.files.store import shards, texts

CHARACTERS = 4  # of a token, about, at most: so many more characters are read than tokens are asked for
_COLUMNS = ["id", "file", "language", "bucket", "split", "step", "characters"]


@dataclass(frozen=True)
class Part:
    """Documents of a corpus's train split, in the order in which they are trained on."""

    name: str
    corpus: Path
    ids: np.ndarray  # [documents], as many as give the budget
    documents: int  # that the part has in all
    characters: int


def parts_of(corpus: Path, cfg: Proxy, seed: int) -> list[Part]:
    """The parts of a corpus by what `cfg.by` names, by their names. Raises `InputError` for a corpus without it."""
    table = kept(corpus)
    if cfg.by is By.bucket and not any(bucket for bucket in pc.unique(table["bucket"]).to_pylist()):
        raise InputError(
            f"proxy.by=bucket: {corpus} has none; make it with corpus.score=<folder>, or try proxy.by=source"
        )
    if cfg.by is By.source:
        told = read_json(corpus / f"{REPORT}.json").get("source_of", {})
        values = [told.get(file, file) for file in table["file"].to_pylist()]
    else:
        values = [value or "other" for value in table[cfg.by.value].to_pylist()]
    return [part(corpus, name, table, np.array(values, object) == name, cfg, seed) for name in sorted(set(values))]


def whole(name: str, corpus: Path, cfg: Proxy, seed: int) -> Part:
    """A corpus as one part: with a filter, or without it."""
    table = kept(corpus)
    return part(corpus, name, table, np.ones(len(table), bool), cfg, seed)


def kept(corpus: Path) -> pa.Table:
    """The rows of the ledger of what the train split holds. Raises `InputError` where there is no ledger."""
    paths = sorted(corpus.glob(f"{LEDGER}-*.parquet"))
    if not paths:
        raise InputError(f"{corpus}: no corpus with a ledger here; make it with trainers.corpus")
    table = pa.concat_tables([pq.read_table(path, columns=_COLUMNS, partitioning=None) for path in paths])
    return table.filter(pc.and_(pc.equal(table["step"], ""), pc.equal(table["split"], "train")))


def part(corpus: Path, name: str, table: pa.Table, mine: np.ndarray, cfg: Proxy, seed: int) -> Part:
    """The documents where `mine` is true, drawn by the seed until they give the budget."""
    rows = np.flatnonzero(mine)
    ids, sizes = table["id"].to_numpy()[rows], table["characters"].to_numpy()[rows]
    keys = np.random.Philox(key=np.array([seed, 0], np.uint64)).random_raw(int(ids.max()) + 1 if len(ids) else 0)
    order = np.argsort(keys[ids], kind="stable")
    enough = int(np.searchsorted(np.cumsum(sizes[order]), CHARACTERS * cfg.tokens)) + 1
    return Part(name, corpus, ids[order][:enough], len(ids), int(sizes.sum()))


def texts_of(part: Part) -> list[str]:
    """The texts of a part, in its order."""
    place = {number: at for at, number in enumerate(part.ids.tolist())}
    found: list[str | None] = [None] * len(place)
    wanted = pa.array(part.ids, pa.int64())
    for path in shards(part.corpus, "train"):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["id", "text"]):
                hit = batch.filter(pc.is_in(batch["id"], wanted))
                for number, text in zip(hit["id"].to_pylist(), hit["text"].to_pylist(), strict=True):
                    found[place[number]] = text
    return [text for text in found if text is not None]


def held_out(corpus: Path, cfg: Proxy, like: Corpus) -> list[str]:
    """The clean documents that all are measured on: of `cfg.held_out`, rendered as the corpus's are, else of the
    corpus's validation split. Raises `InputError` where there are none."""
    found: dict[str, Any] = {}
    for text in _given(cfg.held_out, like) if cfg.held_out else texts(corpus, "val"):
        if text:
            found[text] = None
        if len(found) == cfg.documents:
            break
    if not found:
        raise InputError(f"proxy.held_out={cfg.held_out}: no text to measure on, nor has {corpus} any held out")
    return list(found)


def _given(files: Sequence[str], like: Corpus) -> Iterator[str]:
    render = renderer(like.template)
    for path in expand(files, "proxy.held_out"):
        for _, record in read_records(path):
            yield clean(render(record))


def without(texts: Sequence[str], measured: Sequence[str]) -> list[str]:
    """Those that are not measured on, too."""
    known = {identity(text) for text in measured}
    return [text for text in texts if identity(text) not in known]


def ranked(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each part, the best first: mean bits per byte over its models, and how far they lie apart."""
    rows = []
    for name, models in found.items():
        bits = [one["bits_per_byte"] for one in models]
        about = {key: models[0][key] for key in ("documents", "characters", "epochs")}
        rows.append({"part": name, "bits_per_byte": sum(bits) / len(bits), "spread": max(bits) - min(bits), **about})
    return sorted(rows, key=lambda row: (row["bits_per_byte"], row["part"]))

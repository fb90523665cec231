"""The steps of `corpus.steps` by name, a user's own among them, and what a block is when all have been taken."""

import hashlib
import importlib
import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from conf.errors import InputError
from conf.knobs.text import Corpus
from trainers.clean import pii, text
from trainers.clean.against import against
from trainers.clean.document import Block, Document, Step, language_of
from trainers.clean.language import language, simplified, version_of_simplified
from trainers.clean.rules import rules
from trainers.clean.sensitive import sensitive, words
from trainers.files.documents import fields, normalise

Edit = Callable[[str], str]


@dataclass(frozen=True)
class Named:
    """A step with what the manifest says of it."""

    name: str
    version: str  # another one makes another corpus
    take: Step
    edit: Edit | None = None  # what it does to a text alone, which the record's own texts go through too


@dataclass
class Tally:
    """What one step was given and what it let through."""

    documents: int = 0
    characters: int = 0
    kept: int = 0
    kept_characters: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # rule: documents
    changed: Counter[str] = field(default_factory=Counter)  # rule: times

    def plain(self) -> dict[str, Any]:
        """For JSON; `Tally.of` reads it."""
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in vars(self).items()}

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Tally":
        counts: dict[str, Any] = {**told, "rejected": Counter(told["rejected"]), "changed": Counter(told["changed"])}
        return cls(**counts)

    def add(self, other: "Tally") -> None:
        self.documents += other.documents
        self.characters += other.characters
        self.kept += other.kept
        self.kept_characters += other.kept_characters
        self.rejected += other.rejected
        self.changed += other.changed


def _mending(name: str, version: str, mend: Edit) -> Callable[[Corpus], Named]:
    return lambda cfg: Named(name, version, text.mending(name, mend), mend)


def _pii(cfg: Corpus) -> Named:
    ways = {kind: "redact" if way == "drop" else way for kind, way in pii.ways_of(cfg.pii).items()}
    return Named("pii", "1", pii.pii(cfg.pii), lambda text: pii.edited(text, ways)[0])


def _sensitive(cfg: Corpus) -> Named:
    return Named("sensitive", words(cfg.lexicon).version, sensitive(cfg.sensitive, cfg.lexicon))


STEPS: dict[str, Callable[[Corpus], Named]] = {
    "unicode": _mending("unicode", "1", text.unicode),
    "html": _mending("html", "1", text.html_remnants),
    "lines": _mending("lines", "1", text.without_boilerplate),
    "simplified": lambda cfg: _mending("simplified", version_of_simplified(), simplified)(cfg),
    "language": lambda cfg: Named("language", "1", language(cfg.languages)),
    "rules": lambda cfg: Named("rules", "1", rules(cfg.limits)),
    "sensitive": _sensitive,
    "pii": _pii,
}


def chain(cfg: Corpus) -> list[Named]:
    """The steps of `corpus.steps` in order, and the look for evaluation samples. Raises `InputError` for one that is
    not there, or a bound or a kind that none of them has."""
    rules(cfg.limits)
    pii.ways_of(cfg.pii)
    last = [Named("against", "1", against(cfg.against))] if cfg.against else []
    return [*(STEPS[name](cfg) if name in STEPS else _own(name) for name in cfg.steps), *last]


def versions(cfg: Corpus) -> dict[str, str]:
    """{step: version}: part of what decides the corpus."""
    return {step.name: step.version for step in chain(cfg)}


def _own(name: str) -> Named:
    """A function of a block in a module of the user's; its version is the text of the module."""
    module, _, function = name.rpartition(".")
    if not module:
        raise InputError(f"corpus.steps: no step {name!r}; there are {', '.join(STEPS)}, or your.module.function")
    try:
        found: Any = importlib.import_module(module)
        source = inspect.getsource(found)
    except (ImportError, OSError, TypeError) as error:
        raise InputError(f"corpus.steps: {name}: {module} cannot be imported ({error})") from None
    take = getattr(found, function, None)
    if not callable(take):
        raise InputError(f"corpus.steps: {name}: {module} has no function {function}")
    return Named(name, hashlib.sha256(source.encode()).hexdigest()[:16], take)


def taken(steps: Sequence[Named], block: Block, template: str) -> dict[str, Tally]:
    """Let a block go through the steps: each document has its verdict, its text and its record's afterwards.

    Raises `InputError` for a step of a user's that raises, or that gives back what it was not given.
    """
    tallies: dict[str, Tally] = {}
    for document in block:
        document.language = document.language or language_of(document.text)
    for step in steps:
        there = [document for document in block if document.verdict is None]
        before = [(document.text, Counter(document.changes)) for document in there]
        _take(step, there)
        tally = tallies.setdefault(step.name, Tally())
        for document, (was, changes) in zip(there, before, strict=True):
            if document.text != was:
                _settle(document, step, template)
            tally.documents += 1
            tally.characters += len(was)
            tally.changed += document.changes - changes
            if document.verdict is None:
                tally.kept += 1
                tally.kept_characters += len(document.text)
                if step.edit:
                    document.record = _through(document.record, step.edit)
            else:
                document.verdict = replace(document.verdict, step=step.name)
                tally.rejected[document.verdict.rule] += 1
    return tallies


def _take(step: Named, there: Block) -> None:
    try:
        left = {id(document) for document in step.take(list(there))}
    except InputError:
        raise
    except Exception as error:  # theirs: which step, what it said
        raise InputError(f"corpus.steps: {step.name}: {type(error).__name__}: {error}") from error
    if strangers := left - {id(document) for document in there}:
        raise InputError(f"corpus.steps: {step.name} gave back {len(strangers)} documents that it was not given")
    for document in there:
        if id(document) not in left:
            document.reject("left out")


def _settle(document: Document, step: Named, template: str) -> None:
    """The new text in normal form; where the document is one field of its record, that field has it too."""
    document.text = normalise(document.text)
    named = fields(template)
    if step.edit is None and len(named) == 1 and template == f"{{{named[0]}}}":
        document.record = {**document.record, named[0]: document.text}
    if not document.text:
        document.reject("nothing is left")


def _through(value: Any, edit: Edit) -> Any:
    """A value of a record with each of its texts edited."""
    if isinstance(value, str):
        return edit(value)
    if isinstance(value, Mapping):
        return {name: _through(inner, edit) for name, inner in value.items()}
    return [_through(inner, edit) for inner in value] if isinstance(value, list) else value

"""A record to a clean document: template, normal form, identity, split. Pure functions, fit for any worker."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from hashlib import blake2b
from string import Formatter
from typing import Any

from conf.errors import InputError
from conf.knobs.text import Corpus
from trainers.files import damage
from trainers.files.streams import BadRecord

SPLITS = ("train", "val", "test")
SHOWN = 20  # names of fields in a message; a record may have a hundred thousand
# What a terminal is told: titles, colours and places of the cursor, character sets. Whole, or their letters stay.
_ESCAPES = re.compile(r"\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[()*+][0-9AB]|\x1b[=>78]")
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85]")  # vertical tab, form feed and next line end one too
# Control characters but tab and newline, and the byte order mark: they carry no text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_BLANKS = re.compile(r"\n{3,}")
# A line break as single quotes leave it, in two characters; with one more backslash it stays as it is written.
_WRITTEN = re.compile(r"(\\)?\\([nt])")
_MEANT = {"n": "\n", "t": "\t"}


def fields(template: str) -> list[str]:
    """The fields that a template names.

    Only names of fields count: no attributes, indices or formats. A template that has others raises `InputError`.
    """
    return [name for _, name in _parts(template) if name]


def _parts(template: str) -> list[tuple[str, str | None]]:
    """(literal, name of the field after it or None) in order."""
    meant = _WRITTEN.sub(lambda found: f"\\{found[2]}" if found[1] else _MEANT[found[2]], template)
    try:
        parts = list(Formatter().parse(meant))
    except ValueError as error:
        raise InputError(f"corpus.template={template!r}: {error}; write {{{{ and }}}} for braces") from None
    for _, name, form, conversion in parts:
        if name is not None and (form or conversion or not re.fullmatch(r"[^\W\d][\w-]*", name)):
            raise InputError(
                f"corpus.template={template!r}: {{{name}}} must be the plain name of a field, like {{text}}"
            )
    if not any(name for _, name, _, _ in parts):
        raise InputError(f"corpus.template={template!r} names no field of a record; try corpus.template='{{text}}'")
    return [(literal, name) for literal, name, _, _ in parts]


def renderer(template: str) -> Callable[[Mapping[str, Any]], str]:
    """A function from a record to `template` with its {field}s filled in; it raises `BadRecord` on a field it lacks.
    A template that cannot work raises `InputError`."""
    parts = _parts(template)
    names = [name for _, name in parts if name]

    def render(record: Mapping[str, Any]) -> str:
        for name in names:
            if name not in record:
                there = ", ".join(list(record)[:SHOWN]) or "none"
                more = f" and {len(record) - SHOWN} more" if len(record) > SHOWN else ""
                raise BadRecord(f"no field {name!r}, which corpus.template names; there are {there}{more}")
            if not isinstance(record[name], str):
                raise BadRecord(f"field {name!r} must be a string, not {type(record[name]).__name__}")
        return "".join(literal + (record[name] if name else "") for literal, name in parts)

    return render


def clean(text: str) -> str:
    """The normal form of a text, "" if there is nothing to see in it. Raises `BadRecord` for one that is damaged."""
    damage.check(text)
    text = normalise(text)
    return text if damage.visible(text) else ""


def normalise(text: str) -> str:
    """NFC; one kind of newline; no control characters or what a terminal is told, no blanks at line ends, no
    more than one empty line in a row."""
    text = unicodedata.normalize("NFC", _LINE_ENDS.sub("\n", _ESCAPES.sub("", text)))
    # rstrip, not an expression for blanks at an end: that one tries each run of blanks from each of its characters
    text = "\n".join(line.rstrip() for line in _CONTROL.sub("", text).split("\n"))
    return _BLANKS.sub("\n\n", text).strip()


def identity(text: str) -> bytes:
    """128 bits: two documents with the same are the same document."""
    return blake2b(text.encode(), digest_size=16).digest()


def split_of(text: str, cfg: Corpus, seed: int) -> str:
    """train, val or test: a function of text and seed alone, so other documents never move this one."""
    share = share_of(text, seed)
    if share < cfg.test_fraction:
        return "test"
    return "val" if share < cfg.test_fraction + cfg.val_fraction else "train"


def share_of(text: str, seed: int) -> float:
    """A number in [0, 1) that a text has by itself."""
    digest = blake2b(text.encode(), digest_size=8, key=b"split", salt=(seed % 2**64).to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little") / 2**64

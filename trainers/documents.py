"""A record to a clean document: template, normal form, identity, split. Pure functions, fit for any worker."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from hashlib import blake2b
from string import Formatter
from typing import Any

from conf.schema import Corpus, InputError
from trainers.readers import BadRecord

SPLITS = ("train", "val", "test")
# Control characters but tab and newline, and the byte order mark: they carry no text.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
_TRAILING = re.compile(r"[^\S\n]+(?=\n|$)")
_BLANKS = re.compile(r"\n{3,}")


def renderer(template: str) -> Callable[[Mapping[str, Any]], str]:
    """A function from a record to `template` with its {field}s filled in; it raises `BadRecord` on a field it lacks.

    Only names of fields count: no attributes, indices or formats. A template that has others raises `InputError`.
    """
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise InputError(f"corpus.template={template!r}: {error}; write {{{{ and }}}} for braces") from None
    names = [name for _, name, _, _ in parts if name is not None]
    for _, name, form, conversion in parts:
        if name is not None and (form or conversion or not re.fullmatch(r"[^\W\d][\w-]*", name)):
            raise InputError(
                f"corpus.template={template!r}: {{{name}}} must be the plain name of a field, like {{text}}"
            )
    if not names:
        raise InputError(f"corpus.template={template!r} names no field of a record; try corpus.template='{{text}}'")

    def render(record: Mapping[str, Any]) -> str:
        for name in names:
            if name not in record:
                raise BadRecord(
                    f"no field {name!r}, which corpus.template names; there are {', '.join(record) or 'none'}"
                )
            if not isinstance(record[name], str):
                raise BadRecord(f"field {name!r} must be a string, not {type(record[name]).__name__}")
        return "".join(literal + (record[name] if name else "") for literal, name, _, _ in parts)

    return render


def normalise(text: str) -> str:
    """NFC; one kind of newline; no control characters, no blanks at line ends, no more than one empty line in a row."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    text = _TRAILING.sub("", _CONTROL.sub("", text))
    return _BLANKS.sub("\n\n", text).strip()


def identity(text: str) -> bytes:
    """128 bits: two documents with the same are the same document."""
    return blake2b(text.encode(), digest_size=16).digest()


def split_of(text: str, cfg: Corpus, seed: int) -> str:
    """train, val or test: a function of text and seed alone, so other documents never move this one."""
    digest = blake2b(text.encode(), digest_size=8, key=b"split", salt=(seed % 2**64).to_bytes(8, "little")).digest()
    share = int.from_bytes(digest, "little") / 2**64
    if share < cfg.test_fraction:
        return "test"
    return "val" if share < cfg.test_fraction + cfg.val_fraction else "train"

"""A JSON object as strictly as its standard: what two readers would read as two things is refused, and deep nesting."""

import json
import math
import re
from collections import Counter
from typing import Any

from trainers.files.streams import BadRecord

MAX_DEPTH = 64  # arrays and objects within each other
# possessive, and with or without its end: else a string that never ends is looked through from each of its quotes
_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def loaded(content: bytes, text: str, array: str = "", open_brace: str = "") -> dict[str, Any]:
    """The object that a record's bytes and their text hold. Raises `BadRecord`, with `array` after it for a record
    that is an array, and `open_brace` for one that is an opening brace alone."""
    _check_depth(content)
    try:
        record = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except json.JSONDecodeError as error:
        hint = array if content.startswith(b"[") else open_brace if content.strip() == b"{" else ""
        raise BadRecord(f"broken JSON: {error.msg} at character {error.pos + 1} of the record{hint}") from None
    except BadRecord:
        raise
    except ValueError as error:  # a number of too many digits
        raise BadRecord(f"broken JSON: {error}") from None
    if not isinstance(record, dict):
        hint = array if isinstance(record, list) else ""
        raise BadRecord(f"a record must be a JSON object, not {_json_name(record)}{hint}")
    if b"\\u" in content and re.search("[\ud800-\udfff]", json.dumps(record, ensure_ascii=False)):
        raise BadRecord("a string holds half of a surrogate pair (\\ud800 to \\udfff)")
    return record


def _check_depth(content: bytes) -> None:
    if content.count(b"[") + content.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _BRACKET.finditer(content):
        mark = match[0][:1]
        depth += (mark in b"[{") - (mark in b"]}")
        if depth > MAX_DEPTH:
            raise BadRecord(f"nested more than {MAX_DEPTH} deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name in counts if counts[name] > 1)
        raise BadRecord(f"field {twice!r:.200} stands twice in one object")
    return record


def _refuse(word: str) -> None:
    raise BadRecord(f"broken JSON: {word} is no JSON number")


def _finite(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise BadRecord(f"the number {digits:.40} is larger than any that JSON's readers have")
    return number


def _json_name(value: object) -> str:
    names = {
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "null",
    }
    return names[type(value)]

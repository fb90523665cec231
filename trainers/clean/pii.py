"""What tells who someone is, or opens a door: addresses, numbers with their checksums, keys; found and taken out.

A number is taken for what it is only where its checksum, its length and what stands around it agree, so that years,
prices, quantities and versions stay as they are.
"""

import re
from collections.abc import Callable, Mapping
from datetime import date
from hashlib import blake2b
from ipaddress import ip_address
from typing import NamedTuple

from conf.errors import InputError
from trainers.clean.document import Block, Step

WAYS = ("keep", "redact", "replace", "drop")  # leave; a mark instead; one that is nobody's instead; the document goes
# The same length as what they stand for: a place found in the folded text is a place of the text itself.
_FOLDED = str.maketrans("０１２３４５６７８９＠．－Ｘｘ", "0123456789@.-Xx")
_DIGIT = re.compile(
    r"\d{3}|@|:[0-9A-Fa-f]*:|key|KEY|token|secret|eyJ|xox|sk-|gh[pousr]_|AKIA|AIza|\.\d+\.", re.IGNORECASE
)
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECKS = "10X98765432"
_PROVINCES = frozenset(
    "11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65 71 81 82 83".split()
)


class Found(NamedTuple):
    start: int
    end: int
    kind: str


def id_card(digits: str) -> bool:
    """Whether 18 signs are a Chinese citizen's number: province, date of birth, check digit (GB 11643, ISO 7064)."""
    try:
        born = date(int(digits[6:10]), int(digits[10:12]), int(digits[12:14]))
    except ValueError:
        return False
    check = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, digits, strict=False)) % 11
    return digits[:2] in _PROVINCES and 1850 <= born.year <= 2100 and _CHECKS[check] == digits[17].upper()


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812)."""
    total = sum(int(digit) for digit in digits[-1::-2])
    return (total + sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])) % 10 == 0


def _bank_card(found: str) -> bool:
    digits = re.sub(r"[ -]", "", found)
    begins = (
        (digits.startswith("62") and 16 <= len(digits) <= 19)  # UnionPay
        or (digits[0] == "4" and len(digits) in (13, 16, 19))  # Visa
        or (len(digits) == 16 and ("51" <= digits[:2] <= "55" or "2221" <= digits[:4] <= "2720"))  # Mastercard
        or (digits[:2] in ("34", "37") and len(digits) == 15)  # American Express
        or (len(digits) == 16 and (digits.startswith(("6011", "65")) or "3528" <= digits[:4] <= "3589"))
    )
    return begins and len(set(digits)) > 2 and luhn(digits)


def _address(found: str) -> bool:
    """Whether it is an address that one machine in the world has: private, reserved and documentation's are none."""
    try:
        return ip_address(found).is_global
    except ValueError:
        return False


def _random(found: str) -> bool:
    """Whether a word looks thrown: letters and digits mixed, few of them twice."""
    return bool(re.search(r"\d", found) and re.search(r"[A-Za-z]", found)) and len(set(found)) >= 12


_KEYS = (
    r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----[^-]{1,8192}-----END (?:[A-Z]+ )?PRIVATE KEY-----",
    r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![A-Za-z0-9])",
    r"(?<![A-Za-z0-9])gh[pousr]_[A-Za-z0-9]{36,251}",
    r"(?<![A-Za-z0-9])github_pat_[A-Za-z0-9_]{22,255}",
    r"(?<![A-Za-z0-9])sk-(?:[a-z]{2,8}-){0,2}[A-Za-z0-9_-]{20,200}",
    r"(?<![A-Za-z0-9])[sr]k_(?:live|test)_[A-Za-z0-9]{16,128}",
    r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{30,64}",
    r"(?<![A-Za-z0-9])xox[abposr]-[A-Za-z0-9-]{10,250}",
    r"(?<![A-Za-z0-9])AIza[A-Za-z0-9_-]{35}",
    r"(?<![A-Za-z0-9])eyJ[A-Za-z0-9_-]{10,2048}\.eyJ[A-Za-z0-9_-]{10,4096}\.[A-Za-z0-9_-]{10,1024}",
)
_NAMED_KEY = (
    r"(?:api[_ -]?key|access[_ -]?key|secret(?:[_ -]?key)?|auth[_ -]?token|access[_ -]?token|token)"
    r"['\"]?\s{0,3}[:=：]\s{0,3}['\"]?(?P<word>[A-Za-z0-9_\-+/]{20,200})"
)
_MAIL = (
    r"(?<![\w.+%-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}"
    r"[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_ID = r"(?<![0-9A-Za-z])\d{17}[\dXx](?![0-9A-Za-z])"
_CARD = r"(?<![\dA-Za-z.,-])\d(?:[ -]?\d){12,18}(?![\d-]|\.\d)"
_MOBILE = r"(?<![\dA-Za-z.])(?:(?:\+|00)?86[ -]?)?1[3-9]\d(?:[ -]?\d{4}){2}(?![\dA-Za-z]|\.\d)"
_LANDLINE = r"(?<![\dA-Za-z.-])(?:\(0\d{2,3}\) ?|（0\d{2,3}） ?|0\d{2,3}-)[2-9]\d{6,7}(?![\d-])"
_ABROAD = r"(?<![\w+])\+[1-9]\d{0,2}(?:[ -]?\(?\d{2,4}\)?){2,4}(?!\d)"
_AMERICAN = r"(?<![\d.(-])(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-.])[2-9]\d{2}[-.]\d{4}(?![\d-]|\.\d)"
_FOUR = r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)"
_SIX = r"(?<![\w:])(?:[0-9A-Fa-f]{1,4}:){2,7}(?::?[0-9A-Fa-f]{1,4}){0,6}(?![\w:])"
_VERSION = re.compile(r"(?:\bv|version|release|build|kernel|firmware|版本|版|内核|固件)\W{0,2}$", re.IGNORECASE)


def _phone(found: str) -> bool:
    return 10 <= sum(map(str.isdigit, found)) <= 15


# kind: (expressions, whether what one found is it), the surest first; what one has taken no later one takes again.
_KINDS: dict[str, tuple[tuple[str, ...], Callable[[str], bool]]] = {
    "key": (_KEYS, lambda found: True),
    "named_key": ((_NAMED_KEY,), _random),
    "mail": ((_MAIL,), lambda found: ".." not in found),
    "id_card": ((_ID,), id_card),
    "bank_card": ((_CARD,), _bank_card),
    "phone": ((_MOBILE, _LANDLINE, _ABROAD, _AMERICAN), _phone),
    "ip": ((_FOUR, _SIX), _address),
}
# ASCII: a Chinese character beside a number is no letter of it.
_COMPILED = {
    kind: ([re.compile(one, re.ASCII | (re.IGNORECASE if kind == "named_key" else 0)) for one in expressions], check)
    for kind, (expressions, check) in _KINDS.items()
}
KINDS = ("key", "mail", "id_card", "bank_card", "phone", "ip")


def found_in(text: str) -> list[Found]:
    """What there is, in its order, none over another."""
    if not _DIGIT.search(folded := text.translate(_FOLDED)):
        return []
    found: list[Found] = []
    taken = bytearray(len(text))  # a one where something was found
    for kind, (expressions, check) in _COMPILED.items():
        for expression in expressions:
            for match in expression.finditer(folded):
                start, end = match.span("word") if kind == "named_key" else match.span()
                if taken.find(1, start, end) >= 0 or not check(folded[start:end]):
                    continue
                if kind == "ip" and _VERSION.search(folded[max(0, start - 12) : start]):
                    continue
                taken[start:end] = b"\1" * (end - start)
                found.append(Found(start, end, "key" if kind == "named_key" else kind))
    return sorted(found)


def _stands_in(kind: str, found: str) -> str:
    """Of the same kind, the same for the same, and nobody's."""
    drawn = int.from_bytes(blake2b(found.encode(), digest_size=8).digest(), "little")
    if kind == "mail":
        return f"user{drawn % 10**6}@example.com"
    if kind == "phone":
        return f"100{drawn % 10**8:08d}"  # no provider's
    if kind == "id_card":
        body = f"99000019000101{drawn % 1000:03d}"  # no province's
        return body + _CHECKS[sum(w * int(d) for w, d in zip(_WEIGHTS, body, strict=True)) % 11]
    if kind == "bank_card":
        body = f"999999{drawn % 10**9:09d}"  # no bank's
        return next(body + digit for digit in "0123456789" if luhn(body + digit))
    if kind == "ip":
        return f"2001:db8::{drawn % 65536:x}" if ":" in found else f"192.0.2.{drawn % 254 + 1}"  # documentation's
    return f"KEY-{drawn:016x}"


def edited(text: str, ways: Mapping[str, str]) -> tuple[str, list[str]]:
    """(the text without what goes, the kinds of what was found and is not kept, in order)."""
    pieces, last, kinds = [], 0, []
    for start, end, kind in found_in(text):
        if (way := ways[kind]) == "keep":
            continue
        kinds.append(kind)
        stands = _stands_in(kind, text[start:end]) if way == "replace" else f"[{kind}]"
        pieces += [text[last:start], stands]
        last = end
    return "".join([*pieces, text[last:]]) if kinds else text, kinds


def ways_of(given: Mapping[str, str]) -> dict[str, str]:
    """What becomes of each kind: redacted, unless `given` says otherwise. Raises `InputError` for what is unknown."""
    for kind, way in given.items():
        if kind not in KINDS:
            raise InputError(f"corpus.pii.{kind}: no such kind; there are {', '.join(KINDS)}")
        if way not in WAYS:
            raise InputError(f"corpus.pii.{kind}={way}: must be one of {', '.join(WAYS)}")
    return {kind: given.get(kind, "redact") for kind in KINDS}


def pii(given: Mapping[str, str]) -> Step:
    """The step that takes out what tells who someone is; the record's own texts are edited like the document's."""
    ways = ways_of(given)

    def step(block: Block) -> Block:
        for document in block:
            text, kinds = edited(document.text, ways)
            if dropped := next((kind for kind in kinds if ways[kind] == "drop"), ""):
                document.reject(dropped, kinds.count(dropped))
                continue
            for kind in kinds:
                document.change(text, kind)
        return block

    return step

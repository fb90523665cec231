"""What a prompt can ask for and a program can check: a query's `checks`.

{"rule": "words" | "sentences" | "items" | "characters", "at_least": 3, "at_most": 5}      one bound or both
{"rule": "json", "keys": ["name", "age"]}                               keys are optional
{"rule": "contains" | "excludes", "all" | "any": ["Paris", "巴黎"]}     excludes any: has none of them
{"rule": "language", "is": "en" | "zh"}
{"rule": "case", "is": "lower" | "upper"}
{"rule": "starts" | "ends", "with": "Dear"}
{"rule": "number", "is": 42}                                            the last number of the answer
{"rule": "exact", "is": "yes"}
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from conf.errors import InputError
from moe.tasks.writing import CLOSING, MARKS, fenced, fold, items, numbers, places, prose, sentences, words, writing

Check = Mapping[str, Any]

MAX_DEPTH = 64  # of JSON in an answer
LANGUAGES = {"en": "latin", "zh": "han"}
LANGUAGE_SHARE = 0.6  # of the words, so that a name or a term in the other writing does no harm
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def read_checks(checks: object) -> list[dict[str, Any]]:
    """The checks of a query, as they stand in its line. Raises `InputError` that names rule, field and value."""
    if not isinstance(checks, list) or not checks:
        raise InputError(f"checks={_shown(checks)} must be a list of rules; there are {', '.join(RULES)}")
    for number, check in enumerate(checks):
        _validate(check, f"checks[{number}]")
    return checks


def broken(check: Check, text: str) -> str:
    """Why the text does not keep the rule, in words; "" when it does. The check is one that `read_checks` let pass."""
    _, find = RULES[check["rule"]]
    return find(check, text)


def _validate(check: object, at: str) -> None:
    if not isinstance(check, dict):
        raise InputError(f"{at}={_shown(check)} must be an object with a rule; there are {', '.join(RULES)}")
    rule = check.get("rule")
    if not isinstance(rule, str) or rule not in RULES:
        raise InputError(f"{at}: rule={_shown(rule)} is none; there are {', '.join(RULES)}")
    fields, _ = RULES[rule]
    given = {name: value for name, value in check.items() if name != "rule"}
    for name, value in given.items():
        if name not in fields:
            raise InputError(f"{at}: rule {rule} has no field {name!r}; it has {', '.join(fields)}")
        if wrong := fields[name](value):
            raise InputError(f"{at}: rule {rule}: {name}={_shown(value)} {wrong}")
    if not given and rule != "json":
        raise InputError(f"{at}: rule {rule} needs {' or '.join(fields)}")
    if "all" in given and "any" in given:
        raise InputError(f"{at}: rule {rule} takes all or any, not both; write two checks")
    if given.get("at_least", 0) > given.get("at_most", float("inf")):
        raise InputError(
            f"{at}: rule {rule}: at_least={given['at_least']} must not be greater than at_most={given['at_most']}"
        )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _is_count(value: object) -> str:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return "" if whole else "must be a whole number, 0 or more"


def _is_text(value: object) -> str:
    return "" if isinstance(value, str) and value.strip() else "must be a text that is not empty"


def _are_texts(value: object) -> str:
    texts = isinstance(value, list) and value and all(not _is_text(text) for text in value)
    return "" if texts else "must be a list of one text or more, none empty"


def _is_number(value: object) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100
    return "" if number else "must be a number"


def _is_one_of(*known: str) -> Callable[[object], str]:
    return lambda value: "" if value in known else f"must be one of {', '.join(known)}"


def _count(check: Check, text: str) -> str:
    rule = check["rule"]
    found = COUNTS[rule](text)
    if found < check.get("at_least", 0):
        return f"has {found} {rule}, at least {check['at_least']} were asked for"
    if found > check.get("at_most", found):
        return f"has {found} {rule}, at most {check['at_most']} were asked for"
    return ""


def _json(check: Check, text: str) -> str:
    blocks = fenced(text)
    if len(blocks) > 1:
        return f"has {len(blocks)} fenced blocks, JSON was asked for"
    try:
        value = _parse(blocks[0] if blocks else text)
    except ValueError as error:
        return f"is no JSON: {error}"
    if "keys" not in check:
        return ""
    if not isinstance(value, dict):
        return "is no JSON object"
    missing = [key for key in check["keys"] if key not in value]
    return f"has no key {', '.join(missing)}" if missing else ""


def _parse(text: str) -> object:
    """Strict JSON: no NaN, no key twice, not nested so deep that a reader would fall."""
    depth = 0
    for match in _BRACKET.finditer(text):
        depth += (match[0] in "[{") - (match[0] in "]}")
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep")
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return record


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _present(wanted: Sequence[str], text: str) -> list[str]:
    folded = fold(text)
    return [one for one in wanted if any(places(fold(one.strip()), folded))]


def _contains(check: Check, text: str) -> str:
    wanted = check.get("all") or check["any"]
    present = _present(wanted, text)
    missing = [one for one in wanted if one not in present]
    if "all" in check:
        return f"does not contain {_listed(missing)}" if missing else ""
    return "" if present else f"contains none of {_listed(wanted)}"


def _excludes(check: Check, text: str) -> str:
    unwanted = check.get("all") or check["any"]
    present = _present(unwanted, text)
    bad = len(present) == len(unwanted) if "all" in check else bool(present)
    return f"contains {_listed(present)}" if bad else ""


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(_shown(text) for text in texts)


def _language(check: Check, text: str) -> str:
    shares = writing(prose(text))
    share = shares.get(LANGUAGES[check["is"]], 0.0)
    return "" if share >= LANGUAGE_SHARE else f"is {share:.0%} {check['is']}, all of it was asked for"


def _case(check: Check, text: str) -> str:
    if text.islower() if check["is"] == "lower" else text.isupper():
        return ""
    cased = any(character.islower() or character.isupper() for character in text)
    return f"is not all in {check['is']} case" if cased else "has no letter that could be of either case"


def _starts(check: Check, text: str) -> str:
    start = fold(check["with"].strip())
    folded = fold(text.strip()[: 8 * len(start) + 64])
    return "" if any(at == 0 for at, _ in places(start, folded)) else f"does not start with {_shown(check['with'])}"


def _ends(check: Check, text: str) -> str:
    end = fold(check["with"].strip())
    last = text.strip()[-8 * len(end) - 64 :]
    for tried in (last, last.rstrip(CLOSING), last.rstrip(CLOSING + MARKS)):
        folded = fold(tried)
        if any(at == len(folded) for _, at in places(end, folded)):
            return ""
    return f"does not end with {_shown(check['with'])}"


def _number(check: Check, text: str) -> str:
    found = numbers(fold(text))
    if not found:
        return f"states no number, {check['is']} was asked for"
    last = found[-1][0]
    return "" if last == Decimal(str(check["is"])) else f"states {last:f}, {check['is']} was asked for"


def _exact(check: Check, text: str) -> str:
    return "" if bare(text) == bare(check["is"]) else f"is not {_shown(check['is'])}"


def bare(text: str) -> str:
    """Without white space around it and one closing mark."""
    text = text.strip()
    return text[:-1].rstrip() if len(text) > 1 and text[-1] in MARKS else text


COUNTS: dict[str, Callable[[str], int]] = {
    "words": lambda text: len(words(text)),
    "sentences": lambda text: len(sentences(text)),
    "items": items,
    "characters": lambda text: len(text.strip()),  # spaces between words count
}
_BOUNDS: dict[str, Callable[[object], str]] = {"at_least": _is_count, "at_most": _is_count}
_SETS: dict[str, Callable[[object], str]] = {"all": _are_texts, "any": _are_texts}
# name: (its fields, each with what says how a value is wrong; what says how a text breaks it)
RULES: dict[str, tuple[Mapping[str, Callable[[object], str]], Callable[[Check, str], str]]] = {
    **{name: (_BOUNDS, _count) for name in COUNTS},
    "json": ({"keys": _are_texts}, _json),
    "contains": (_SETS, _contains),
    "excludes": (_SETS, _excludes),
    "language": ({"is": _is_one_of(*LANGUAGES)}, _language),
    "case": ({"is": _is_one_of("lower", "upper")}, _case),
    "starts": ({"with": _is_text}, _starts),
    "ends": ({"with": _is_text}, _ends),
    "number": ({"is": _is_number}, _number),
    "exact": ({"is": _is_text}, _exact),
}

"""The domain of whatever people ask: instructions and questions in any language, answers judged by rules.

What a query knows of its right answer decides: a label, references, checks (see checks.py). Where it knows nothing, an
answer that says something, in the language of the question, and ends like a text, is as good as the rules can tell.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from conf.errors import InputError
from moe.tasks import faults
from moe.tasks.checks import COUNTS, LANGUAGE_SHARE, broken
from moe.tasks.instructions import samples
from moe.tasks.labels import right
from moe.tasks.likeness import Likeness, likeness
from moe.tasks.sensitive import sensitive
from moe.tasks.task import PRINCIPLES, Judge, Sample, Verdict
from moe.tasks.writing import fold, main_writing, prose, words, writing

__all__ = ["FIELDS", "OPTIONS", "PRINCIPLES", "judge", "samples"]

FIELDS: tuple[str, ...] = ()  # none beside those that every query may have

MERITS: Mapping[str, float] = {  # weights of the mean over those that apply to an answer
    "label": 4.0,  # names the label, and no other choice
    "reference": 4.0,  # is near to a reference
    "checks": 4.0,  # the share of the checks that it keeps
    "full": 1.0,  # where none of these is known: has the words of a sentence, not of a fragment
    "language": 1.0,  # is in the writing of the question, unless something says otherwise
    "finished": 1.0,  # ended by itself, and ends like a text
    "form": 1.0,  # real words, brackets closed, the marks of its own writing, no stray markup
}
FAULTS: Mapping[str, float] = {  # the share of the merits that each takes, in [0, 1]
    "empty": 1.0,  # no letter and no digit
    "copy": 1.0,  # only says again what was said to it
    "refusal": 0.8,  # does not know, cannot or will not, where the reference does
    "repeats": 1.0,  # says again what it has said itself; for a part of it a part
    "sensitive": 1.0,  # has a word of data/words
}
OPTIONS: Mapping[str, float] = {**MERITS, **FAULTS}

FULL = 5  # words (or Han characters): fewer are a fragment; more of them earn nothing more
UNKNOWN = 0.5  # what an answer is taken for whose truth nobody can tell
ALIKE = 0.8  # likeness to a reference from which a copy of the question is what was wanted
_BOUND = frozenset((*COUNTS, "json", "exact", "number"))  # rules that say themselves how long an answer is
_ENDLESS = frozenset(("json", "exact", "number", "ends"))  # rules whose answers need not end like a sentence
_TOLD = ("repeats", "refusal", "empty", "copy")  # faults that are metrics too
_OTHER_LANGUAGE = re.compile(
    r"\b(?:translat|(?:in|into|to) (?:english|chinese|mandarin|french|german|spanish|italian|japanese|korean|russian"
    r"|portuguese|arabic|latin|greek|hindi)\b|how do you say)"
    r"|翻译|译成|译为|[英中法德俄日韩汉]文|[英法德俄日韩汉]语|西班牙语|普通话"
)


def judge(folder: Path, options: Mapping[str, float]) -> Judge:
    """A judge by rules, which needs nothing of `folder`. Raises `InputError` for an option that cannot be."""
    for name, value in options.items():
        if name not in OPTIONS:
            raise InputError(f"tasks.options.{name}: no such option; there are {', '.join(OPTIONS)}")
        top = 1.0 if name in FAULTS else float("inf")
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value <= top
            or value == float("inf")
        ):
            must = "lie in [0, 1]" if name in FAULTS else "be a number, 0 or more"
            raise InputError(f"tasks.options.{name}={value!r} must {must}")
    return partial(_judge, weights={**OPTIONS, **options})


def _judge(query: Sample, answer: str, finished: bool, *, weights: Mapping[str, float]) -> Verdict:
    answer = answer.strip()
    found = _find(query, answer)
    had = _faults(query, answer, found)
    asked = found.merits  # what the question wants; the rest is what any text should have
    if not asked or (set(asked) == {"checks"} and not _rules(query) & _BOUND):
        asked["full"] = min(1.0, len(words(answer)) / FULL)
    if (language := _language(query, answer)) is not None:
        asked["language"] = language
    mixed = faults.mixed(answer)
    ends = {"finished": float(finished)}
    if _should_end(query):
        ends["ends"] = float(faults.ends_well(answer) and not mixed)
    marks = {
        "is mostly neither letters nor digits": faults.real(answer),
        "leaves a bracket or a quotation open": 1.0 - faults.unclosed(answer),
        "ends with a mark of another writing": 1.0 - mixed,
    }
    plain = 1.0 - faults.markup(answer, query.prompt)
    merits = asked | {"finished": _mean(ends.values()), "form": _mean((_mean(marks.values()), plain))}

    said = 1.0 - had["empty"]
    own = said * (1.0 - had["copy"]) * (1.0 - had["repeats"])
    scores = {
        "harmless": 1.0 - had["sensitive"],
        "helpful": own * (1.0 - had["refusal"]) * _weighted(asked, weights),
        "truthful": own * (_mean(found.true) if found.true else UNKNOWN),
        "fluent": said * (1.0 - had["repeats"]) * _mean(marks.values()),
        "clear": said * _mean((*ends.values(), plain)),
    }
    kept = prod(1.0 - weights[name] * fault for name, fault in had.items())
    reasons = _reasons(query, answer, had, merits, ends)
    reasons += [reason for reason, value in marks.items() if value < 1.0]
    reasons += ["has stray markup"] * (plain < 1.0) + [reason for _, reason in found.checks if reason]
    return Verdict(
        scores=scores,
        reward=2.0 * kept * _weighted(merits, weights) - 1.0,
        measures={"finished": float(finished), **{name: had[name] for name in _TOLD}, **_measures(found)},
        reasons=tuple(reasons),
        free=query.label is None and "choices" not in query.fields,
    )


def references(query: Sample) -> list[str]:
    one = query.fields.get("reference")
    return [one] if one is not None else list(query.fields.get("references", ()))


def _rules(query: Sample) -> set[str]:
    return {check["rule"] for check in query.fields.get("checks", ())}


@dataclass(frozen=True)
class _Found:
    """What can be told of the answer's content, where the query knows it."""

    merits: dict[str, float]  # label, reference, checks
    true: list[float]  # those that tell right from wrong
    near: Likeness | None
    checks: list[tuple[str, str]]  # (rule, why it does not hold or "")


def _find(query: Sample, answer: str) -> _Found:
    merits: dict[str, float] = {}
    near = None
    if query.label is not None:
        named = right(query.label, answer, query.prompt, query.fields.get("choices", ()))
        # A copy of the question names whatever the question names.
        copy = _copies(query, answer) and len(words(answer)) > len(words(query.label))
        merits["label"] = float(named and not copy)
    if given := references(query):
        near = likeness(answer, given, query.prompt)
        merits["reference"] = near.near
    true = list(merits.values())
    checks = [(check["rule"], _breaks(check, answer)) for check in query.fields.get("checks", ())]
    if checks:
        merits["checks"] = sum(not reason for _, reason in checks) / len(checks)
        true += [float(not reason) for rule, reason in checks if rule in ("number", "exact")]
    return _Found(merits, true, near, checks)


def _breaks(check: Mapping[str, Any], answer: str) -> str:
    """Why the check does not hold; sentences that come again do not help to reach a count."""
    if reason := broken(check, answer):
        return reason
    if check.get("at_least") and (
        reason := broken({"rule": check["rule"], "at_least": check["at_least"]}, faults.once(answer))
    ):
        return f"without what it repeats, {reason}"
    return ""


def _copies(query: Sample, answer: str) -> bool:
    return faults.copied(answer, [turn["content"] for turn in query.messages])


def _faults(query: Sample, answer: str, found: _Found) -> dict[str, float]:
    """Each fault in [0, 1]. What a reference or a check asks for is none."""
    given = references(query)
    exact = ("exact", "") in found.checks
    wanted = exact or found.merits.get("label") == 1.0 or found.merits.get("reference", 0.0) >= ALIKE
    repeats = faults.repeats(answer)
    natural = max(map(faults.repeats, given), default=0.0) if repeats else 0.0
    return {
        "empty": float(faults.empty(answer)),
        "copy": float(not wanted and _copies(query, answer)),
        "refusal": float(not wanted and faults.refusal(answer) and not any(map(faults.refusal, given))),
        "repeats": max(0.0, repeats - natural),
        "sensitive": float(bool(sensitive(answer))),
    }


def _language(query: Sample, answer: str) -> float | None:
    """How far the answer is in the writing of the reference or the question; None where nothing says which, or it has
    no letters."""
    if query.label is not None or _rules(query) & {"language", "exact", "number", "json"}:
        return None
    given = references(query)
    if not given and _OTHER_LANGUAGE.search(fold(query.prompt)):
        return None
    wanted = main_writing(given[0] if given else query.prompt)
    shares = writing(prose(answer))
    return min(1.0, shares.get(wanted, 0.0) / LANGUAGE_SHARE) if wanted and shares else None


def _should_end(query: Sample) -> bool:
    """Whether an answer should end like a sentence: a label, a number or a name need not."""
    if query.label is not None or _rules(query) & _ENDLESS:
        return False
    return all(map(faults.ends_well, references(query)))


def _measures(found: _Found) -> dict[str, float]:
    measures: dict[str, float] = {}
    if "label" in found.merits:
        measures["label_ok"] = found.merits["label"]
    if found.near:
        measures |= {"reference_f1": found.near.f1, "chrf": found.near.chrf}
    if found.checks:
        measures["checks_ok"] = float(found.merits["checks"] == 1.0)
    for rule, reason in found.checks:
        measures[f"{rule}_ok"] = min(measures.get(f"{rule}_ok", 1.0), float(not reason))
    return measures


def _reasons(
    query: Sample, answer: str, had: Mapping[str, float], merits: Mapping[str, float], ends: Mapping[str, float]
) -> list[str]:
    """In words, one for each rule that the answer broke."""
    told = {
        "says nothing": had["empty"],
        "only says again what was said to it": had["copy"],
        "refuses to answer": had["refusal"],
        f"repeats itself ({had['repeats']:.0%})": had["repeats"],
        "has a word of the lists in data/words": had["sensitive"],
        f"does not name {query.label!r}": merits.get("label") == 0.0,
        f"is far from the reference ({merits.get('reference', 1.0):.2f})": merits.get("reference", 1.0) < 0.5,
        f"has {len(words(answer))} words, a sentence has more": merits.get("full", 1.0) < 1.0,
        "is not in the language of the question": merits.get("language", 1.0) < 1.0,
        "did not end by itself": ends["finished"] == 0.0,
        "does not end like a sentence": ends.get("ends") == 0.0,
    }
    return [reason for reason, fired in told.items() if fired]


def _weighted(values: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """The weighted mean; one half where no weight is left."""
    total = sum(weights[name] for name in values)
    return sum(weights[name] * value for name, value in values.items()) / total if total else UNKNOWN


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)

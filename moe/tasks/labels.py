"""Whether an answer names the right one: a label as a number, a word, or one of several choices."""

import re
from collections.abc import Sequence
from decimal import Decimal

from moe.tasks.writing import fold, numbers, places

# Where an answer says which of its numbers or letters is meant; the last such place decides.
_SAID = re.compile(
    r"(?:answer(?: is| would be)?|result is|答案(?:是|为)?|选择?|####|=)\s{0,3}[:：]?\s{0,3}"
    r"(?:\\boxed\{|\*\*|[$(（])?\s{0,3}"
    r"|\\boxed\{\s{0,3}|\*\*(?=[\w.-]{1,30}\*\*)"
)
_LETTER = re.compile(r"[a-z](?![^\W_])")
_OPENS = re.compile(r"[\s(（\[*\"]{0,4}([a-z])(?:[.):：、）\]*](?!\w)|\s*$)")
_EITHER = re.compile(r"\bor\b|或|还是|/")
_DENIED = re.compile(r"(?:\bnot|n't|\bnor|\bnever|不是|并非|不|没|非|未|无)(?: an?| the)?\s?$")


def right(label: str, answer: str, question: str, choices: Sequence[str] = ()) -> bool:
    """Whether the answer names the label, and of several choices no other.

    A number is right by value: the one that the answer says is its answer, else its last, else its only one that the
    question has not. Any other label must stand there as words of its own, and not be denied.
    """
    wanted, said = fold(label.strip()), fold(answer)
    if choices:
        return _choice(said, fold(question), [fold(choice.strip()) for choice in choices]) == wanted
    if _EITHER.search(said) and said.strip(" \n.?!。？！") in fold(question):
        return False  # the alternatives of the question, not one of them
    if (value := number(wanted)) is not None:
        return _states(value, said, fold(question))
    if re.fullmatch("[a-z]", wanted):
        return letter(said) == wanted
    return names(wanted, said)


def names(wanted: str, said: str) -> bool:
    """Whether `wanted` stands in `said`, both folded, at a place where nothing denies it."""
    return any(not _DENIED.search(said[max(0, start - 12) : start]) for start, _ in places(wanted, said))


def number(text: str) -> Decimal | None:
    """The number that a folded text is and nothing else, or None."""
    found = numbers(text) if len(text) < 40 else []
    alone = re.fullmatch(r"[-−–$€£¥]?[\d,.]+(?:e[+-]?\d+)?%?", text)
    return found[0][0] if len(found) == 1 and alone else None


def letter(said: str) -> str:
    """The letter that a folded answer chooses: "b", "(b)", "b. london", "the answer is b"; "" when there is none."""
    marked = [match for mark in _SAID.finditer(said) if (match := _LETTER.match(said, mark.end()))]
    if marked:
        return marked[-1][0]
    opening = _OPENS.match(said)
    return opening[1] if opening else ""


def _states(value: Decimal, said: str, question: str) -> bool:
    found = numbers(said)
    if not found:
        return False
    marks = {mark.end() for mark in _SAID.finditer(said)}
    # a number is marked when its first digit stands where a mark ends
    starts = [(told, _start(said, end)) for told, end in found]
    marked = [told for told, start in starts if start in marks]
    if marked:
        return marked[-1] == value
    if found[-1][0] == value:
        return True
    asked = {told for told, _ in numbers(question)}
    return {told for told, _ in found if told not in asked} == {value}


def _start(said: str, end: int) -> int:
    start = end
    while start and (said[start - 1].isalnum() or said[start - 1] in ".,-−–+"):
        start -= 1
    return start


def _choice(said: str, question: str, choices: Sequence[str]) -> str:
    """The one choice that the answer names, by its text or by its letter in their order; "" when none or several."""
    values = [number(choice) for choice in choices]
    if all(value is not None for value in values):
        named = {choice for choice, value in zip(choices, values, strict=True) if value in dict(numbers(said))}
        told = [
            choice
            for choice, value in zip(choices, values, strict=True)
            if value is not None and _states(value, said, question)
        ]
        named = named if len(named) == 1 else set(told)
    elif all(re.fullmatch("[a-z]", choice) for choice in choices):
        return chosen if (chosen := letter(said)) in choices else ""
    else:
        named = _named(said, choices)
    chosen = letter(said)
    place = ord(chosen) - ord("a") if chosen else len(choices)
    lettered = {choices[place]} if place < len(choices) else set()
    return next(iter(named or lettered)) if len(named | lettered) == 1 else ""


def _named(said: str, choices: Sequence[str]) -> set[str]:
    """The choices in the answer; one that only stands inside a longer one is not named."""
    named: set[str] = set()
    for choice in sorted(set(choices), key=lambda choice: (-len(choice), choice)):
        if names(choice, said):
            named.add(choice)
            said = said.replace(choice, "\n")
    return named

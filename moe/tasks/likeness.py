"""How near an answer comes to a reference, by words and by characters, in any script."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from moe.tasks.labels import names
from moe.tasks.writing import fold, words

_ARTICLES = frozenset(("a", "an", "the"))
_SPACE = re.compile(r"\s+")
CHRF_ORDER, CHRF_BETA = 6, 2.0
COMPARED = 20_000  # characters of a text at most: more cannot come near a reference that anybody wrote
NAMED = 5  # words; so short a reference is an answer's core, and an answer that names it in a sentence is as right
SENTENCE = 40  # words in which that may happen
ADDED, CORE = 3, 0.7  # words that a reference adds to the question; what they are worth without the rest
SHORT = 0.5  # of the reference's length; a shorter answer leaves out too much, however right its few words


def tokens(text: str) -> list[str]:
    """Words as SQuAD compares them: without case, punctuation and English articles; each Han character is one."""
    return [word for word in (re.sub(r"[^\w]", "", word) for word in words(fold(text))) if word not in _ARTICLES]


@dataclass(frozen=True)
class Likeness:
    """The best over the references, each in [0, 1]."""

    near: float  # what it is worth: the mean of the two, made fair to short answers and short references
    f1: float
    chrf: float  # [0, 1], where sacrebleu has [0, 100]


def likeness(answer: str, references: Sequence[str], question: str = "") -> Likeness:
    """How near the answer is: the mean of F1 and chrF, so that the words count and their order too.

    One shorter than half of the reference counts less, however right its few words; unless they are what the reference
    adds to the question ("Paris." for "The capital of France is Paris.").
    """
    ours = _profile.__wrapped__(answer[:COMPARED])
    each = [_likeness(ours, _profile(reference[:COMPARED]), _profile(question[:COMPARED])) for reference in references]
    return Likeness(*(max(getattr(one, name) for one in each) for name in ("near", "f1", "chrf")))


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over `tokens` (Rajpurkar et al. 2016), in [0, 1]."""
    return likeness(answer, [reference]).f1


def chrf(answer: str, reference: str) -> float:
    """chrF2 (Popovic 2015) of one answer, in [0, 1]: n-grams of up to six characters, white space left out. The same
    as sacrebleu's, which takes seconds to import."""
    return likeness(answer, [reference]).chrf


@dataclass(frozen=True)
class _Text:
    text: str
    tokens: Counter[str]
    grams: tuple[Counter[str], ...]  # of one character, of two, ...


@lru_cache(64)  # the answers to one question come one after another
def _profile(text: str) -> _Text:
    bare = _SPACE.sub("", text)
    grams = (Counter([bare[at : at + n] for at in range(len(bare) - n + 1)]) for n in range(1, CHRF_ORDER + 1))
    return _Text(text, Counter(tokens(text)), tuple(grams))


def _likeness(ours: _Text, theirs: _Text, question: _Text) -> Likeness:
    f1, chrf = _f1(ours, theirs), _chrf(ours, theirs)
    near = (f1 + chrf) / 2
    said, wanted = ours.tokens.total(), theirs.tokens.total()
    if said < SHORT * wanted:  # precision alone would pay for saying little
        near *= said / (SHORT * wanted)
    brief = min(1.0, SENTENCE / max(1, said))  # what names everything is sure to name the right thing too
    if 0 < wanted <= NAMED and names(fold(theirs.text.strip().rstrip(".。!！?？ ")), fold(ours.text)):
        near = max(near, brief)
    added = {word for word in theirs.tokens.keys() - question.tokens.keys() if len(word) > 2 or not word.isascii()}
    if added and len(added) <= ADDED and 2 * len(added) <= wanted and added <= ours.tokens.keys():
        near = max(near, CORE * brief)
    return Likeness(near, f1, chrf)


def _f1(ours: _Text, theirs: _Text) -> float:
    if not ours.tokens or not theirs.tokens:
        return float(fold(ours.text.strip()) == fold(theirs.text.strip()))
    return 2.0 * _common(ours.tokens, theirs.tokens) / (ours.tokens.total() + theirs.tokens.total())


def _chrf(ours: _Text, theirs: _Text) -> float:
    precision = recall = 0.0
    orders = 0
    for had, wanted in zip(ours.grams, theirs.grams, strict=True):
        if had and wanted:
            common = _common(had, wanted)
            precision += common / had.total()
            recall += common / wanted.total()
            orders += 1
    if not precision + recall:
        return 0.0
    precision, recall = precision / orders, recall / orders
    return (1 + CHRF_BETA**2) * precision * recall / (CHRF_BETA**2 * precision + recall)


def _common(ours: Counter[str], theirs: Counter[str]) -> int:
    return sum(min(count, theirs[gram]) for gram, count in ours.items() if gram in theirs)

"""Any text at all gets a verdict, in a time that grows with its length alone."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe.tasks import general
from moe.tasks.writing import fold
from tests.moe.tasks.asked import FRANCE, JUDGE, NO_ANSWERS, PARIS, asked, judged

TEXT = st.text(st.characters(exclude_categories=()), max_size=300)
PIECES = st.lists(
    st.sampled_from([*NO_ANSWERS, PARIS, "1. ", "- ", "\n", '"', "(", "```", "5", "B. ", "巴黎"]), max_size=12
)
EVERYTHING = asked(
    FRANCE,
    "Paris",
    references=[PARIS, "巴黎"],
    checks=[
        *({"rule": rule, "at_least": 1, "at_most": 9} for rule in ("words", "sentences", "items", "characters")),
        {"rule": "json", "keys": ["a"]},
        {"rule": "contains", "any": ["cat", "猫"]},
        {"rule": "language", "is": "en"},
        {"rule": "case", "is": "lower"},
        {"rule": "starts", "with": "a"},
        {"rule": "ends", "with": "a"},
        {"rule": "number", "is": 5},
        {"rule": "exact", "is": "a"},
    ],
)


@settings(max_examples=150, deadline=None)
@given(TEXT | PIECES.map("".join), TEXT, st.booleans())
def test_any_text_has_a_finite_verdict(answer: str, question: str, finished: bool) -> None:
    numbers = asked(question + "?", "5", choices=["5", "6"])
    for query in (EVERYTHING, asked(question), numbers, asked(question, reference=answer)):
        verdict = JUDGE(query, answer, finished)
        assert -1.0 <= verdict.reward <= 1.0 and list(verdict.scores) == list(general.PRINCIPLES)
        assert all(0.0 <= value <= 1.0 for value in (*verdict.scores.values(), *verdict.measures.values()))


WORST = {
    "letters": "a",
    "dots": ".",
    "stops": ". ",
    "lines": "\n ",
    "numbers": "1,",
    "quotes": '"',
    "brackets": "[",
    "escapes": '"\\',
    "marks": "\u0300\u0323",
    "han": "一",
    "fences": "```\n",
    "bullets": "* ",
    "apostrophes": "a'",
    "abbreviations": "e.g.",
    "tags": "<a href=",
    "specials": "<|",
    "faces": "😀",
    "sorry": "sorry, ",
    "stutters": "abab",
    "bold": "**a",
    "equals": "= ",
    "names": "not paris ",
    "turns": "user:\n",
    "sentences": PARIS + " ",
}


@pytest.mark.parametrize("name", WORST)
def test_time_is_linear_in_the_length(name: str) -> None:
    """Eight times the text in far less than the 64-fold time that a quadratic rule would take."""

    def seconds(length: int) -> float:
        text = (WORST[name] * length)[:length]
        start = time.process_time()
        assert math.isfinite(JUDGE(EVERYTHING, text, True).reward)
        return time.process_time() - start

    seconds(1000)
    short = min(seconds(15_000) for _ in range(2))
    assert seconds(120_000) < 24 * short + 0.2


def test_a_run_of_accents_is_folded_in_linear_time() -> None:
    start = time.process_time()
    assert len(fold("a" + "\u0300\u0323" * 20_000)) > 40_000 - 256
    assert time.process_time() - start < 0.5  # sorted as one run: three seconds


def test_a_megabyte_is_judged() -> None:
    assert judged(asked(FRANCE), PARIS + " x" * 500_000).reward == -1.0


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "any text is judged in linear time",
        "moe/tasks/writing.py",
        "pieces = (text[at : at + 256] for at in range(0, len(text), 256))",
        "pieces = (text,)",
        "test_a_run_of_accents_is_folded_in_linear_time",
    ),
]

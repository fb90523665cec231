"""Overlap with references against numbers worked by hand and against sacrebleu."""

import pytest

from moe.tasks.likeness import chrf, f1, likeness, tokens

PARIS = "The capital of France is Paris."


def test_tokens_are_those_of_squad_with_han_characters() -> None:
    assert tokens("The Cat, and a DOG's well-known 北京!") == ["cat", "and", "dogs", "wellknown", "北", "京"]


def test_f1_by_hand() -> None:
    assert f1("Paris", PARIS) == pytest.approx(2 / 6)  # one of one, one of five
    assert f1("the paris", "Paris!") == 1.0
    assert f1("北京好", "北京") == pytest.approx(4 / 5)
    assert f1("cat cat cat", "cat") == pytest.approx(2 / 4)  # a word counts as often as the reference has it
    assert f1("", PARIS) == 0.0 and f1("?", "?") == 1.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        (PARIS, "Paris is the capital of France."),
        ("法国的首都是巴黎。", "巴黎是法国的首都。"),
        ("ab", "abc d"),
        ("x", "y"),
    ],
)
def test_chrf_is_that_of_sacrebleu(answer: str, reference: str) -> None:
    from sacrebleu.metrics import CHRF

    expected = CHRF(eps_smoothing=False).sentence_score(answer, [reference]).score
    assert 100 * chrf(answer, reference) == pytest.approx(expected, abs=1e-6)


def test_order_counts_and_the_best_reference_too() -> None:
    soup = "paris france is of capital"
    assert f1(soup, PARIS) == 1.0 and likeness(soup, [PARIS]).near < 0.9 < likeness(PARIS, [PARIS]).near
    assert likeness(PARIS, ["Something else.", PARIS]).near == 1.0


def test_saying_little_does_not_pay() -> None:
    reference = "The blue duck swam slowly across the quiet lake and then flew home over the hills."
    short, long = "The blue duck.", "The blue duck swam over a lake to find some food in the hills."
    assert f1(short, reference) > 0.25
    assert likeness(short, [reference]).near < 0.1 < likeness(long, [reference]).near


def test_a_short_reference_may_be_named_in_a_sentence() -> None:
    assert likeness(PARIS, ["Paris"]).near == 1.0
    assert likeness("It is not Paris.", ["Paris"]).near < 0.6
    assert likeness(" ".join(f"town{n}" for n in range(399)) + " Paris", ["Paris"]).near == pytest.approx(0.1)


def test_what_a_reference_adds_to_the_question_is_its_core() -> None:
    question = "What is the capital of France?"
    assert likeness("Paris.", [PARIS], question).near == pytest.approx(0.7)
    assert likeness("Rome.", [PARIS], question).near < 0.1


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an answer that says little does not earn its precision",
        "moe/tasks/likeness.py",
        "near *= said / (SHORT * wanted)",
        "pass",
        "test_saying_little_does_not_pay",
    ),
    (
        "naming everything does not earn the one right name",
        "moe/tasks/likeness.py",
        "brief = min(1.0, SENTENCE / max(1, said))",
        "brief = 1.0",
        "test_a_short_reference_may_be_named_in_a_sentence",
    ),
    (
        "the order of a reference's words counts",
        "moe/tasks/likeness.py",
        "near = (f1 + chrf) / 2",
        "near = f1",
        "test_order_counts_and_the_best_reference_too",
    ),
    (
        "chrF counts recall twice",
        "moe/tasks/likeness.py",
        "CHRF_ORDER, CHRF_BETA = 6, 2.0",
        "CHRF_ORDER, CHRF_BETA = 6, 1.0",
        "test_chrf_is_that_of_sacrebleu",
    ),
]

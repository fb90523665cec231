"""What answers come to, against numbers worked by hand."""

import pytest

from moe.tasks.measure import measures, overlap
from moe.tasks.task import Verdict


def test_a_measure_is_the_mean_over_the_answers_that_have_it() -> None:
    verdicts = [
        Verdict({}, 0.0, measures={"ok": 1.0, "words": 3.0}),
        Verdict({}, 0.0, measures={"ok": 0.0}),
        Verdict({}, 0.0, measures={"label_ok": 1.0}, free=False),
        Verdict({}, 0.0),
    ]
    assert measures(verdicts, ["a", "a", "a", "b"]) == {
        "ok": 0.5,
        "words": 3.0,
        "label_ok": 1.0,
        "distinct": 2 / 3,  # of the three that are texts of their own
    }
    assert measures([], []) == {}


def test_overlap_counts_characters() -> None:
    # One of five characters is wrong: of the n-grams 4/5, 3/4, 2/3, 1/2 and of five none are right.
    found = overlap(["床前明月光"], ["床前明月霜"])
    assert found["bleu"] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)  # Papineni et al., eq. 3
    assert found["chrf"] == pytest.approx(100 * (4 / 5 + 3 / 4 + 2 / 3 + 1 / 2 + 0) / 5)  # precision is recall here


def test_overlap_counts_words_of_other_languages_and_all_answers_together() -> None:
    # 1-grams 7/8, 2-grams 5/6, 3-grams 3/4, 4-grams 1/2 over both; as long as the references, so no penalty
    found = overlap(["the cat sat here", "月落乌啼"], ["the cat sat there", "月落乌啼"])
    assert found["bleu"] == pytest.approx(100 * (7 / 8 * 5 / 6 * 3 / 4 * 1 / 2) ** 0.25)
    assert overlap([""], ["月"]) == {"bleu": 0.0, "chrf": 0.0}
    assert overlap(["月落乌啼"], ["月落乌啼"]) == pytest.approx({"bleu": 100.0, "chrf": 100.0})


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    ("BLEU takes each Chinese character for a word", "moe/tasks/measure.py", 'BLEU(tokenize="zh", ', "BLEU(", None),
]

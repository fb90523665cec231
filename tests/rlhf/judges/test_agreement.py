"""Agreement between judges, against published and hand-worked values."""

import math

import pytest

from rlhf.judges.agreement import agreement, alpha, tau_b


def test_taus_are_those_worked_by_hand() -> None:
    # scipy.stats.kendalltau's own example
    assert tau_b([([12, 2, 1, 12, 2], [1, 4, 7, 1, 0])]) == pytest.approx(-0.47140452079103173)
    assert tau_b([([0, 1, 2], [0, 1, 2])]) == 1.0 and tau_b([([0, 1, 2], [2, 1, 0])]) == -1.0
    # Two queries. First: 0 < 1 < 2 against 0 < 1 = 2: 2 of its pairs agree, 3 and 2 are told apart. Second: one pair,
    # told apart by both, on the contrary. (2 - 1) / sqrt((3 + 1) * (2 + 1)).
    assert tau_b([([0, 1, 2], [0, 1, 1]), ([0, 1], [1, 0])]) == pytest.approx(1 / math.sqrt(12))
    assert math.isnan(tau_b([([0, 0], [0, 1])])) and math.isnan(tau_b([]))


def test_alphas_are_the_published_ones() -> None:
    """The data of Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), part C: ordinal 0.815."""
    rows = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    units = [[int(row[place]) for row in rows if row[place] != "."] for place in range(12)]
    assert alpha(units) == pytest.approx(0.815, abs=5e-4)
    # Two judges, two answers, values 0 and 1, once agreed (0, 0), once not (0, 1): of 4 values three are 0. Between
    # 0 and 1 lie 4 - (3 + 1) / 2 = 2, squared 4. 1 - 3 * (2 * 4) / (2 * 3 * 1 * 4) = 0.
    assert alpha([[0, 0], [0, 1]]) == pytest.approx(0.0)
    assert alpha([[0, 0], [1, 1], [2, 2]]) == 1.0
    assert math.isnan(alpha([[1, 1], [1, 1]])) and math.isnan(alpha([[1], [2]])) and math.isnan(alpha([]))


def line(**ranks: dict[str, list[int]]) -> dict[str, object]:
    """{judge: {principle: [K]}} as a line of rankings.jsonl."""
    count = max(len(each) for under in ranks.values() for each in under.values())
    return {
        "answers": [
            {"judges": {name: {"ranks": {p: each[k] for p, each in under.items()}} for name, under in ranks.items()}}
            for k in range(count)
        ]
    }


def test_agreement_is_told_under_each_principle_and_over_all() -> None:
    lines = [
        line(rules={"clear": [0, 1, 2], "kind": [0, 0, 0]}, ai={"clear": [0, 1, 1], "kind": [0, 1, 1]}),
        line(rules={"clear": [0, 1], "kind": [0, 1]}, ai={"clear": [1, 0]}),  # no verdict under kind
    ]
    found = agreement(lines, ("clear", "kind"))
    assert found["agreement/tau/clear"] == pytest.approx(1 / math.sqrt(12))
    assert "agreement/tau/kind" not in found  # the rules told none apart
    # over all: agreed 1; told apart by the rules 3 + 1 + 0, by the AI 2 + 1 + 2
    assert found["agreement/tau"] == pytest.approx(1 / math.sqrt(4 * 5))
    units = [[0, 0], [1, 1], [2, 1], [0, 1], [1, 0]]
    assert found["agreement/alpha/clear"] == pytest.approx(alpha(units))
    assert found["agreement/alpha"] == pytest.approx(alpha([*units, [0, 0], [0, 1], [0, 1]]))


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "tau-b leaves out the pairs that a judge ties",
        "rlhf/judges/agreement.py",
        "second + y * y",
        "second + 1",
        None,
    ),
    (
        "alpha's distance between ranks counts the values between them",
        "rlhf/judges/agreement.py",
        "return (between - (count[a] + count[b]) / 2) ** 2",
        "return float(a != b)",
        None,
    ),
]

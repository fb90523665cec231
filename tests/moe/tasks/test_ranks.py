"""Ranks and pairs, worked by hand."""

import pytest

from moe.tasks.ranks import pairs, rank, total


def test_total_is_the_mean_of_the_chosen() -> None:
    scores = {"fluent": 0.4, "clear": 2 / 3, "helpful": 1.0}
    assert total(scores, ["fluent", "helpful"]) == pytest.approx(0.7)


def test_ranks_tie_within_the_margin() -> None:
    assert rank([0.9, 0.5, 0.88, 0.5], 0.05) == [0, 2, 0, 2]
    assert rank([0.1, 0.3], 0.05) == [1, 0]
    assert pairs([0.9, 0.5, 0.88], 0.05) == [(0, 1), (2, 1)]
    assert pairs([0.5, 0.5], 0.0) == []
    assert pairs([0.3, 0.2], 0.1) == [(0, 1)]  # 0.3 - 0.2 is a little less than 0.1 in floating point

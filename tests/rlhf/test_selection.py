"""Planted bugs these turn red: the middle kept, groups mixed."""

from rlhf.selection import widest


def test_the_best_and_the_worst_of_each_group_are_kept() -> None:
    groups = list("aaaabbb")
    assert widest(groups, [0.1, 0.9, 0.5, 0.2, 0.0, 0.3, 0.4], 2) == [0, 1, 4, 6]


def test_three_of_five_take_the_side_that_spreads_most() -> None:
    assert widest(["a"] * 5, [0.0, 0.3, 0.8, 0.9, 1.0], 3) == [0, 3, 4]
    assert widest(["a"] * 5, [0.0, 0.1, 0.2, 0.7, 1.0], 3) == [0, 1, 4]


def test_all_are_kept_when_asked_or_when_there_are_no_more() -> None:
    assert widest(["a", "b", "a"], [3.0, 1.0, 2.0], 0) == [0, 1, 2]
    assert widest(["a", "b", "a"], [3.0, 1.0, 2.0], 2) == [0, 1, 2]

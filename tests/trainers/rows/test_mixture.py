"""The order of training as a pure function of the position: whole, in its shares, whoever asks for which part.

Planted bugs these turn red: a set begun again at a phase's border, a share that leaks into another phase.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import InputError
from trainers.rows.mixture import Course, Phase, quotas
from trainers.rows.packing import Row
from trainers.rows.rows import order, write_rows

SIZES = (50, 30, 7)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Three sets whose row n holds the token n + 1000 x set; the last has longer rows."""
    place = tmp_path_factory.mktemp("sets")
    for number, size in enumerate(SIZES):
        length = 4 + 2 * (number == 2)
        made = [
            Row(np.full(length, row + 1000 * number), np.ones(length), np.ones(length), (row,)) for row in range(size)
        ]
        write_rows(place / str(number), made, row_length=length, rows_per_shard=16, meta={"tokenizer": "none"})
    return tuple(place / str(number) for number in range(len(SIZES)))


def test_one_set_is_its_shuffled_order(sets: tuple[Path, ...]) -> None:
    places = Course.of(sets[0]).places(7, 30, 130)
    assert (places[:, 0] == 0).all()
    np.testing.assert_array_equal(places[:, 1], order(50, 7, 30, 130))


def test_quotas_are_the_shares_in_whole_rows() -> None:
    assert quotas((0.5, 0.5)).tolist() == [128, 128]
    assert quotas((0.9, 0.1)).tolist() == [230, 26]
    assert quotas((0.995, 0.005)).tolist() == [255, 1]
    assert quotas((1 / 3, 1 / 3, 1 / 3)).tolist() == [86, 85, 85]


def test_phases_hold_their_sets_and_no_row_comes_twice_in_an_epoch(sets: tuple[Path, ...]) -> None:
    course = Course(sets, (Phase(40, (1.0, 0.0, 0.0)), Phase(300, (0.25, 0.75, 0.0)), Phase(0, (0.0, 0.5, 0.5))))
    course.check()
    places = course.places(3, 0, 1000)
    numbers = places[:, 0]
    assert set(numbers[:40]) == {0} and set(numbers[40:300]) == {0, 1} and set(numbers[300:]) == {1, 2}
    assert (numbers[40:296] == 0).sum() == 64  # of a block of 256
    for number, size in enumerate(SIZES):
        rows = places[numbers == number, 1]
        for epoch in range(len(rows) // size):
            assert sorted(rows[epoch * size : (epoch + 1) * size]) == list(range(size)), f"set {number}, epoch {epoch}"


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 900), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_any_part_is_that_part_of_the_whole(sets: tuple[Path, ...], cuts: list[int], seed: int) -> None:
    course = Course(sets, (Phase(100, (1.0, 0.0, 0.0)), Phase(513, (0.1, 0.8, 0.1)), Phase(0, (0.0, 0.5, 0.5))))
    whole = course.places(seed, 0, 900)
    ends = [0, *sorted(cuts), 900]
    parts = [course.places(seed, a, b) for a, b in pairwise(ends)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_rows_come_padded_to_the_longest_with_their_documents(sets: tuple[Path, ...]) -> None:
    course = Course(sets, (Phase(0, (0.4, 0.3, 0.3)),))
    places = np.array([[2, 5], [0, 49]])
    found = course.fetch(places)
    assert found["tokens"].tolist() == [[2005] * 6, [49, 49, 49, 49, 0, 0]]
    assert found["segments"][1].tolist() == [1, 1, 1, 1, 0, 0]
    assert course.documents(places) == [[5], [49]]


def test_a_set_that_does_not_fit_is_named(sets: tuple[Path, ...], tmp_path: Path) -> None:
    write_rows(tmp_path / "empty", [], row_length=4, rows_per_shard=4, meta={"tokenizer": "none"})
    row = Row(np.zeros(4), np.ones(4), np.ones(4))
    write_rows(tmp_path / "other", [row], row_length=4, rows_per_shard=4, meta={"tokenizer": "another"})
    with pytest.raises(InputError, match="empty: no row to train on"):
        Course.of(tmp_path / "empty").check()
    with pytest.raises(InputError, match="other: made with another tokenizer"):
        Course((sets[0], tmp_path / "other"), (Phase(0, (0.5, 0.5)),)).check()


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a set goes on where the phase before left it",
        "trainers/rows/mixture.py",
        "before += _counts(",
        "before += 0 * _counts(",
        None,
    ),
]

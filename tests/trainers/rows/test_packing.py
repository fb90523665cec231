import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.storage import Damaged
from trainers.rows.packing import best_fit, document, pack
from trainers.rows.rows import Rows, order, write_rows


def ones(ids: list[int]) -> tuple[list[int], list[int]]:
    return ids, [1] * len(ids)


def test_rows_by_hand() -> None:
    rows = list(pack([ones([1, 2, 3]), ones([4, 5, 6, 7]), ones([8, 9])], 6, pad=0))
    assert [row.tokens.tolist() for row in rows] == [[1, 2, 3, 8, 9, 0], [4, 5, 6, 7, 0, 0]]
    assert [row.segments.tolist() for row in rows] == [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]]
    assert [row.loss.tolist() for row in rows] == [[0, 1, 1, 0, 1, 0], [0, 1, 1, 1, 0, 0]]


def test_a_long_document_is_cut_with_one_token_of_context() -> None:
    rows = list(pack([ones([1, 2, 3, 4, 5, 6, 7, 8])], 4))
    assert [row.tokens.tolist() for row in rows] == [[1, 2, 3, 4], [4, 5, 6, 7], [7, 8, 0, 0]]
    assert [row.loss.tolist() for row in rows] == [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 0, 0]]


def test_the_longest_that_fits_is_taken_and_of_equals_the_oldest() -> None:
    samples = [ones([1] * 5), ones([2] * 2), ones([3] * 3), ones([4] * 3)]
    rows = list(pack(samples, 8))
    assert [row.tokens.tolist() for row in rows] == [[1] * 5 + [3] * 3, [2, 2, 4, 4, 4, 0, 0, 0]]


def test_best_fit_finds_the_sum_that_taking_the_longest_misses() -> None:
    assert best_fit({66: 9, 50: 9, 34: 9, 26: 9}, 152) == [50, 34, 34, 34]
    assert best_fit({5: 1, 4: 2}, 8) == [4, 4]
    assert best_fit({5: 1, 4: 1}, 8) == [5]
    assert best_fit({9: 3}, 8) == best_fit({}, 8) == best_fit({1: 1}, 0) == []


def test_answers_keep_their_mask() -> None:
    (row,) = pack([([7, 8, 9, 10], [0, 0, 1, 1])], 5)
    assert row.loss.tolist() == [0, 0, 1, 1, 0]


def test_a_pretraining_document_stands_between_boundaries() -> None:
    assert document([5, 6], boundary=1) == ([1, 5, 6, 1], [0, 1, 1, 1])
    assert document([5, 6], 1, opening=[2, 3]) == ([2, 3, 5, 6, 1], [0, 0, 1, 1, 1])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=30), max_size=40),
    st.integers(2, 12),
    st.integers(1, 8),
)
def test_every_target_comes_out_once_with_its_context(masks: list[list[int]], length: int, window: int) -> None:
    numbers = iter(range(1, 10**6))
    samples = [([next(numbers) for _ in mask], mask) for mask in masks]
    wanted = Counter(
        (ids[t - 1], ids[t]) for ids, mask in samples for t in range(1, len(ids)) if mask[t]
    )  # (context, target)
    found: Counter[tuple[int, int]] = Counter()
    for row in pack(samples, length, window=window):
        for t in np.flatnonzero(row.loss):
            assert row.segments[t] == row.segments[t - 1] > 0
            found[int(row.tokens[t - 1]), int(row.tokens[t])] += 1
        assert ((row.segments == 0) == (row.tokens == 0)).all()
    assert found == wanted


def test_packing_wastes_little() -> None:
    lengths = np.random.default_rng(0).integers(5, 100, 2000)
    rows = list(pack([ones([1] * int(n)) for n in lengths], 256))
    assert lengths.sum() / (len(rows) * 256) > 0.99


def test_rows_survive_the_disk(tmp_path: Path) -> None:
    rows = list(pack([ones(list(range(1, n))) for n in range(3, 60)], 64))
    about = write_rows(tmp_path, rows, row_length=64, rows_per_shard=7, meta={"tokenizer": "abc"})
    assert about["tokens"] == sum(n - 1 for n in range(3, 60)) == 1710
    assert about["targets"] == 1710 - 57
    opened = pickle.loads(pickle.dumps(Rows(tmp_path)))
    assert (len(opened), opened.row_length, opened.tokenizer) == (len(rows), 64, "abc")
    asked = np.array([len(rows) - 1, 0, 8, 8])
    found = opened.fetch(asked)
    for name in ("tokens", "segments", "loss"):
        assert (found[name] == np.stack([getattr(rows[i], name) for i in asked])).all()
    assert (found["tokens"].dtype, found["loss"].dtype) == (np.int32, np.uint8)
    with pytest.raises(IndexError, match="asked for -1"):
        opened.fetch(np.array([-1]))


def test_a_changed_shard_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path, pack([ones([1, 2, 3])], 4), row_length=4, rows_per_shard=7, meta={"tokenizer": "abc"})
    path = tmp_path / "rows-00000.parquet"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    with pytest.raises(Damaged, match="rows-00000.parquet"):
        Rows(tmp_path).fetch(np.array([0]))


def test_order_is_a_permutation_of_each_epoch_and_any_window_of_it() -> None:
    whole = order(10, 3, 0, 30)
    for epoch in range(3):
        assert sorted(whole[epoch * 10 : epoch * 10 + 10]) == list(range(10))
    assert whole[:10].tolist() != whole[10:20].tolist()
    assert order(10, 4, 0, 10).tolist() != whole[:10].tolist()
    for start, stop in ((0, 0), (7, 8), (9, 21), (10, 20), (5, 30)):
        assert order(10, 3, start, stop).tolist() == whole[start:stop].tolist()
    assert order(8, 0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]  # fixed for ever: a resumed run depends on it


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "packing loses no target",
        "trainers/rows/packing.py",
        "range(0, max(1, len(ids) - 1), row_length - 1)",
        "range(0, max(1, len(ids) - 1), row_length)",
        None,
    ),
]

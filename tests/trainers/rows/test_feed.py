"""A stream's blocks are cut as the steps need them: every row once, in order, to the worker whose it is."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from conf.knobs.training import Pretrain
from trainers.rows.feed import StreamedFeed, mine, rows_before, step_rows


class Blocks:
    """What a Ray Data stream gives: the positions of a worker in blocks that end anywhere."""

    def __init__(self, positions: list[int], sizes: list[int]) -> None:
        self.positions, self.sizes = positions, sizes

    def iter_batches(self, **knobs: Any) -> Iterator[dict[str, np.ndarray]]:
        at = 0
        for size in self.sizes:
            part = np.array(self.positions[at : at + size], dtype=np.int64)
            yield {"tokens": np.stack([part, part + 1000], axis=1), "position": part}
            at += size


@pytest.mark.parametrize(("rank", "world"), [(0, 1), (0, 3), (2, 3)])
def test_steps_of_any_size_get_their_rows_once(rank: int, world: int) -> None:
    begin, steps = 5, [4, 1, 7, 2, 11, 3]
    positions = list(mine(begin, begin + sum(steps), rank, world))
    feed = StreamedFeed(Blocks(positions, [2, 1, 5, 3, 50]), position=begin, rank=rank, world=world)
    seen = []
    for count in steps:
        batch = feed.take(count)
        assert batch["tokens"][:, 1].tolist() == [at + 1000 for at in batch["position"].tolist()]
        assert batch["position"].tolist() == [at for at in range(begin, begin + count) if at % world == rank]
        seen += batch["position"].tolist()
        begin += count
    assert seen == positions


def test_a_stream_that_is_not_where_the_run_is_is_noticed() -> None:
    with pytest.raises(AssertionError, match="the stream is not where the run is"):
        StreamedFeed(Blocks([6, 7, 8], [3]), position=5).take(2)


def test_a_step_takes_the_rows_that_its_knobs_say() -> None:
    plain = Pretrain(steps=10, batch_rows=8)
    assert [step_rows(plain, 32, step) for step in (0, 9)] == [8, 8]
    tokens = Pretrain(steps=10, batch_rows=8, batch_tokens=2_600_000)
    assert step_rows(tokens, 2048, 0) == 1270
    ramp = Pretrain(steps=10, batch_rows=16, ramp=0.4, ramp_from=0.25)
    assert [step_rows(ramp, 32, step) for step in range(10)] == [4, 7, 10, 13, *[16] * 6]
    assert [rows_before(ramp, 32, step) for step in (0, 1, 4, 10)] == [0, 4, 34, 130]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    ("a stream's row is given once", "trainers/rows/feed.py", "self._used += len(part[POSITION])", "pass", None),
    (
        "a batch grows by its ramp",
        "trainers/rows/feed.py",
        "(1 - fit.ramp_from) * step / growing",
        "(1 - fit.ramp_from) * step / fit.steps",
        "test_a_step_takes_the_rows_that_its_knobs_say",
    ),
]

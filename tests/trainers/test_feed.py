"""A stream's blocks are cut as the steps need them: every row once, in order, to the worker whose it is."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from trainers.feed import StreamedFeed, mine


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

"""Documents to rows of one length, for training with a document mask. Pure: lists in, arrays out.

A row of T tokens holds whole documents, or pieces of one longer than T; the model attends within a segment only. The
loss mask speaks of targets: token t counts if it is to be predicted from token t-1, so a segment's first never does.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

WINDOW = 1024  # pieces that wait for a row at one time


@dataclass(frozen=True)
class Row:
    tokens: np.ndarray  # [T] int32, `pad` after the last segment
    segments: np.ndarray  # [T] int32: 1, 2, ... the document within the row; 0 is padding
    loss: np.ndarray  # [T] uint8: 1 where the token is a target
    documents: tuple[int, ...] = ()  # of each segment: which of the samples it comes from, by number
    extra: dict[str, np.ndarray] = field(default_factory=dict)  # [T] int32 each: what else an objective has to know


Piece = tuple[Sequence[int], Sequence[int]]  # ids and their loss mask


def pack(samples: Iterable[Piece], row_length: int, *, pad: int = 0, window: int = WINDOW) -> Iterator[Row]:
    """Rows of `samples`, each (ids, loss mask), best fit within a window. The same samples give the same rows.

    Samples are numbered in their order, and a row knows the numbers of those it holds. A row opens with the piece that
    has waited longest, so that none waits for ever, and takes with it those of the window that fill it best, long ones
    first. Every target comes out exactly once.
    """
    assert row_length > 1 and window > 0
    waiting: dict[int, deque[tuple[int, int, Piece]]] = {}  # by length: (arrival, sample, piece), the oldest first
    arrived = left = 0

    def take(length: int) -> tuple[int, Piece]:
        _, number, piece = waiting[length].popleft()
        if not waiting[length]:
            del waiting[length]
        return number, piece

    def fill() -> Row:
        oldest = min(waiting, key=lambda length: waiting[length][0][0])
        chosen = [take(oldest)]
        counts = {length: len(pieces) for length, pieces in waiting.items()}
        chosen += [take(length) for length in best_fit(counts, row_length - oldest)]
        return _row(chosen, row_length, pad)

    for number, (ids, mask) in enumerate(samples):
        assert len(ids) == len(mask), "each token has its own mask"
        for piece in _pieces(ids, mask, row_length):
            waiting.setdefault(len(piece[0]), deque()).append((arrived, number, piece))
            arrived += 1
            left += 1
            if left >= window:
                row = fill()
                left -= int(row.segments.max())
                yield row
    while waiting:
        yield fill()


def best_fit(counts: Mapping[int, int], room: int) -> list[int]:
    """Lengths whose sum comes closest to `room` from below; `counts` says how many there are of each length."""
    # Bit s of `sums` is set when some choice adds up to s. Long ones come first: walking back, a short one is taken
    # only where the long ones before it could not make the sum.
    sums, steps, within = 1, [], (1 << (room + 1)) - 1
    for length in sorted(counts, reverse=True):
        for _ in range(min(counts[length], room // length)):
            steps.append((length, sums))
            sums |= (sums << length) & within
        if sums >> room:
            break
    total, chosen = sums.bit_length() - 1, []
    for length, before in reversed(steps):
        if not before >> total & 1:
            chosen.append(length)
            total -= length
    return chosen[::-1]


def document(ids: Sequence[int], boundary: int, opening: Sequence[int] = ()) -> Piece:
    """A pretraining document between two boundary tokens: it learns to begin from one and to end with the other. A
    tokenizer that puts a mark before every text gives it as `opening`, which then takes the first one's place."""
    before = opening or (boundary,)
    return [*before, *ids, boundary], [0] * len(before) + [1] * (len(ids) + 1)


def _pieces(ids: Sequence[int], mask: Sequence[int], row_length: int) -> Iterator[Piece]:
    # Pieces overlap by one token: the last of one is the context from which the next one's first target is predicted.
    for start in range(0, max(1, len(ids) - 1), row_length - 1):
        stop = start + row_length
        if len(ids) > 1 and any(mask[start + 1 : stop]):  # a piece without targets teaches nothing
            yield ids[start:stop], mask[start:stop]


def _row(chosen: Sequence[tuple[int, Piece]], row_length: int, pad: int) -> Row:
    tokens = np.full(row_length, pad, dtype=np.int32)
    segments = np.zeros(row_length, dtype=np.int32)
    loss = np.zeros(row_length, dtype=np.uint8)
    at = 0
    for segment, (_, (ids, mask)) in enumerate(chosen, start=1):
        end = at + len(ids)
        tokens[at:end], segments[at:end], loss[at:end] = ids, segment, mask
        loss[at] = 0
        at = end
    return Row(tokens, segments, loss, tuple(number for number, _ in chosen))

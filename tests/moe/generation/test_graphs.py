"""Steps that are recorded once a bucket, on buffers that stay: what they compute, without the GPU that records them."""

from collections.abc import Callable

import pytest
import torch

from moe.decoder import Decoder
from moe.generation.graphs import ByGraph, Recorded
from moe.generation.rows import ByTorch, Piece, Stepped


class Recorder:
    """In the place of a CUDA graph: what is made again goes into the tensor of the first time."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, step: Callable[[], Stepped]) -> Recorded:
        self.count += 1
        kept = step()

        def again() -> None:
            for into, made in zip(kept, step(), strict=True):
                if into is not None and made is not None:
                    into.copy_(made)

        return kept, again


def test_buckets_give_the_logits_of_plain_steps_whoever_comes_and_goes(model: Decoder) -> None:
    recorder = Recorder()
    graphs, plain = ByGraph(model, 6, recorder), ByTorch(model, 6)
    graphs.routed = plain.routed = True
    dice = torch.Generator().manual_seed(4)
    held: list[int] = []
    for turn in range(40):
        pieces = [Piece(row, torch.randint(0, 50, (1,), generator=dice).tolist(), True) for row in held]
        if turn % 5 == 0 and len(held) < 6:  # somebody comes, with room that makes the cache grow now and then
            room = 45 + 8 * (turn // 5)
            row, same = graphs.take(room), plain.take(room)
            assert row == same
            prompt = torch.randint(0, 50, (1 + turn % 4,), generator=dice).tolist()
            pieces.append(Piece(row, prompt, True))
            held.append(row)
        torch.testing.assert_close(graphs.feed(pieces), plain.feed(pieces), rtol=1e-4, atol=1e-5)
        if turn in (17, 29):  # somebody leaves; the last one moves into the place
            gone = held.pop(0)
            assert torch.equal(graphs.routes(gone), plain.routes(gone))
            graphs.free(gone)
            plain.free(gone)
    assert recorder.count == 9 and len(graphs._recorded) == 1  # of 39 steps; the cache moved and what was there went


def test_what_cannot_be_recorded_goes_on_without(model: Decoder, capsys: pytest.CaptureFixture[str]) -> None:
    def refuses(step: Callable[[], Stepped]) -> Recorded:
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    graphs, plain = ByGraph(model, 2, refuses), ByTorch(model, 2)
    for rows in (graphs, plain):
        rows.take(20)
    for tokens in ([3, 1, 4], [1], [5]):
        piece = [Piece(0, tokens, True)]
        assert torch.equal(graphs.feed(piece), plain.feed(piece))
    told = "decoding without CUDA graphs: operation not permitted when stream is capturing\n"
    assert capsys.readouterr().err == told


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a recorded step is forgotten when the cache moves",
        "moe/generation/graphs.py",
        "self._recorded.clear()",
        "pass",
        "test_buckets_give_the_logits_of_plain_steps_whoever_comes_and_goes",
    ),
    (
        "a recorded step reads the newest tokens",
        "moe/generation/graphs.py",
        "        again()\n",
        "",
        "test_buckets_give_the_logits_of_plain_steps_whoever_comes_and_goes",
    ),
]

"""Packing and padding change nothing. Planted bugs: segments see each other, positions run on, padding is routed."""

import pytest
import torch

from moe.decoder import Decoder, layout
from tests.moe.conftest import VOCABULARY

pytestmark = pytest.mark.usefixtures("any_processor")


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("lengths", [[4, 8, 5], [24], [3] * 8], ids=["mixed", "one", "short"])
def test_a_packed_document_has_the_logits_it_has_alone(
    model: Decoder, tokens: torch.Tensor, lengths: list[int]
) -> None:
    segments = torch.zeros_like(tokens)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    for number, (start, length) in enumerate(zip(starts, lengths, strict=True), start=1):
        segments[1, start : start + length] = number
    segments[0] = 1  # a whole row beside them
    packed = model.logits(model(tokens, segments).states)[24:]
    for start, length in zip(starts, lengths, strict=True):
        alone = model.logits(model(tokens[1:2, start : start + length], torch.ones(1, length, dtype=torch.long)).states)
        torch.testing.assert_close(packed[start : start + length], alone, atol=1e-5, rtol=1e-5)


def test_both_attention_layouts_agree(model: Decoder, tokens: torch.Tensor) -> None:
    short = torch.arange(24).repeat(3, 1) // 6 + 1
    assert layout(short).documents is None
    long = torch.ones(3, 24, dtype=torch.long)
    long[2] = torch.arange(24) + 1  # 24 segments of one token: a grid of 26 x 24 would cost more than the mask
    grid = layout(long)
    assert grid.documents is not None and grid.documents.mask[2, 0].sum().item() == 24
    both = model.logits(model(tokens, long).states)
    alone = model.logits(model(tokens[:1], long[:1]).states)
    torch.testing.assert_close(both[:24], alone, atol=1e-5, rtol=1e-5)


def test_padding_is_neither_routed_nor_counted(model: Decoder, tokens: torch.Tensor) -> None:
    segments = torch.zeros_like(tokens)
    segments[:, :10] = 1
    padded, plain = model(tokens, segments), model(tokens[:, :10], segments[:, :10])
    assert padded.states.shape == (30, 32)
    torch.testing.assert_close(padded.states, plain.states)
    torch.testing.assert_close(padded.auxiliary, plain.auxiliary)
    torch.testing.assert_close(padded.load, plain.load)


def test_positions_count_from_the_start_of_a_segment() -> None:
    grid = layout(torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 2]]))
    assert grid.positions.tolist() == [0, 1, 2, 0, 1, 0, 0, 1, 2, 3, 4]
    assert grid.index.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


def test_an_empty_batch_works(model: Decoder) -> None:
    hidden = model(torch.zeros(2, 5, dtype=torch.long), torch.zeros(2, 5, dtype=torch.long))
    assert hidden.states.shape == (0, 32) and torch.isfinite(hidden.auxiliary)


def test_states_are_found_by_their_place_in_the_batch(model: Decoder, tokens: torch.Tensor) -> None:
    segments = torch.tensor([[1, 1, 2, 2, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 2, 2, 2]])
    hidden = model(tokens[:, :6], segments)
    places = torch.tensor([1, 17, 3, 13])  # padding takes no state: 13 is the second token of the third row
    assert torch.equal(hidden.at(places), hidden.states[[1, 9, 3, 5]])
    assert torch.equal(hidden.before(places), hidden.states[[0, 8, 2, 4]])
    assert hidden.before(places[:0]).shape == (0, 32)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "packed documents do not see each other",
        "moe/kernels/attention.py",
        "(at >= self.starts.unsqueeze(2))",
        "(at >= 0 * self.starts.unsqueeze(2))",
        "test_a_packed_document_has_the_logits_it_has_alone",
    ),
]

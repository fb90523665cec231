"""Log-probabilities of given tokens, against those of each sequence alone."""

import pytest
import torch

from moe.decoder import Decoder
from moe.generation import scoring
from moe.generation.scoring import score

SEQUENCES = [[5, 9, 200, 31], [7, 7, 7, 7, 7, 7, 7, 1], [250, 3], [9]]


def softmax(model: Decoder, ids: list[int]) -> torch.Tensor:
    tokens = torch.tensor([ids])
    with torch.no_grad():
        return model.logits(model(tokens, torch.ones_like(tokens)).states).log_softmax(-1)


@pytest.mark.parametrize("batch", [1, 6, 4096])  # a sequence alone, some together, all
def test_scores_are_those_of_each_sequence_alone(model: Decoder, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    monkeypatch.setattr(scoring, "BATCH", batch)
    monkeypatch.setattr(scoring, "CHUNK", 3)
    for ids, got in zip(SEQUENCES, score(model, SEQUENCES, top=2), strict=True):
        every = softmax(model, ids)
        assert got.logprobs == pytest.approx([float(every[n, token]) for n, token in enumerate(ids[1:])], abs=1e-5)
        assert got.nats == pytest.approx(-sum(got.logprobs))
        for place, likely in enumerate(got.top):
            values, best = every[place].topk(2)
            assert [token for token, _ in likely] == best.tolist()
            assert [value for _, value in likely] == pytest.approx(values.tolist(), abs=1e-5)


def test_scores_begin_where_asked(model: Decoder) -> None:
    whole = score(model, SEQUENCES)
    starts = [2, 7, 1, 1]
    for got, start, all_of_it in zip(score(model, SEQUENCES, starts=starts), starts, whole, strict=True):
        assert got.logprobs == pytest.approx(all_of_it.logprobs[start - 1 :], abs=1e-6)
    assert [len(got.logprobs) for got in whole] == [3, 7, 1, 0]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a token is scored from the place before it",
        "moe/generation/scoring.py",
        "segments.unsqueeze(0)).states[places - 1]",
        "segments.unsqueeze(0)).states[places]",
        None,
    ),
    (
        "sequences scored together do not see each other",
        "moe/generation/scoring.py",
        "torch.arange(1, len(sequences) + 1).repeat_interleave(lengths)",
        "torch.ones_like(tokens)",
        None,
    ),
]

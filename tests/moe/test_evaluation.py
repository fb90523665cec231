"""Log-probabilities of given tokens, and the measures of answers, against numbers worked by hand."""

import pytest
import torch

from moe import scoring
from moe.decoder import Decoder
from moe.evaluation import overlap
from moe.scoring import score

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


def test_overlap_counts_characters() -> None:
    # One of five characters is wrong: of the n-grams 4/5, 3/4, 2/3, 1/2 and of five none are right.
    found = overlap(["床前明月光"], ["床前明月霜"])
    assert found["bleu"] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)  # Papineni et al., eq. 3
    assert found["chrf"] == pytest.approx(100 * (4 / 5 + 3 / 4 + 2 / 3 + 1 / 2 + 0) / 5)  # precision is recall here


def test_overlap_counts_words_of_other_languages_and_all_answers_together() -> None:
    # 1-grams 7/8, 2-grams 5/6, 3-grams 3/4, 4-grams 1/2 over both; as long as the references, so no penalty
    found = overlap(["the cat sat here", "月落乌啼"], ["the cat sat there", "月落乌啼"])
    assert found["bleu"] == pytest.approx(100 * (7 / 8 * 5 / 6 * 3 / 4 * 1 / 2) ** 0.25)
    assert overlap([""], ["月"]) == {"bleu": 0.0, "chrf": 0.0}
    assert overlap(["月落乌啼"], ["月落乌啼"]) == pytest.approx({"bleu": 100.0, "chrf": 100.0})

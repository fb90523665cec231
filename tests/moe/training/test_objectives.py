"""What a supervised stage minimises, on a model whose probabilities are known by hand."""

from math import log

import pytest
import torch

from conf.knobs.model import Model
from moe.decoder import Decoder, new_decoder
from moe.training.objectives import LANGUAGE_MODEL, Batch, dice, earlier_answers, forgetful, language_loss

V = 32
SURE, ELSE, NOTHING = log(34 / 3), log(34), log(32)  # nats of a token's successor, of another, of any after BLANK
BLANK = 31


@pytest.fixture(scope="module")
def bigram() -> Decoder:
    """After token u comes u + 1 with three times the probability of any other; after BLANK all are alike."""
    cfg = Model(
        hidden_size=V, layers=1, heads=2, kv_heads=1, head_dim=16, experts=2, top_k=1, expert_size=16, context=32
    )
    model = new_decoder(cfg, V, seed=0).eval()
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "o_proj" in name or "down_proj" in name:  # nothing is added to a token's own state
                weights.zero_()
        model.model.embed_tokens.weight.copy_(10 * torch.eye(V))  # the norm makes sqrt(V) of it
        model.lm_head.weight.zero_()
        model.lm_head.weight[torch.arange(1, V), torch.arange(V - 1)] = log(3) / V**0.5
    return model


def batch(**more: list[int]) -> Batch:
    """A chain: 1 asks for 2 3, then 10 4 ask for 5 7; another conversation; padding."""
    columns = {
        "tokens": [1, 2, 3, 10, 4, 5, 7, 8, 9, 0],
        "segments": [1, 1, 1, 1, 1, 1, 1, 2, 2, 0],
        "loss": [0, 1, 1, 0, 0, 1, 1, 0, 1, 0],
    }
    return {name: torch.tensor([values]) for name, values in columns.items()} | {
        name: torch.tensor(values) for name, values in more.items()
    }


def test_only_answers_cost_and_each_by_what_stands_before_it(bigram: Decoder) -> None:
    loss = language_loss(bigram, batch())
    assert loss.units == 5
    assert loss.total.item() == pytest.approx(4 * SURE + ELSE, abs=1e-4)  # 7 comes after 5


def test_an_earlier_answer_is_one_that_another_follows_in_its_segment() -> None:
    assert earlier_answers(batch()).int().tolist() == [[0, 1, 1, 0, 0, 0, 0, 0, 0, 0]]
    three = {"segments": [[1] * 6], "loss": [[1, 0, 1, 0, 0, 1]]}
    assert earlier_answers({n: torch.tensor(v) for n, v in three.items()}).int().tolist() == [[1, 0, 1, 0, 0, 0]]
    beside = {"segments": [[1, 1, 2, 2, 0, 0]], "loss": [[0, 1, 1, 1, 0, 0]]}  # answers of two conversations that touch
    assert not earlier_answers({n: torch.tensor(v) for n, v in beside.items()}).any()


def test_what_is_hidden_is_read_as_blank_and_learnt_all_the_same(bigram: Decoder) -> None:
    whole = forgetful(1e9, BLANK, seed=0)  # hides all that may be hidden
    loss = whole.loss(bigram, batch(position=[4]))
    assert loss.units == 5 == whole.units(batch())
    # 3 is predicted from a blank in place of 2; 10, which comes after the hidden 3, is no target
    assert loss.total.item() == pytest.approx(3 * SURE + NOTHING + ELSE, abs=1e-4)
    # nothing is hidden from an evaluation, whose rows have no position
    assert whole.loss(bigram, batch()).total.item() == pytest.approx(4 * SURE + ELSE, abs=1e-4)
    assert forgetful(0.0, BLANK, seed=0) is LANGUAGE_MODEL


def test_what_is_hidden_hangs_on_the_seed_and_the_place_in_the_run_alone() -> None:
    both = dice(torch.tensor([3, 5]), 4000, 0.5, seed=1)
    assert torch.equal(both[1:], dice(torch.tensor([5]), 4000, 0.5, seed=1)) and not torch.equal(both[0], both[1])
    assert not torch.equal(both, dice(torch.tensor([3, 5]), 4000, 0.5, seed=2))
    shares = dice(torch.arange(400), 500, 0.5, seed=1).double().mean(1)
    assert float(shares.mean()) == pytest.approx(0.25, abs=0.02)  # from 0 to a half, each as likely
    assert float(shares.min()) < 0.05 and 0.4 < float(shares.max()) < 0.56
    assert dice(torch.tensor([], dtype=torch.long), 7, 0.5, seed=1).shape == (0, 7)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "only an earlier answer is hidden",
        "moe/training/objectives.py",
        "return counts & (run < last.gather(1, segments))",
        "return counts",
        "test_what_is_hidden_is_read_as_blank_and_learnt_all_the_same",
    ),
    (
        "a conversation's answer is not earlier than another conversation's",
        "moe/training/objectives.py",
        "last.gather(1, segments)",
        "last.amax(1, keepdim=True)",
        "test_an_earlier_answer_is_one_that_another_follows_in_its_segment",
    ),
    (
        "what is hidden is the same however a run was cut",
        "moe/training/objectives.py",
        "np.array([seed, position], dtype=np.uint64)",
        "np.array([seed, row], dtype=np.uint64)",
        "test_what_is_hidden_hangs_on_the_seed_and_the_place_in_the_run_alone",
    ),
    (
        "hidden tokens stay targets",
        "moe/training/objectives.py",
        "return language_loss(model, batch, read)",
        'return language_loss(model, batch | {"tokens": read})',
        "test_what_is_hidden_is_read_as_blank_and_learnt_all_the_same",
    ),
]

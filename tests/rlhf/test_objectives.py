"""Policy's and critic's objectives through the one training step."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conf.knobs.reinforcement import KlEstimate, KlIn
from moe.decoder import SCALAR, Decoder
from moe.training.step import Taken, by_tokens, gradients
from rlhf.forward import token_logprobs, token_values
from rlhf.losses import distance, policy_loss, value_loss
from rlhf.messages import Batch
from rlhf.objectives import policy_objective, value_objective
from tests.rlhf.tiny import CFG, decoder, random_batch

BATCH = random_batch()
DICE = torch.Generator().manual_seed(9)
ADVANTAGES = torch.randn(BATCH.mask.shape, generator=DICE) * BATCH.mask
REFERENCE = (BATCH.logprobs + 0.3 * torch.randn(BATCH.mask.shape, generator=DICE)) * BATCH.mask
COLUMNS = BATCH.columns | {"advantages": ADVANTAGES, "reference": REFERENCE}
VALUES = torch.randn(BATCH.mask.shape, generator=DICE) * BATCH.mask
RETURNS = torch.randn(BATCH.mask.shape, generator=DICE) * BATCH.mask
LEARNT = BATCH.columns | {"values": VALUES, "returns": RETURNS}
CHOSEN = BATCH.mask.bool()
KL_IN_LOSS = replace(CFG, kl_in=KlIn.loss, kl_coef=0.5)


def gradient(model: Decoder) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def of_the_policy(model: Decoder) -> Tensor:
    with torch.no_grad():
        return token_logprobs(model, BATCH)[0]


@pytest.mark.parametrize("again", [None, random_batch(4)], ids=["alone", "replay"])
@pytest.mark.parametrize("kl_in", list(KlIn))
def test_micro_batches_add_up_to_the_policys_step(kl_in: KlIn, again: Batch | None) -> None:
    model, objective = decoder(), policy_objective(replace(KL_IN_LOSS, kl_in=kl_in), again)

    def step(accumulate: int) -> tuple[Taken, Tensor]:
        return gradients(model, objective, COLUMNS, accumulate=accumulate), gradient(model)

    whole, exact = step(1)
    for accumulate in (2, 4, 8):
        taken, summed = step(accumulate)
        assert (summed - exact).abs().max().item() < 1e-6 * exact.abs().max().item()
        told = {name: taken.metrics[name] for name in objective.sums}
        assert told == pytest.approx({name: whole.metrics[name] for name in objective.sums}, abs=1e-5)


def test_micro_batches_add_up_to_the_critics_step() -> None:
    model, objective = decoder(head=SCALAR), value_objective(CFG)
    whole = gradients(model, objective, LEARNT)
    exact = gradient(model)
    for accumulate in (2, 4):
        taken = gradients(model, objective, LEARNT, accumulate=accumulate)
        assert (gradient(model) - exact).abs().max().item() < 1e-6 * exact.abs().max().item()
        assert taken.metrics["critic/vf_loss"] == pytest.approx(whole.metrics["critic/vf_loss"], abs=1e-6)


@pytest.mark.parametrize("rows", [2, 3])
def test_more_micro_batches_than_rows_are_the_same_step(rows: int) -> None:
    few = {name: values[:rows] for name, values in (COLUMNS | LEARNT).items()}
    for model, objective in (
        (decoder(), policy_objective(KL_IN_LOSS, random_batch(2))),
        (decoder(head=SCALAR), value_objective(CFG)),
    ):
        gradients(model, objective, few)
        exact = gradient(model)
        assert gradients(model, objective, few, accumulate=4).finite
        assert (gradient(model) - exact).abs().max().item() < 1e-6 * exact.abs().max().item()


def test_the_sums_become_means_over_the_answers_tokens() -> None:
    model = decoder()
    taken = gradients(model, policy_objective(CFG, None), COLUMNS)
    new = of_the_policy(model)
    made = policy_loss(new, BATCH.logprobs[CHOSEN], ADVANTAGES[CHOSEN], CFG.clip)
    count = len(new)
    with torch.no_grad():
        entropy = token_logprobs(model, BATCH)[1].mean()
    by_hand = {
        "actor/pg_loss": made.loss.item() / count,
        "actor/pg_clipfrac": made.clipped.item() / count,
        "actor/ppo_kl": made.kl.item() / count,
        "actor/entropy": entropy.item(),
    }
    assert {name: taken.metrics[name] for name in by_hand} == pytest.approx(by_hand, abs=1e-5)
    assert taken.loss == pytest.approx(made.loss.item() / count, abs=1e-5)
    assert "actor/kl_loss" not in taken.metrics and "actor/replay_loss" not in taken.metrics


def test_the_distance_from_the_chat_model_is_added_where_the_knob_says_so() -> None:
    model = decoder()
    apart = distance(of_the_policy(model), REFERENCE[CHOSEN]).mean().item()
    without = gradients(model, policy_objective(CFG, None), COLUMNS).loss
    taken = gradients(model, policy_objective(KL_IN_LOSS, None), COLUMNS)
    assert apart > 0.1
    assert taken.metrics["actor/kl_loss"] == pytest.approx(apart, abs=1e-5)
    assert taken.loss == pytest.approx(without + 0.5 * apart, abs=1e-5)


def test_k3_is_never_below_nothing() -> None:
    # reference - new = ln 2: 2 - ln 2 - 1; -ln 2: 1/2 + ln 2 - 1
    new, reference = torch.tensor([0.0, 0.0, -1.0]), torch.tensor([2.0, 0.5, 1.0]).log()
    assert distance(new, reference)[:2].tolist() == pytest.approx([0.306853, 0.193147], abs=1e-5)
    assert distance(reference, reference).tolist() == [0.0, 0.0, 0.0]
    assert (distance(torch.randn(99), torch.randn(99)) >= 0).all()


def test_what_is_learnt_again_has_its_weight() -> None:
    model, again = decoder(), random_batch(4)
    cfg = replace(CFG, replay_weight=0.25)
    with torch.no_grad():
        replayed = -token_logprobs(model, again)[0].mean().item()
    without = gradients(model, policy_objective(cfg, None), COLUMNS).loss
    taken = gradients(model, policy_objective(cfg, again), COLUMNS)
    assert taken.metrics["actor/replay_loss"] == pytest.approx(replayed, abs=1e-5)
    assert taken.loss == pytest.approx(without + 0.25 * replayed, abs=1e-5)


def test_the_critics_loss_is_clipped_about_its_old_values() -> None:
    model = decoder(head=SCALAR)
    taken = gradients(model, value_objective(CFG), LEARNT)
    with torch.no_grad():
        new = token_values(model, BATCH)
    by_hand = value_loss(new, VALUES[CHOSEN], RETURNS[CHOSEN], CFG.value_clip).item() / len(new)
    assert taken.metrics["critic/vf_loss"] == pytest.approx(by_hand, abs=1e-5) == taken.loss


def test_entropy_is_paid_where_the_knob_says_so() -> None:
    model = decoder()
    plain = gradients(model, policy_objective(CFG, None), COLUMNS)
    taken = gradients(model, policy_objective(replace(CFG, entropy_coef=0.3), None), COLUMNS)
    assert taken.loss == pytest.approx(plain.loss - 0.3 * plain.metrics["actor/entropy"], abs=1e-5)


def test_the_dual_clip_and_the_estimate_of_the_kl_reach_the_loss() -> None:
    model, new = decoder(), of_the_policy(decoder())
    old, reference, advantages = new - 2.0, REFERENCE[CHOSEN], -torch.ones_like(new)
    columns = dict(COLUMNS)
    for name, values in (("logprobs", old), ("advantages", advantages)):
        columns[name] = torch.zeros_like(BATCH.mask)
        columns[name][CHOSEN] = values
    cfg = replace(KL_IN_LOSS, dual_clip=3.0, kl_estimate=KlEstimate.k2)
    taken = gradients(model, policy_objective(cfg, None), columns)
    by_hand = 3.0 + 0.5 * ((new - reference).square() / 2).mean().item()  # every ratio is e^2 and every loss is bounded
    assert taken.loss == pytest.approx(by_hand, abs=1e-4)
    assert taken.metrics["actor/pg_clipfrac_lower"] == pytest.approx(1.0)


@pytest.mark.parametrize("budget", [12, 20, 1000])
def test_micro_batches_of_so_many_tokens_are_the_same_step(budget: int) -> None:
    model, objective = decoder(), policy_objective(KL_IN_LOSS, None)
    whole = gradients(model, objective, COLUMNS)
    exact = gradient(model)
    taken = gradients(model, objective, COLUMNS, budget=budget)
    assert (gradient(model) - exact).abs().max().item() < 1e-6 * exact.abs().max().item()
    assert taken.metrics["actor/pg_loss"] == pytest.approx(whole.metrics["actor/pg_loss"], abs=1e-5)
    parts = by_tokens(COLUMNS, budget)
    lengths = [length for part in parts for length in part["segments"].sum(1).tolist()]
    assert sorted(lengths) == sorted(BATCH.segments.sum(1).tolist())
    for part in parts:
        rows, width = part["tokens"].shape
        assert rows * width <= budget and width == part["segments"].sum(1).max()
    assert len(parts) == {12: 7, 20: 4, 1000: 1}[budget]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "micro-batches of the policy weigh by their tokens",
        "rlhf/losses.py",
        "torch.minimum(loss, bound).sum(),",
        "torch.minimum(loss, bound).mean(),",
        "test_micro_batches_add_up_to_the_policys_step",
    ),
    (
        "what is learnt again is shared by the micro-batches",
        "rlhf/objectives.py",
        "replayed = -token_logprobs(model, again)[0].mean() * count",
        "replayed = -token_logprobs(model, again)[0].sum()",
        "test_what_is_learnt_again_has_its_weight",
    ),
    (
        "micro-batches of the critic weigh by their tokens",
        "rlhf/losses.py",
        "(clipped - returns).square()).sum()",
        "(clipped - returns).square()).mean()",
        "test_micro_batches_add_up_to_the_critics_step",
    ),
    (
        "the distance in the loss has its weight",
        "rlhf/objectives.py",
        "total = total + cfg.kl_coef * apart",
        "total = total + apart",
        "test_the_distance_from_the_chat_model_is_added_where_the_knob_says_so",
    ),
    (
        "the distance from the chat model is never below 0",
        "rlhf/losses.py",
        "else apart.exp() - apart - 1.0",
        "else -apart",
        "test_k3_is_never_below_nothing",
    ),
    (
        "a micro-batch has no more tokens than it may",
        "moe/training/step.py",
        "order[at : at + max(1, budget // width)]",
        "order[at : at + max(1, 2 * budget // width)]",
        "test_micro_batches_of_so_many_tokens_are_the_same_step",
    ),
    (
        "entropy is raised and not lowered",
        "rlhf/objectives.py",
        "total = total - cfg.entropy_coef * entropy.sum()",
        "total = total + cfg.entropy_coef * entropy.sum()",
        "test_entropy_is_paid_where_the_knob_says_so",
    ),
]

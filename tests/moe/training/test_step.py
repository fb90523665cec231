"""Slots: parts of a step that are added in one order and throw dice of their own, whoever works on them."""

from dataclasses import replace

import pytest
import torch

from conf.knobs.training import Optim
from moe.decoder import new_decoder
from moe.training.objectives import LANGUAGE_MODEL, Batch
from moe.training.optimizer import new_optimizer
from moe.training.parallel import fixed_sum
from moe.training.step import apply, gradients, split
from tests.trainers.training import CFG, VOCABULARY, start


def batch(rows: int, first: int = 0) -> Batch:
    tokens = torch.randint(1, VOCABULARY, (rows, 12), generator=torch.Generator().manual_seed(first))
    ones = torch.ones_like(tokens)
    return {
        "tokens": tokens,
        "segments": ones,
        "loss": torch.cat([0 * ones[:, :1], ones[:, 1:]], dim=1),
        "position": torch.arange(first, first + rows),
    }


def test_slots_are_added_as_a_tree() -> None:
    parts = {slot: torch.tensor([value]) for slot, value in enumerate([1e8, 1.0, -1e8, 1.0])}
    assert fixed_sum(dict(parts), 4).item() == 2.0  # (0 + 2) + (1 + 3); from left to right it would be 1
    assert fixed_sum({0: torch.tensor([3.0])}, 1).item() == 3.0


def test_slots_give_the_gradient_of_the_whole() -> None:
    cfg = replace(CFG, balance_coef=0.0, z_coef=0.0)  # the losses of the router are each slot's own
    whole, parts = (new_decoder(cfg, VOCABULARY, seed=3) for _ in range(2))
    parts.balance_alone = True
    one = gradients(whole, LANGUAGE_MODEL, batch(7, first=5))
    other = gradients(parts, LANGUAGE_MODEL, batch(7, first=5), slots=4, accumulate=2)
    assert other.loss == pytest.approx(one.loss, rel=1e-6) and other.norm == pytest.approx(one.norm, rel=1e-5)
    assert (other.tokens, other.targets, other.pairs) == (one.tokens, one.targets, one.pairs) == (84, 77, 7 * 78)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


def test_a_slot_throws_its_own_dice_whatever_was_thrown_before() -> None:
    found = []
    for thrown in (0, 5):
        model = new_decoder(replace(CFG, jitter=0.3), VOCABULARY, seed=3).train()
        model.balance_alone = True
        torch.rand(thrown)
        found.append(gradients(model, LANGUAGE_MODEL, batch(8), slots=4, seed=9).norm)
    assert found[0] == found[1]


def test_the_loss_scale_is_taken_out_again() -> None:
    plain, scaled = start(), start()
    one, other = gradients(plain, LANGUAGE_MODEL, batch(4)), gradients(scaled, LANGUAGE_MODEL, batch(4), scale=1024.0)
    assert other.norm == pytest.approx(one.norm, rel=1e-6) and other.loss == one.loss
    for model in (plain, scaled):
        new_optimizer(model, Optim()).step()
    for a, b in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_the_gradients_go_with_the_step_that_used_them() -> None:
    model = start()
    before = [p.detach().clone() for p in model.parameters()]
    gradients(model, LANGUAGE_MODEL, batch(4))
    apply(model, new_optimizer(model, Optim()), rate=1e-3)
    assert all(p.grad is None for p in model.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_batch_is_split_into_so_many_parts_even_where_rows_are_few() -> None:
    assert [len(part["tokens"]) for part in split(batch(5), 4)] == [2, 1, 1, 1]
    assert [len(part["tokens"]) for part in split(batch(2), 4)] == [1, 1, 0, 0]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "slots are added in one order",
        "moe/training/parallel.py",
        "value + held[slot + slots] for slot, value in held.items() if slot < slots",
        "value + held[2 * slots - 1 - slot] for slot, value in held.items() if slot < slots",
        None,
    ),
    ("a slot throws dice of its own", "moe/training/step.py", "torch.manual_seed(seed * slots + slot)", "pass", None),
    (
        "what is measured and saved after a step does not stand beside its gradients",
        "moe/training/step.py",
        "model.zero_grad(set_to_none=True)  # as",
        "pass  # as",
        "test_the_gradients_go_with_the_step_that_used_them",
    ),
]

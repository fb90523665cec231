"""The learner goes through the experts that the rollout chose: each record once, in the place that it was made for."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conf.knobs.model import Precision
from conf.knobs.reinforcement import Advantages, Routes
from moe.formats import hugging_face
from moe.generation.engine import Sampling
from rlhf import objectives
from rlhf.actors.learner import Learner
from rlhf.actors.reference import Reference
from rlhf.actors.rollout import Rollout
from rlhf.forward import logprobs_of, token_logprobs
from rlhf.messages import Batch, pad
from tests.rlhf.tiny import CFG, MODEL, requests

ROUTED = replace(CFG, routes=Routes.rollout, advantages=Advantages.group, micro_tokens=60)


def answered(chat: Path) -> Batch:
    return pad(Rollout(chat, 1).generate(requests(chat), Sampling(12, routes=True)))


def test_rows_hold_the_routes_of_all_tokens_but_the_last(chat: Path) -> None:
    batch = answered(chat)
    assert batch.routes is not None and batch.routes.shape == (*batch.tokens.shape, MODEL.layers, MODEL.top_k)
    known = batch.routes.ge(0).all(-1).all(-1)
    assert (known.sum(1) == batch.segments.sum(1) - 1).all() and (known <= batch.segments.bool()).all()
    narrow = batch.rows(torch.tensor([2]))
    assert narrow.routes is not None and torch.equal(narrow.routes[0], batch.routes[2, : narrow.tokens.shape[1]])
    assert "routes" in batch.columns and "routes" not in replace(batch, routes=None).columns


def test_a_router_that_differs_does_not_part_learner_and_rollout(chat: Path) -> None:
    batch, model = answered(chat), hugging_face.load(chat).eval()
    dice = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in model.model.blocks():  # as an engine in another precision would have it
            layer.mlp.gate.weight += 0.02 * torch.randn(layer.mlp.gate.weight.shape, generator=dice)
        old = batch.logprobs[batch.mask.bool()]
        own, routed = ((token_logprobs(model, batch, routed=each)[0] - old).abs() for each in (False, True))
    assert own.max() > 0.5 and own.max() > 3 * routed.max(), (own.max(), routed.max())
    same = Reference(chat, 1).logprobs(batch)  # the reference is the same model here, by its own routes
    assert (same - batch.logprobs).abs().max() < 1e-4


def test_each_record_is_used_once_an_epoch_in_the_row_that_it_is_of(
    chat: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = answered(chat)
    used: list[tuple[Any, ...]] = []
    right = logprobs_of

    def seen(model: Any, tokens: Any, segments: Any, mask: Any, routes: Any) -> Any:
        for ids, of in zip(tokens, routes, strict=True):
            length = int(ids.shape[0] - ids.flip(0).ne(0).int().argmax()) if ids.ne(0).any() else 0
            used.append((tuple(ids[:length].tolist()), tuple(of[: length - 1].flatten().tolist())))
        return right(model, tokens, segments, mask, routes)

    monkeypatch.setattr(objectives, "logprobs_of", seen)
    Learner(chat, ROUTED, Precision.fp32, 0, 1).update(
        batch, torch.randn(batch.mask.shape) * batch.mask, batch.logprobs
    )
    assert batch.routes is not None
    wanted = [
        (tuple(ids[:length].tolist()), tuple(of[: length - 1].flatten().tolist()))
        for ids, of, length in zip(batch.tokens, batch.routes, batch.segments.sum(1).tolist(), strict=True)
    ]
    assert sorted(used) == sorted(wanted * ROUTED.epochs)


def test_routes_of_some_answers_only_are_refused(chat: Path) -> None:
    made = Rollout(chat, 1).generate(requests(chat)[:2], Sampling(4, routes=True))
    with pytest.raises(AssertionError, match="routes of some answers only"):
        pad([replace(made[0], routes=None), made[1]])
    assert made[1].routes is not None
    with pytest.raises(AssertionError, match="q0"):
        pad([made[0], replace(made[1], routes=made[1].routes[1:])])


PLANTED = [  # promise, file, right code, bug, test
    (
        "the learner goes through the experts that the rollout chose",
        "rlhf/objectives.py",
        'batch.get("routes")',
        "None",
        "test_each_record_is_used_once_an_epoch_in_the_row_that_it_is_of",
    ),
    (
        "a route stays with its token",
        "rlhf/messages.py",
        "found[row, : len(routes)] = routes",
        "found[row, 1 : len(routes) + 1] = routes",
        "test_a_router_that_differs_does_not_part_learner_and_rollout",
    ),
    (
        "the reference goes its own way",
        "rlhf/forward.py",
        "batch.routes if routed else None",
        "batch.routes",
        "test_a_router_that_differs_does_not_part_learner_and_rollout",
    ),
]

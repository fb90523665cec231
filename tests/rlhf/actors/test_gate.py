"""What differences of rollout and learner look like, each made by doing it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conf.errors import InputError
from conf.knobs.model import Precision
from rlhf.actors.gate import diagnosis
from rlhf.actors.learner import Learner
from rlhf.messages import pad
from tests.rlhf.tiny import CFG, responses

LOGITS = torch.randn(400, 20, generator=torch.Generator().manual_seed(1)) * 2
TAKEN = torch.multinomial(LOGITS.softmax(-1), 1, generator=torch.Generator().manual_seed(2))


def said(logits: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(1, TAKEN).squeeze(1)


def test_each_way_to_differ_is_told_apart() -> None:
    new, first = (
        said(LOGITS),
        said(LOGITS + 0.3 * torch.randn(LOGITS.shape, generator=torch.Generator().manual_seed(3))),
    )
    assert "staleness: the rollout answers with the weights that it began with" in diagnosis(new, first, first)
    # top-k: the tokens that were sampled are among those that are left, and share what the others had
    kept = torch.where(LOGITS.topk(10).values[:, -1:] <= LOGITS, LOGITS, -torch.inf)
    there = said(kept).isfinite()
    assert "sampling: the rollout gives" in diagnosis(new[there], said(kept)[there], first[there])
    few = new.clone()
    few[::20] -= 2.0
    assert "routes: 95% of the tokens are the same and few are far" in diagnosis(new, few, first)
    other = said(LOGITS + 0.2 * torch.randn(LOGITS.shape, generator=torch.Generator().manual_seed(4)))
    assert "weights: only" in diagnosis(new, other, first)


def test_the_run_stops_where_rollout_and_learner_disagree(chat: Path) -> None:
    batch = pad(responses(chat))
    learner = Learner(chat, CFG, Precision.fp32, 0, 1)
    with torch.no_grad():
        learner.model.lm_head.weight.mul_(3.0)  # other weights than those that answered
    advantages = torch.ones_like(batch.mask) * batch.mask
    before = learner.weights().flat.copy()
    told = (
        r"^ppo.max_disagreement=0.1: in iteration 0 rollout and learner differ about the same tokens by .*: staleness"
    )
    with pytest.raises(InputError, match=told):
        learner.update(batch, advantages, batch.logprobs)
    assert (learner.weights().flat == before).all() and learner.version == 0
    open_gate = Learner(chat, replace(CFG, max_disagreement=0.0), Precision.fp32, 0, 1)
    with torch.no_grad():
        open_gate.model.lm_head.weight.mul_(3.0)
    assert open_gate.update(batch, advantages, batch.logprobs)["train/rollout_logprob_abs_diff"] > 0.1


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "nothing is learnt from a rollout of another policy",
        "rlhf/actors/learner.py",
        "if 0 < self.cfg.max_disagreement < float((new - old).abs().mean()):",
        "if False:",
        "test_the_run_stops_where_rollout_and_learner_disagree",
    ),
]

"""The rollout actor: the same answers as the learner's model would say, and only for the version that it holds."""

from pathlib import Path

import pytest

from moe.formats import hugging_face
from moe.generation.engine import Sampling
from rlhf.actors.reference import Reference
from rlhf.actors.rollout import Rollout
from rlhf.messages import Weights, pad
from tests.rlhf.tiny import requests, responses


def test_reference_and_rollout_give_the_same_log_probs(chat: Path) -> None:
    batch = pad(responses(chat))
    reference = Reference(chat, 1).logprobs(batch)
    assert (reference - batch.logprobs).abs().max().item() < 1e-4
    assert (batch.logprobs[batch.mask == 0] == 0).all() and batch.mask.sum() > 8
    assert (reference[batch.mask == 0] == 0).all()


def test_a_reissued_request_gives_the_same_sample_in_any_company(chat: Path) -> None:
    all_of_them, rollout = responses(chat), Rollout(chat, 1)
    again = [rollout.generate([request], Sampling(12))[0] for request in requests(chat)]
    assert [response.answer for response in again] == [response.answer for response in all_of_them]
    assert [response.key for response in again] == [request.key for request in requests(chat)]
    assert len({request.seed for request in requests(chat)}) == 8


def test_a_rollout_refuses_a_request_for_another_version(chat: Path) -> None:
    rollout = Rollout(chat, 1)
    with pytest.raises(AssertionError, match="this rollout holds version 0"):
        rollout.generate(requests(chat, version=1), Sampling(3))
    same = Weights.of(1, hugging_face.to_disk(hugging_face.load(chat)))
    assert rollout.load_weights(same) == 1
    assert len(rollout.generate(requests(chat, version=1), Sampling(3))) == 8


def test_it_answers_with_the_weights_it_was_given(chat: Path) -> None:
    rollout, named = Rollout(chat, 1), hugging_face.to_disk(hugging_face.load(chat))
    before = rollout.generate(requests(chat), Sampling(6))
    rollout.load_weights(Weights.of(0, {name: -tensor for name, tensor in named.items()}))
    moved = rollout.generate(requests(chat), Sampling(6))
    rollout.load_weights(Weights.of(0, named))
    assert [response.answer for response in moved] != [response.answer for response in before]
    assert rollout.generate(requests(chat), Sampling(6)) == before


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a stale policy does not answer",
        "rlhf/actors/rollout.py",
        "assert request.key.version == self.engine.version, (",
        "assert request.key.version >= 0, (",
        "test_a_rollout_refuses_a_request_for_another_version",
    ),
    (
        "an answer hangs on its request's own seed",
        "rlhf/actors/rollout.py",
        "                seed=request.seed,\n",
        "                seed=requests.index(request),\n",
        "test_a_reissued_request_gives_the_same_sample_in_any_company",
    ),
    (
        "rollout and learner agree on log-probs",
        "rlhf/forward.py",
        "logprobs = model.logits(hidden.before(wanted)).log_softmax(-1)",
        "logprobs = model.logits(hidden.at(wanted)).log_softmax(-1)",
        "test_reference_and_rollout_give_the_same_log_probs",
    ),
    (
        "a rollout takes over the weights",
        "moe/generation/engines.py",
        'hugging_face.from_disk(dict(named), self.model, f"the weights of version {version}")',
        "dict(named)",
        "test_it_answers_with_the_weights_it_was_given",
    ),
]

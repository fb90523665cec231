"""The learner as a plain object: what an update moves, when it is refused, and that it goes on bit for bit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conf.errors import InputError
from conf.knobs.model import Precision
from conf.knobs.reinforcement import Advantages, Ppo
from moe.formats import hugging_face
from moe.generation.engines import Ours
from moe.text.defaults import Defaults
from rlhf.actors.learner import Learner
from rlhf.actors.reference import Reference
from rlhf.actors.rollout import Rollout
from rlhf.losses import at_the_end, gae, token_rewards, whiten
from rlhf.messages import Batch, pad
from tests.rlhf.tiny import CFG, later, random_batch, responses


def learner(chat: Path, cfg: Ppo = CFG, replay: Path | None = None) -> Learner:
    return Learner(chat, cfg, Precision.fp32, 0, 1, replay)


def random_advantages(batch: Batch) -> torch.Tensor:
    return whiten(torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0)), batch.mask)


def test_an_update_makes_good_answers_likelier_and_is_applied_once(chat: Path) -> None:
    batch, made = pad(responses(chat)), learner(chat)
    scores = torch.tensor([1.0, -1.0] * 4)
    rewards = token_rewards(at_the_end(scores, batch.mask), batch.logprobs, batch.logprobs, batch.mask, 0.1)
    advantages, _ = gae(rewards, torch.zeros_like(rewards), batch.mask, gamma=1.0, lam=1.0)
    stats = made.update(batch, whiten(advantages, batch.mask), batch.logprobs)
    assert stats["train/rollout_logprob_abs_diff"] < 1e-4
    assert stats["actor/entropy"] > 0 and stats["actor/refused"] == 0.0
    rollout = Rollout(chat, 1)
    assert rollout.load_weights(made.weights()) == made.ready() == 1
    made.export(chat.parent / "after")
    moved = (Reference(chat.parent / "after", 1).logprobs(batch) - batch.logprobs).sum(1)
    assert moved[scores > 0].mean() > 0.5 and moved[scores < 0].mean() < -0.5
    with pytest.raises(AssertionError, match="update for version 0, but this is version 1"):
        made.update(batch, advantages, batch.logprobs)


def test_before_the_first_step_the_ratio_is_one(chat: Path) -> None:
    batch = pad(responses(chat))
    whole = replace(CFG, epochs=1, minibatches=1, lr=1e-8)
    made = learner(chat, whole)
    advantages = torch.full_like(batch.mask, 2.0) * batch.mask
    stats = made.update(batch, advantages, batch.logprobs)
    assert stats["actor/ppo_kl"] == pytest.approx(0.0, abs=1e-6) and stats["actor/pg_clipfrac"] == 0.0
    assert stats["actor/pg_loss"] == pytest.approx(-2.0, abs=1e-5)  # minus the advantage, at ratio 1
    assert stats["train/rollout_logprob_abs_diff"] < 1e-5  # the largest of all tokens


def test_in_the_critics_warm_up_only_time_passes(chat: Path) -> None:
    batch, made = pad(responses(chat)), learner(chat, replace(CFG, critic_warmup=1))
    before = made.weights()
    assert "actor/pg_loss" not in made.update(batch, random_advantages(batch), batch.logprobs)
    assert (made.weights().flat == before.flat).all() and made.weights().version == 1
    assert "actor/pg_loss" in made.update(later(batch, 1), random_advantages(batch), batch.logprobs)
    assert (made.weights().flat != before.flat).any()


def test_without_a_critic_there_is_no_warm_up(chat: Path) -> None:
    cfg = replace(CFG, critic_warmup=5, advantages=Advantages.group)
    batch = pad(responses(chat))
    assert "actor/pg_loss" in learner(chat, cfg).update(batch, random_advantages(batch), batch.logprobs)


def test_what_was_taken_continues_bit_for_bit(chat: Path, tmp_path: Path) -> None:
    batch = pad(responses(chat))
    advantages = random_advantages(batch)
    again = replace(CFG, max_disagreement=0.0)  # the same answers, though another policy would give others
    straight = learner(chat, again)
    straight.update(batch, advantages, batch.logprobs)
    straight.take()
    straight.update(later(batch, 1), advantages, batch.logprobs)  # what was taken is not moved by it
    straight.write(tmp_path / "saved")
    resumed = learner(chat, again)
    assert resumed.load(tmp_path / "saved", version=1) == 1
    resumed.update(later(batch, 1), advantages, batch.logprobs)
    assert (straight.weights().flat == resumed.weights().flat).all()
    assert resumed.ready() == 2


def test_a_state_from_before_the_first_step_is_the_beginning(chat: Path, tmp_path: Path) -> None:
    batch, made = pad(responses(chat)), learner(chat)
    made.take()
    made.write(tmp_path / "start")
    first = made.update(batch, random_advantages(batch), batch.logprobs), made.weights().flat
    made.load(tmp_path / "start", version=0)
    again = made.update(batch, random_advantages(batch), batch.logprobs), made.weights().flat
    assert again[0] == first[0] and (again[1] == first[1]).all()


def test_the_rows_of_minibatches_hang_on_seed_and_version(chat: Path) -> None:
    batch = pad(responses(chat))
    numbers = torch.arange(8.0).unsqueeze(1) * batch.mask

    def orders(seed: int, version: int) -> list[list[float]]:
        made = Learner(chat, CFG, Precision.fp32, seed, 1)
        made.version = version
        return [part["number"].amax(1).tolist() for part in made._minibatches(batch, {"number": numbers})]

    first = orders(0, 0)
    assert [len(part) for part in first] == [4] * 4  # two epochs of two
    for epoch in (first[:2], first[2:]):
        assert sorted(row for part in epoch for row in part) == list(range(8))
    assert first[:2] != first[2:]
    assert orders(0, 0) == first != orders(0, 1) and orders(1, 0) not in (first, orders(0, 1))


def test_a_learning_rate_that_ruins_the_model_is_named(chat: Path) -> None:
    batch = pad(responses(chat))
    made = learner(chat, replace(CFG, lr=1e30))
    with pytest.raises(InputError, match=r"^ppo.lr=1e\+30: no step of iteration 1 has a finite loss.* try a lower one"):
        for version in range(2):
            made.update(later(batch, version), random_advantages(batch), batch.logprobs)


def test_a_step_that_is_not_finite_moves_nothing(chat: Path) -> None:
    batch, made = pad(responses(chat)), learner(chat)
    advantages = random_advantages(batch)
    advantages[3] = float("nan")  # in one of the two minibatches of each epoch
    stats = made.update(batch, advantages, batch.logprobs)
    assert stats["actor/refused"] == 0.5
    assert torch.from_numpy(made.weights().flat).isfinite().all()


def test_replayed_samples_become_likelier_without_any_advantage(chat: Path, tmp_path: Path) -> None:
    said = {"form": "五言绝句", "talk": "春眠不觉晓"}
    lines = [
        {
            "id": task,
            "task": task,
            "messages": [{"role": "user", "content": task}, {"role": "assistant", "content": text}],
        }
        for task, text in said.items()
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    made = learner(chat, replace(CFG, replay=4, replay_weight=1.0), file)
    assert made.replay
    drawn, batch = made.replay.draw(0, 4), pad(responses(chat))
    before = Reference(chat, 1).logprobs(drawn).sum()
    stats = made.update(batch, torch.zeros_like(batch.mask), batch.logprobs)
    hugging_face.save(made.model, tmp_path / "after", Defaults({}, (), None))
    assert Reference(tmp_path / "after", 1).logprobs(drawn).sum() - before > 5
    assert stats["actor/replay_loss"] > 0


def test_models_and_what_they_learn_from_lie_where_the_actors_were_told(chat: Path) -> None:
    """As on a GPU, without one: tensors on meta have a device and no numbers."""
    assert Reference(chat, 1, "meta").model.device.type == "meta"
    engine = Rollout(chat, 1, device="meta").engine
    assert isinstance(engine, Ours) and engine.model.device.type == "meta"
    batch, made = random_batch(), learner(chat)
    made.model.to("meta")
    columns = {"advantages": random_advantages(batch), "reference": batch.logprobs}
    for part in made._minibatches(batch, columns):
        assert {values.device.type for values in part.values()} == {"meta"} and part.keys() > columns.keys()
    there = batch.to(torch.device("meta"))
    parts = (there.tokens, there.segments, there.mask, there.logprobs)
    assert {values.device.type for values in parts} == {"meta"} and there.version == batch.version


def test_steps_end_where_the_policy_has_gone_too_far(chat: Path) -> None:
    batch = pad(responses(chat))
    advantages = random_advantages(batch)
    fast = replace(CFG, epochs=4, minibatches=1, lr=0.1)
    free = learner(chat, fast).update(batch, advantages, batch.logprobs)
    assert "actor/stopped_after" not in free and free["actor/ppo_kl"] > 0.05
    made = learner(chat, replace(fast, stop_kl=0.05))
    told = made.update(batch, advantages, batch.logprobs)
    assert 1 <= told["actor/stopped_after"] < 4 and told["actor/ppo_kl"] <= 0.05
    assert made.ready() == 1


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a learner that is one process asks nothing of Ray",
        "rlhf/actors/ranks.py",
        "        if pending:  # to",
        "        if True:  # to",
        "test_without_a_critic_there_is_no_warm_up",
    ),
    (
        "an update is applied once",
        "rlhf/actors/trained.py",
        "assert batch.iteration == self.version, (",
        "assert batch.iteration <= self.version, (",
        "test_an_update_makes_good_answers_likelier_and_is_applied_once",
    ),
    (
        "minibatches of another version are others",
        "rlhf/actors/trained.py",
        "self.seed * 1_000_003 + self.version",
        "self.seed * 1_000_003",
        "test_the_rows_of_minibatches_hang_on_seed_and_version",
    ),
    (
        "advantages go with their rows",
        "rlhf/actors/trained.py",
        "{name: values[index, :width] for name, values in columns.items()}",
        "{name: values[: len(index), :width] for name, values in columns.items()}",
        "test_the_rows_of_minibatches_hang_on_seed_and_version",
    ),
    (
        "a step that is not finite moves nothing",
        "rlhf/actors/trained.py",
        "if taken.finite:\n                apply(",
        "if True:\n                apply(",
        "test_a_step_that_is_not_finite_moves_nothing",
    ),
    (
        "the knob of a ruined policy is named",
        "rlhf/actors/trained.py",
        'if stats[f"{name}/refused"] and all(stats[f"{name}/refused"]):',
        "if False:",
        "test_a_learning_rate_that_ruins_the_model_is_named",
    ),
    (
        "the critic's warm-up leaves the policy",
        "rlhf/actors/learner.py",
        "self.version >= self.cfg.critic_warmup",
        "self.version >= 0",
        "test_in_the_critics_warm_up_only_time_passes",
    ),
    (
        "GRPO waits for no critic",
        "rlhf/actors/learner.py",
        "self.cfg.advantages is not Advantages.gae or ",
        "",
        "test_without_a_critic_there_is_no_warm_up",
    ),
    (
        "the optimizer's state is continued",
        "rlhf/actors/trained.py",
        "checkpoint.load(folder, self.model, self.optimizer)",
        "checkpoint.load(folder, self.model)",
        "test_what_was_taken_continues_bit_for_bit",
    ),
    (
        "the optimizer begins anew where nothing was taken of it",
        "moe/training/optimizer.py",
        "optimizer.state.pop(parameter, None)",
        "pass",
        "test_a_state_from_before_the_first_step_is_the_beginning",
    ),
    (
        "what is written is what was taken",
        "rlhf/actors/trained.py",
        "checkpoint.write(folder, self._taken, ",
        "checkpoint.write(folder, checkpoint.take(self.model, self.optimizer), ",
        "test_what_was_taken_continues_bit_for_bit",
    ),
    (
        "an update's minibatches lie where the model does",
        "rlhf/actors/trained.py",
        "yield {name: values[own].to(self.model.device) for name, values in both.items()}",
        "yield {name: values[own] for name, values in both.items()}",
        "test_models_and_what_they_learn_from_lie_where_the_actors_were_told",
    ),
    (
        "an iteration's steps end where the policy has gone too far",
        "rlhf/actors/trained.py",
        'if name == "actor" and 0 < self.cfg.stop_kl < taken.metrics["actor/ppo_kl"]:',
        "if False:",
        "test_steps_end_where_the_policy_has_gone_too_far",
    ),
]

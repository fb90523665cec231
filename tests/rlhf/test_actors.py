"""The actors as plain objects, on a tiny random model.

Planted bugs these turn red: rollout and learner disagree on log-probs, an update applied
twice, a stale policy answering.
"""

import json
from pathlib import Path

import pytest
import torch

from conf.schema import Model, Ppo
from conf.schema import Tokenizer as TokenizerConfig
from moe import folder
from moe.chat import prompt_ids
from moe.decoder import new_decoder
from moe.engine import Sampling
from moe.tokenizer import Tokenizer
from moe.verse import Copies
from rlhf.actors import Critic, Judge, Learner, Reference, Rollout, flat_weights
from rlhf.losses import at_the_end, gae, token_rewards, whiten
from rlhf.messages import Key, Request, Sample, pad

CFG = Ppo(prompts=4, samples=2, minibatches=2, epochs=2, lr=1e-2, critic_lr=1e-2, critic_warmup=0, rollouts=1)


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    tokenizer = Tokenizer.train(["春眠不觉晓，处处闻啼鸟。"], TokenizerConfig(vocab_size=512, min_frequency=1))
    cfg = Model(
        hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4, expert_size=16, context=64, init_std=0.2
    )
    folder.save(new_decoder(cfg, tokenizer.padded_size, seed=1), tmp_path, stop=(tokenizer.im_end,), pad=tokenizer.pad)
    tokenizer.save(tmp_path)
    return tmp_path


def requests(chat: Path, version: int = 0) -> list[Request]:
    tokenizer = Tokenizer.load(chat)
    keys = [Key(0, f"q{i // 2}", i % 2, version) for i in range(8)]
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": "春" * (1 + i // 2)}]) for i in range(8)]
    return [Request(key, prompt, key.seed(7)) for key, prompt in zip(keys, prompts, strict=True)]


def samples(chat: Path) -> list[Sample]:
    return Rollout(chat, 1).generate(requests(chat), Sampling(12))


def test_reference_and_rollout_give_the_same_log_probs(chat: Path) -> None:
    batch = pad(samples(chat))
    reference = Reference(chat, 1).logprobs(batch)
    assert (reference - batch.logprobs).abs().max().item() < 1e-4
    assert (batch.logprobs[batch.mask == 0] == 0).all() and batch.mask.sum() > 8


def test_a_reissued_request_gives_the_same_sample_in_any_company(chat: Path) -> None:
    all_of_them, rollout = samples(chat), Rollout(chat, 1)
    again = [rollout.generate([request], Sampling(12))[0] for request in requests(chat)]
    assert [s.answer for s in again] == [s.answer for s in all_of_them]
    assert len({request.seed for request in requests(chat)}) == 8


def test_an_update_makes_good_answers_likelier_and_is_applied_once(chat: Path) -> None:
    batch, learner = pad(samples(chat)), Learner(chat, CFG, 0, 1)
    scores = torch.tensor([1.0, -1.0] * 4)
    rewards = token_rewards(at_the_end(scores, batch.mask), batch.logprobs, batch.logprobs, batch.mask, 0.1)
    advantages, _ = gae(rewards, torch.zeros_like(rewards), batch.mask, gamma=1.0, lam=1.0)
    stats = learner.update(batch, whiten(advantages, batch.mask))
    assert stats["train/rollout_logprob_abs_diff"] < 1e-4
    assert stats["actor/entropy"] > 0
    rollout = Rollout(chat, 1)
    rollout.load_weights(1, learner.weights())
    folder.save(rollout.model, chat / "after")
    moved = (Reference(chat / "after", 1).logprobs(batch) - batch.logprobs).sum(1)
    assert moved[scores > 0].mean() > 0.5 and moved[scores < 0].mean() < -0.5
    with pytest.raises(AssertionError, match="update for version 0, but this is version 1"):
        learner.update(batch, advantages)


def test_the_critic_learns_the_returns(chat: Path) -> None:
    batch, critic = pad(samples(chat)), Critic(chat, CFG, 0, 1)
    returns = batch.mask * torch.tensor([1.0, -1.0] * 4).unsqueeze(1)
    values = critic.values(batch)
    assert values.abs().max().item() == 0.0
    first = critic.update(batch, values, returns)["critic/vf_loss"]
    for version in range(1, 15):
        values = critic.values(batch)
        later = critic.update(
            type(batch)(version, batch.tokens, batch.segments, batch.mask, batch.logprobs), values, returns
        )
    assert first == pytest.approx(0.5, abs=0.1) and later["critic/vf_loss"] < 0.3 * first
    assert later["critic/vf_explained_var"] > 0.5


def test_a_rollout_refuses_a_request_for_another_version(chat: Path) -> None:
    rollout = Rollout(chat, 1)
    with pytest.raises(AssertionError, match="this rollout holds version 0"):
        rollout.generate(requests(chat, version=1), Sampling(3))
    rollout.load_weights(1, flat_weights(rollout.model))
    assert len(rollout.generate(requests(chat, version=1), Sampling(3))) == 8


def test_save_and_load_continue_bit_for_bit(chat: Path, tmp_path: Path) -> None:
    batch = pad(samples(chat))
    advantages = whiten(torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(0)), batch.mask)
    straight = Learner(chat, CFG, 0, 1)
    straight.update(batch, advantages)
    (tmp_path / "saved").mkdir()
    straight.save(tmp_path / "saved")
    resumed = Learner(chat, CFG, 0, 1)
    resumed.load(tmp_path / "saved", version=1)
    second = type(batch)(1, batch.tokens, batch.segments, batch.mask, batch.logprobs)
    straight.update(second, advantages)
    resumed.update(second, advantages)
    assert (straight.weights() == resumed.weights()).all()


def test_a_rhyme_is_paid_at_its_character_and_the_rest_at_the_end(chat: Path, tmp_path: Path) -> None:
    poem = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"
    tokenizer = Tokenizer.load(chat)  # it knows two of these characters: the others are three bytes each
    reward = tmp_path / "reward"
    folder.save(folder.load_scalar(chat, seed=0), reward, pad=tokenizer.pad)
    tokenizer.save(reward)
    Copies.of([]).save(tmp_path / "copies.npy")
    cfg = Ppo(**vars(CFG) | {"model_weight": 0.0, "rule_weight": 2.0})
    answer = [*tokenizer.encode(poem), tokenizer.im_end]
    query = {"task": "compose", "form": "五言绝句", "title": "明月"}
    sample = Sample(Key(0, "q", 0, version=0), [5, 6, 7], answer, [0.0] * len(answer), True)
    scores = Judge(reward, tmp_path / "copies.npy", 0.0, 1.0, cfg, 1).score([query], [sample])
    assert scores.rules.tolist() == pytest.approx([1.0]) and scores.earned.sum().item() == pytest.approx(2.0)
    rhyme = 3 + len(tokenizer.encode(poem[: poem.index("乡") + 1])) - 1  # its last byte, after a prompt of three
    paid = {place: amount for place, amount in enumerate(scores.earned[0].tolist()) if amount}
    assert paid == pytest.approx({rhyme: 2 * 0.7, 3 + len(answer) - 1: 2 * 0.3})


def test_replayed_samples_become_likelier_and_are_drawn_by_number(chat: Path, tmp_path: Path) -> None:
    said = {"form": "五言绝句", "talk": "春眠不觉晓"}
    lines = [
        {"task": task, "messages": [{"role": "user", "content": task}, {"role": "assistant", "content": text}]}
        for task, text in said.items()
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    cfg = Ppo(**vars(CFG) | {"replay": 4, "replay_weight": 1.0})
    batch, learner = pad(samples(chat)), Learner(chat, cfg, 0, 1, file)
    assert learner.replay
    drawn = learner.replay.draw(0, 4)
    answers = [
        learner.replay._tokenizer.decode(row[mask.bool()]) for row, mask in zip(drawn.tokens, drawn.mask, strict=True)
    ]
    assert answers == ["五言绝句", "春眠不觉晓"] * 2
    assert torch.equal(learner.replay.draw(3, 4).tokens, learner.replay.draw(3, 4).tokens)
    before = Reference(chat, 1).logprobs(drawn).sum()
    stats = learner.update(batch, torch.zeros_like(batch.mask))  # no advantage: only the replay moves the policy
    folder.save(learner.model, chat / "after")
    assert Reference(chat / "after", 1).logprobs(drawn).sum() - before > 5
    assert stats["actor/replay_loss"] > 0


def test_samples_of_several_versions_do_not_mix(chat: Path) -> None:
    a, b = samples(chat)[:2]
    stale = Sample(Key(0, "q0", 1, version=3), b.prompt, b.answer, b.logprobs, b.finished)
    with pytest.raises(AssertionError, match=r"several policy versions: \[0, 3\]"):
        pad([a, stale])

"""A tiny random chat model, and answers of it that the tests of reinforcement learning share."""

from dataclasses import replace
from pathlib import Path

import torch

from conf.knobs.model import Model
from conf.knobs.reinforcement import Actors, Ppo, Rollouts
from conf.knobs.text import Tokenizer as Settings
from moe.decoder import Decoder, new_decoder
from moe.formats import hugging_face
from moe.generation.engine import Sampling
from moe.text.chat import prompt_ids
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from rlhf.actors.rollout import Rollout
from rlhf.messages import Batch, Key, Request, Response, pad

CFG = Ppo(
    prompts=4,
    samples=2,
    minibatches=2,
    max_new_tokens=12,
    lr=1e-2,
    critic_lr=1e-2,
    critic_warmup=0,
    actors=Actors(rollout=Rollouts(count=1)),
)
MODEL = Model(
    hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=4, expert_size=16, context=64, init_std=0.2
)


def decoder(*, vocabulary: int = 96, head: tuple[str, ...] = (), qk_norm: bool = True) -> Decoder:
    """Without the losses of the router, which micro-batches do not add up to."""
    cfg = replace(MODEL, qk_norm=qk_norm, balance_coef=0.0, z_coef=0.0)
    return new_decoder(cfg, vocabulary, head=head, seed=1)


def save_chat(folder: Path, *, qk_norm: bool = True) -> Path:
    """A model folder with a tokenizer that knows few characters: the others are bytes."""
    tokenizer = Tokenizer.train(["春眠不觉晓，处处闻啼鸟。"], Settings(vocab_size=512, min_frequency=1))
    model = new_decoder(replace(MODEL, qk_norm=qk_norm), tokenizer.padded_size, seed=1)
    hugging_face.save(model, folder, Defaults.of(tokenizer, chat=True))
    return folder


def save_reward(chat: Path, folder: Path) -> Path:
    """A reward model that was never trained, beside the chat model that it comes from."""
    tokenizer = Tokenizer.load(chat)
    hugging_face.save(hugging_face.load_scalar(chat, seed=5), folder, Defaults.of(tokenizer, chat=True))
    return folder


def requests(chat: Path, version: int = 0) -> list[Request]:
    """Two of each of four queries."""
    tokenizer = Tokenizer.load(chat)
    keys = [Key(0, f"q{i // 2}", i % 2, version) for i in range(8)]
    prompts = [prompt_ids(tokenizer, [{"role": "user", "content": "春" * (1 + i // 2)}]) for i in range(8)]
    return [Request(key, prompt, key.seed(7)) for key, prompt in zip(keys, prompts, strict=True)]


def responses(chat: Path) -> list[Response]:
    return Rollout(chat, 1).generate(requests(chat), Sampling(12))


def random_batch(rows: int = 8, *, vocabulary: int = 96, version: int = 0) -> Batch:
    """Answers of different lengths, 3 to 6 tokens after prompts of 2 to 4."""
    dice = torch.Generator().manual_seed(3)

    def ids(count: int) -> list[int]:
        return torch.randint(0, vocabulary, (count,), generator=dice).tolist()

    made = []
    for row in range(rows):
        length = 3 + row % 4
        logprobs = (-torch.rand(length, generator=dice) - 3.5).tolist()
        key = Key(version, f"q{row // 2}", row % 2, version)
        made.append(Response(key, ids(2 + row % 3), ids(length), logprobs, True))
    return pad(made)


def later(batch: Batch, version: int) -> Batch:
    """The batch as if the policy of `version` had made it."""
    return replace(batch, version=version)

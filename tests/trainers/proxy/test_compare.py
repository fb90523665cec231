"""Small models say which text helps: the same number each time, and a bucket that is clean before one that is not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conf.knobs.model import Model
from conf.knobs.running import Cluster
from conf.knobs.text import Proxy, Tokens
from conf.knobs.text import Tokenizer as Settings
from conf.knobs.training import Optim, Sft, SpikeAction
from conf.schema import Config
from moe.text.tokenizer import Tokenizer
from trainers.loop.recipe import Plan
from trainers.proxy import training
from trainers.proxy.training import budget, measured, write

SHAPE = Model(
    hidden_size=32, layers=1, heads=2, kv_heads=1, head_dim=16, experts=2, top_k=1, expert_size=32, context=64
)
WORDS = "the a old small river house tree bird sings flows stands grows near far over under green quiet".split()


def sentences(count: int, noise: float, seed: int) -> list[str]:
    """Of a grammar that a small model learns in seconds, with this share of words shuffled letter by letter."""
    dice = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        words = [WORDS[int(dice.integers(0, 4))], WORDS[int(dice.integers(4, 8))], WORDS[int(dice.integers(8, 12))]]
        words += [WORDS[int(dice.integers(12, 16))], "the", WORDS[int(dice.integers(4, 8))]]
        dirty = ["".join(dice.permutation(list(word))) if dice.random() < noise else word for word in words]
        made.append(" ".join(dirty) + ".")
    return made


@pytest.fixture
def cfg() -> Config:
    return Config(
        model=SHAPE,
        optim=Optim(lr=1e-2),
        proxy=Proxy(tokens=24_000, batch_rows=8, row_length=64),
        tokens=Tokens(row_length=64),
        sft=Sft(row_length=64),
        cluster=Cluster(threads=1),
    )


def bits(cfg: Config, place: Path, noise: float) -> dict[str, float]:
    tokenizer = Tokenizer.train(sentences(300, 0.3, 9), Settings(vocab_size=400))
    tokenizer.save(place / "tokenizer")
    write(place / "parts" / "held_out", sentences(60, 0.0, 5), tokenizer, 64)
    write(place / "parts" / "000" / "rows", sentences(1500, noise, 1), tokenizer, 64, most=cfg.proxy.tokens)
    return measured(cfg, place / "parts" / "000", place / "tokenizer", 0)


@pytest.mark.slow
def test_cleaner_text_needs_fewer_bits_and_the_same_text_the_same(cfg: Config, tmp_path: Path) -> None:
    found = [bits(cfg, tmp_path / str(noise), noise) for noise in (0.0, 0.4, 0.9)]
    head, middle, tail = (one["bits_per_byte"] for one in found)
    assert head < middle - 0.02 and middle < tail - 0.02
    assert bits(cfg, tmp_path / "again", 0.4) == found[1]
    assert not (tmp_path / "again" / "parts" / "000" / "model-0").exists()


def test_no_row_is_left_out_because_it_surprises(cfg: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Plan] = []

    def seen(plan: Plan, feed: object) -> None:
        plans.append(plan)
        raise InterruptedError

    monkeypatch.setattr(training, "learn", seen)
    with pytest.raises(InterruptedError):
        bits(cfg, tmp_path, 0.0)
    assert plans[0].spikes.action is SpikeAction.none and plans[0].folder == tmp_path / "parts" / "000" / "model-0"


def test_every_part_has_the_same_steps(cfg: Config, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(sentences(50, 0.3, 9), Settings(vocab_size=400))
    for count in (20, 900):
        tokens = write(tmp_path / str(count), sentences(count, 0.0, 1), tokenizer, 64, most=4000)
        assert tokens < 4400 and (tokens > 3900) == (count == 900)
        assert budget(cfg, tmp_path / str(count)).steps == round(24_000 / (8 * 64))
    assert budget(replace(cfg, proxy=replace(cfg.proxy, tokens=1)), tmp_path / "20").steps == 1


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what surprises a proxy model is learnt too",
        "trainers/proxy/training.py",
        "action=SpikeAction.none",
        "action=plan.spikes.action",
        "test_no_row_is_left_out_because_it_surprises",
    ),
    (
        "every part is trained for one budget",
        "trainers/proxy/training.py",
        "round(cfg.proxy.tokens / (cfg.proxy.batch_rows * opened(rows).row_length))",
        "len(opened(rows)) // cfg.proxy.batch_rows",
        "test_every_part_has_the_same_steps",
    ),
]

"""Models beside each other: means, intervals and differences by hand."""

import pytest

from conf.knobs.model import Parent
from conf.knobs.reinforcement import Ppo, Start
from conf.schema import Config
from moe.tasks.task import Verdict
from rlhf import compare, ppo
from rlhf.comparison import Answered, distinct_2, interval, means, table


def answered(rewards: list[float], *, nats: list[float] | None = None, rhyme: int = 0) -> Answered:
    """`rhyme`: so many of the first have that measure, of value 1."""
    return Answered(
        texts=["a b a b"] * len(rewards),
        verdicts=[
            Verdict({}, reward, measures={"rhyme": 1.0} if number < rhyme else {})
            for number, reward in enumerate(rewards)
        ],
        lengths=[number + 1 for number in range(len(rewards))],
        scores=None,
        nats=nats,
    )


def test_an_interval_is_about_two_standard_errors_to_each_side() -> None:
    values = [0.0] * 60 + [1.0] * 40  # standard error of the mean: sqrt(.4 * .6 / 100) = .049
    found = interval(values, seed=1)
    assert found.mean == 0.4
    assert found.low == pytest.approx(0.4 - 1.96 * 0.049, abs=0.015)
    assert found.high == pytest.approx(0.4 + 1.96 * 0.049, abs=0.015)
    assert interval(values, seed=1) == found != interval(values, seed=2)
    same = interval([3.0] * 5, seed=0)
    assert (same.mean, same.low, same.high) == (3.0, 3.0, 3.0)


def test_an_interval_covers_the_truth_as_often_as_it_says() -> None:
    import numpy as np

    dice = np.random.default_rng(0)
    inside = sum(
        found.low <= 0.5 <= found.high for seed in range(200) for found in [interval(dice.random(40).tolist(), seed)]
    )
    assert 0.88 <= inside / 200 <= 0.99


def test_distinct_2_counts_pairs_of_words() -> None:
    assert distinct_2(["a b a b", "b a"]) == 2 / 4  # ab ba ab | ba
    assert distinct_2(["春风春风"]) == 2 / 3
    assert distinct_2(["one", ""]) == 0.0


def test_a_model_is_compared_query_by_query_with_the_chat_model() -> None:
    models = {
        "chat": answered([0.1, 0.9, 0.5], rhyme=2),
        "rl": answered([0.3, 1.1, 0.7], nats=[1.0, 2.0, 6.0], rhyme=3),
    }
    found = table(models, seed=0)
    # the rewards scatter, their difference does not
    assert found["rl"]["rules"]["mean"] == pytest.approx(0.7) and found["rl"]["rules"]["low"] < 0.65
    assert found["rl"]["rules"]["gain"] == pytest.approx({"mean": 0.2, "low": 0.2, "high": 0.2})
    assert "gain" not in found["chat"]["rules"] and "kl" not in found["chat"]
    assert found["rl"]["kl"]["mean"] == 3.0 and "gain" not in found["rl"]["kl"]
    assert found["rl"]["length"]["mean"] == 2.0
    assert found["rl"]["task/rhyme"]["gain"]["mean"] == 0.0  # over the two queries that have it in both
    assert found["chat"]["distinct_2"] == {"mean": pytest.approx(2 / 9)}
    assert "reward_model" not in found["rl"]
    assert means(found)["rl/kl"] == 3.0 and means(found)["chat/rules"] == pytest.approx(0.5)


def test_stages_that_are_there_are_read() -> None:
    cfg = Config()
    assert compare.reads(cfg, {"base", "chat", "rl", "tasks"}) == ["chat", "rl", "tasks"]
    assert compare.reads(cfg, {"chat", "cohft", "hfft", "reward"}) == ["chat", "hfft", "cohft", "tasks", "reward"]
    assert compare.reads(Config(parent=Parent(model="m")), {"hfft"}) == ["parent", "hfft", "tasks"]


def test_rl_reads_the_stage_that_it_starts_from() -> None:
    assert ppo.reads(Config(), {"base", "chat", "hfft"}) == ["base", "chat", "tasks", "reward"]
    cfg = Config(ppo=Ppo(start=Start.hfft, rewards={"rules": 1.0}))
    assert ppo.reads(cfg, {"chat", "hfft"}) == ["chat", "hfft", "tasks"]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an interval holds nineteen of twenty",
        "rlhf/comparison.py",
        "LEVEL = 0.95",
        "LEVEL = 0.5",
        "test_an_interval_is_about_two_standard_errors_to_each_side",
    ),
    (
        "queries are drawn with replacement",
        "rlhf/comparison.py",
        "dice.integers(0, len(array), len(array))",
        "dice.permutation(len(array))",
        "test_an_interval_is_about_two_standard_errors_to_each_side",
    ),
    (
        "a gain is of the same query in both models",
        "rlhf/comparison.py",
        "values[n] - base[name][n] for n in sorted(both)",
        "values[n] - base[name][m] for n, m in zip(sorted(both), sorted(both)[::-1], strict=True)",
        "test_a_model_is_compared_query_by_query_with_the_chat_model",
    ),
    (
        "rl reads the stage that it starts from",
        "rlhf/ppo.py",
        "started = [] if cfg.ppo.start is Start.chat else [cfg.ppo.start.value]",
        "started: list[str] = []",
        "test_rl_reads_the_stage_that_it_starts_from",
    ),
]

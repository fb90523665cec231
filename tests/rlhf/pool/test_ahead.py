"""Answers are made ahead of time: by the weights that they were promised, corrected for, and the same after a kill."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.tracking.tracker import read_metrics
from conf.errors import InputError
from conf.knobs.model import Precision
from conf.knobs.reinforcement import Ppo
from rlhf.actors.learner import Learner
from rlhf.messages import Key, Response, pad
from rlhf.record import FOLDER, read
from tests.rlhf.carried.alone import alone, weights
from tests.rlhf.graphs import PPO, Before, config
from tests.rlhf.tiny import CFG as TINY
from tests.rlhf.tiny import responses

CFG = replace(PPO, staleness=1, iterations=4, critic_warmup=0)


def steps(asked: list[Any]) -> list[str]:
    """What was asked, of the calls that say in which order things go."""
    told = []
    for ask in asked:
        if ask.method == "generate":
            key = ask.args[0][0].key
            told.append(f"answer {key.iteration} by {key.version}")
        elif ask.method == "update" and ask.actor == "learner":
            told.append(f"learn {ask.args[0].iteration}")
    return told


def test_an_iteration_is_answered_while_the_one_before_it_is_learnt_from(before: Before, tmp_path: Path) -> None:
    with alone(before, config(CFG)) as graph:
        before.learn(graph, config(CFG), tmp_path)
        made = steps(graph.supervisor.asked)  # type: ignore[attr-defined]
    assert made == [
        *("answer 0 by 0", "answer 1 by 0", "learn 0"),
        *("answer 2 by 1", "learn 1"),
        *("answer 3 by 2", "learn 2"),
        *("answer 4 by 3", "learn 3"),
    ]
    assert [line.get("rl/staleness", 0.0) for line in read_metrics(tmp_path)] == [0.0, 1.0, 1.0, 1.0]
    lesson = read(tmp_path / FOLDER, 3).lesson
    assert (lesson.batch.version, lesson.batch.behind, lesson.batch.iteration) == (1, 1, 2)


def test_one_after_the_other_is_what_it_was(before: Before, tmp_path: Path) -> None:
    cfg = config(replace(CFG, staleness=0))
    with alone(before, cfg) as graph:
        before.learn(graph, cfg, tmp_path)
        made = steps(graph.supervisor.asked)  # type: ignore[attr-defined]
        assert all(ask.first is None for ask in graph.supervisor.asked)  # type: ignore[attr-defined]
    assert made == [step for i in range(4) for step in (f"answer {i} by {i}", f"learn {i}")]
    assert not list(tmp_path.rglob("pool.bin"))


def test_answers_to_come_survive_a_kill(before: Before, tmp_path: Path) -> None:
    cfg = config(replace(CFG, iterations=2))
    with alone(before, cfg) as graph:
        before.learn(graph, cfg, tmp_path / "straight")
        straight = weights(graph).flat
    for iterations in (1, 2):
        cfg = config(replace(CFG, iterations=iterations))
        with alone(before, cfg) as graph:
            before.learn(graph, cfg, tmp_path / "cut")
            again = weights(graph).flat
    assert (again == straight).all()


def test_a_token_of_an_older_policy_weighs_what_it_has_become_but_no_more_than_the_cap(chat: Path) -> None:
    made = [replace(one, key=replace(one.key, iteration=1)) for one in responses(chat)]
    shift = [0.0, 0.5, 5.0, -1.0]  # nats by which the older policy gave the tokens of an answer less
    older = [
        replace(one, logprobs=[value - shift[place % 4] for value in one.logprobs]) for place, one in enumerate(made)
    ]
    batch = pad(older)
    assert (batch.version, batch.behind) == (0, 1)
    learner = Learner(chat, replace(TINY, staleness=1, importance_cap=2.0), Precision.fp32, 0, 1)
    learner.version = 1
    corrected, advantages, told = learner._corrected(batch, batch.mask)
    for row in range(8):
        weight = [1.0, 1.6487, 2.0, 0.3679][row % 4]
        assert advantages[row][batch.mask[row].bool()].tolist() == pytest.approx(
            [weight] * int(batch.mask[row].sum()), abs=1e-3
        )
    assert (corrected.logprobs - pad(made).logprobs).abs().max() < 1e-4
    assert told["rl/staleness"] == 1.0 and 0.2 < told["rl/importance/capped"] < 0.3
    stats = learner.update(batch, batch.mask, batch.logprobs)  # far from the rollout's, which is no disagreement
    assert stats["rl/importance/capped"] == told["rl/importance/capped"] and learner.version == 2


def test_answers_that_are_too_old_are_refused(chat: Path) -> None:
    old = pad([replace(one, key=replace(one.key, iteration=2)) for one in responses(chat)])
    learner = Learner(chat, replace(TINY, staleness=1), Precision.fp32, 0, 1)
    learner.version = 2
    with pytest.raises(AssertionError, match="answers of 2 versions ago: ppo.staleness forbids it"):
        learner.update(old, old.mask, old.logprobs)
    two = [Response(Key(each, "q", 0, version=0), [5], [7], [-1.0], True) for each in (1, 2)]
    with pytest.raises(AssertionError, match=r"responses of version 0 for iterations that are \[1, 2\] later"):
        pad(two)
    with pytest.raises(InputError, match="^ppo.staleness=1 must be 0 or more, and 0 with ppo.segment=5"):
        Ppo(staleness=1, segment=5, keep=0)


PLANTED = [  # promise, file, right code, bug, test
    (
        "answers to come are in the checkpoint",
        "rlhf/pool/ahead.py",
        "        if not len(self._pool):\n",
        "        if self._pool is not None:\n",
        "test_answers_to_come_survive_a_kill",
    ),
    (
        "a token weighs no more than the cap",
        "rlhf/actors/learner.py",
        "apart.clamp(max=self.cfg.importance_cap)",
        "apart",
        "test_a_token_of_an_older_policy_weighs_what_it_has_become_but_no_more_than_the_cap",
    ),
    (
        "an update is about the policy that learns",
        "rlhf/actors/learner.py",
        "return replace(batch, logprobs=now), advantages",
        "return batch, advantages",
        "test_a_token_of_an_older_policy_weighs_what_it_has_become_but_no_more_than_the_cap",
    ),
    (
        "what is older than it may be is not learnt from",
        "rlhf/actors/trained.py",
        "assert batch.behind <= self.cfg.staleness,",
        "assert batch.behind >= 0,",
        "test_answers_that_are_too_old_are_refused",
    ),
]

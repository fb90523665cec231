"""The graph on Ray: who is started, what is asked of whom, and who is named when it fails."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import ray
import torch

from conf.errors import InputError
from conf.knobs.alignment import Tasks
from conf.knobs.reinforcement import Ppo
from conf.schema import Config
from moe.generation.engine import Sampling
from moe.tasks.task import Verdict
from rlhf import graph as graph_module
from rlhf.advantages import gae
from rlhf.graph import Graph
from rlhf.losses import at_the_end
from rlhf.messages import Assessed, Batch, Key, Request, Response, Scored, pad
from rlhf.rollouts import admit, other_keys
from rlhf.supervisor import Lost
from tests.rlhf.graphs import GRPO, PPO, Before, config, weights

pytestmark = pytest.mark.ray


def answered(graph: Graph, before: Before, iteration: int = 0) -> tuple[list[Request], Batch]:
    graph.broadcast()
    _, requests = admit(before.queries, PPO, iteration, seed=3)
    return requests, pad(graph.rollout(requests, Sampling(PPO.max_new_tokens)))


def learnt(graph: Graph, before: Before, iteration: int = 0) -> tuple[Batch, Assessed, dict[str, float]]:
    """One iteration of PPO on rewards of 1 and -1."""
    _, batch = answered(graph, before, iteration)
    said = graph.assess(batch)
    rewards = at_the_end(torch.tensor([1.0, -1.0] * 4), batch.mask)
    advantages, returns = gae(rewards, said.values, batch.mask, torch.zeros(8), PPO)
    return batch, said, graph.update(batch, advantages, returns, said)


def test_ppo_has_every_actor_and_goes_once_round(of_ppo: Graph, before: Before) -> None:
    assert list(of_ppo.roles) == ["rollout 0", "reward", "reference", "learner", "critic"]
    assert of_ppo.trained == ["learner", "critic"] and of_ppo.scored
    first = weights(of_ppo)
    batch, said, stats = learnt(of_ppo, before)
    assert (said.reference - batch.logprobs).abs().max().item() < 1e-4
    assert said.values is not None and said.values.abs().max() == 0.0  # it expects nothing yet
    assert said.scored is not None and torch.equal(said.scored.mean, of_ppo.score(batch).mean)
    assert said.scored.spread.tolist() == [0.0] * 8
    assert stats["actor/refused"] == stats["critic/refused"] == 0.0 and stats["critic/vf_loss"] > 0
    assert (weights(of_ppo) != first).any()
    assert torch.equal(of_ppo.assess(batch).reference, said.reference)  # the chat model stays
    there = Scored(torch.ones(8), torch.zeros(8))
    assert of_ppo.assess(batch, there).scored is there


def test_answers_come_in_the_order_of_the_requests(of_ppo: Graph, before: Before) -> None:
    of_ppo.broadcast()
    _, requests = admit(before.queries, PPO, 0, seed=3)
    made = of_ppo.rollout(requests, Sampling(6))
    assert [response.key for response in made] == [request.key for request in requests]
    assert of_ppo.rollout(requests[::-1], Sampling(6)) == made[::-1]
    verdicts = of_ppo.judge([query.sample for query in before.queries for _ in range(2)], made)
    letters = [before.tokenizer.decode(response.answer) for response in made]
    assert [verdict.reward for verdict in verdicts] == [
        sum("a" <= letter <= "z" for letter in text) / max(1, len(text)) for text in letters
    ]


def test_grpo_has_neither_critic_nor_reward_model(of_grpo: Graph, before: Before) -> None:
    assert list(of_grpo.roles) == ["rollout 0", "reward", "reference", "learner"]
    assert not of_grpo.scored and of_grpo.trained == ["learner"]
    _, batch = answered(of_grpo, before)
    said = of_grpo.assess(batch)
    assert said.scored is None and said.values is None


def test_what_was_written_continues_bit_for_bit(of_ppo: Graph, before: Before, tmp_path: Path) -> None:
    learnt(of_ppo, before)
    write = of_ppo.writer()
    batch, _, told = learnt(of_ppo, before, 1)  # what is written is the state before
    write(tmp_path)
    straight = weights(of_ppo)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["critic", "learner"]
    of_ppo.load(tmp_path, version=1)
    again, _, same = learnt(of_ppo, before, 1)
    assert torch.equal(batch.tokens, again.tokens) and same == told
    assert (weights(of_ppo) == straight).all()


def starved(ppo: Ppo, cpus: float) -> Config:
    cfg = config(ppo, cpus=cpus)
    return replace(cfg, cluster=replace(cfg.cluster, start_timeout=10.0))


def test_too_little_room_is_told_at_once(of_ppo: Graph, before: Before) -> None:
    began, there = time.monotonic(), ray.cluster_resources()["CPU"]
    with pytest.raises(InputError) as error:
        before.start(starved(PPO, there))
    assert str(error.value) == (
        f"stage rl asks for 5 x CPU {there:g}, and the cluster has CPU {there:g} GPU 0; ask for less by "
        "ppo.actors.<role>.count, .cpus or .gpus, cluster.cpus_per_worker or cluster.gpus_per_worker, give it more "
        "nodes, or wait for them by cluster.wait=600"
    )
    with pytest.raises(InputError, match=f"^stage rl asks for 4 x CPU {there:g}, and the cluster has "):
        before.start(starved(GRPO, there))  # no critic
    assert time.monotonic() - began < 5


def test_what_an_actor_refuses_at_the_start_is_told(of_ppo: Graph, before: Before) -> None:
    cfg = replace(config(GRPO), tasks=Tasks(domain="tests.rlhf.nowhere"))
    with pytest.raises(InputError, match=r"^tasks.domain=tests.rlhf.nowhere: no such module; it is looked for from"):
        before.start(cfg)


def test_a_learner_that_died_before_its_weights_went_out_is_blamed(ray_cluster: None, before: Before) -> None:
    graph = before.start(config(GRPO))
    try:
        ray.kill(graph.roles["learner"])  # the rollout lives: it only never gets its weights
        with pytest.raises(Lost, match=r"^learner.publish: the actor died"):
            graph.broadcast()
    finally:
        graph.close()


def test_a_result_that_cannot_be_is_told_from_one_that_can() -> None:
    keys = [Key(3, "q", number, 3) for number in range(2)]
    asked = [Request(key, [5], key.seed(1)) for key in keys]
    made = [Response(key, [5], [7], [-1.0], True) for key in keys]
    assert other_keys(asked, made) == ""
    for wrong in (made[:1], [made[0], made[0]], made[::-1]):
        assert other_keys(asked, wrong) == "its answers are to other requests"
    assert graph_module._no_scores(2, Scored(torch.tensor([0.5, -1.0]), torch.zeros(2))) == ""
    assert (
        graph_module._no_scores(2, Scored(torch.tensor([0.5, float("nan")]), torch.zeros(2)))
        == "1 of 2 scores are not finite"
    )
    assert (
        graph_module._no_scores(2, Scored(torch.tensor([0.5]), torch.zeros(1))) == "scores of shape [1] for 2 answers"
    )
    assert graph_module._other_count(1, [Verdict({}, 0.0)]) == "" != graph_module._other_count(2, [Verdict({}, 0.0)])


PLANTED = [  # promise, file, right code, bug, test
    (
        "answers come in the order of their requests",
        "rlhf/graph.py",
        "return [made[request.key] for request in requests]",
        "return list(made.values())[::-1]",
        "test_answers_come_in_the_order_of_the_requests",
    ),
    (
        "what is written is what was there when it was asked for",
        "rlhf/graph.py",
        "def write(folder: Path) -> None:\n",
        "def write(folder: Path) -> None:\n"
        "            self.supervisor.ask([Ask(role, 'take') for role in self.trained])\n",
        "test_what_was_written_continues_bit_for_bit",
    ),
    (
        "too little room is refused, not waited for",
        "rlhf/actors/placement.py",
        "check_room(cfg.cluster, list(bundles.values())",
        "check_room(cfg.cluster, list(bundles.values())[:1]",
        "test_too_little_room_is_told_at_once",
    ),
    (
        "who did not give its weights is blamed",
        "rlhf/graph.py",
        '(self._weights,) = self.supervisor.ask([Ask("learner", "publish", kept=True)])',
        'self._weights = self.roles["learner"].weights.remote()',
        "test_a_learner_that_died_before_its_weights_went_out_is_blamed",
    ),
    (
        "an answer to another request is not taken",
        "rlhf/rollouts.py",
        "same = [response.key for response in made] == [request.key for request in asked]",
        "same = len(made) == len(asked)",
        "test_a_result_that_cannot_be_is_told_from_one_that_can",
    ),
    (
        "a score that is not a number never becomes 0",
        "rlhf/graph.py",
        "bad = int((~scores.isfinite()).sum())",
        "bad = int(scores.nan_to_num_(0.0).isnan().sum())",
        "test_a_result_that_cannot_be_is_told_from_one_that_can",
    ),
]

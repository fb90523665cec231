"""Graphs of tiny actors on Ray, which tests use one after the other: starting one takes longer than a run on it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import ray

from conf.knobs.alignment import Tasks
from conf.knobs.model import Precision
from conf.knobs.reinforcement import Advantages, Ppo
from conf.knobs.running import Cluster, Run
from conf.schema import Config
from moe.tasks.task import Source
from moe.text.tokenizer import Tokenizer
from rlhf.graph import Graph, start
from rlhf.ppo import learn
from rlhf.rewards import Scale
from rlhf.rollouts import Query, fitting
from tests.rlhf import toy
from tests.rlhf.tiny import CFG, save_chat, save_reward

PPO = replace(CFG, iterations=4, save_every=1, rewards={"model": 0.5, "rules": 1.0})
GRPO = replace(
    CFG, advantages=Advantages.group, rewards={"rules": 1.0}, prompts=4, samples=8, keep=0, iterations=3, minibatches=2
)


def config(ppo: Ppo, *, seed: int = 3, cpus: float = 0.2) -> Config:
    return Config(
        ppo=ppo, tasks=Tasks(domain="tests.rlhf.toy"), run=Run(seed=seed), cluster=Cluster(cpus_per_worker=cpus)
    )


@dataclass(frozen=True)
class Before:
    """The folders of the stages before rl, and the queries."""

    chat: Path
    reward: Path
    tasks: Path
    tokenizer: Tokenizer
    queries: Sequence[Query]

    @classmethod
    def made(cls, folder: Path) -> "Before":
        """In `folder`, which is there: untrained models, and the toy domain's samples."""
        chat, tasks = save_chat(folder / "chat"), folder / "tasks"
        nothing = Source(lambda _: iter(()), lambda _: iter(()), [], [], tasks)
        tasks.mkdir()
        samples = toy.samples(nothing, Tasks(), 0)
        for split, those in samples.items():
            lines = "".join(json.dumps(sample.line) + "\n" for sample in those)
            (tasks / f"{split}.jsonl").write_text(lines, "utf-8")
        tokenizer = Tokenizer.load(chat)
        queries = fitting(
            samples["prompts"], tokenizer, context=64, answer=CFG.max_new_tokens, knob="ppo.max_new_tokens"
        )
        return cls(chat, save_reward(chat, folder / "reward"), tasks, tokenizer, queries)

    def start(self, cfg: Config) -> Graph:
        scored = "model" in cfg.ppo.weights
        return start(
            cfg,
            chat=self.chat,
            tasks=self.tasks,
            reward=self.reward if scored else None,
            scale=Scale(0.0, 1.0) if scored else None,
            precision=Precision.fp32,
        )

    def learn(self, graph: Graph, cfg: Config, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        learn(graph, self.queries, self.tokenizer, cfg, folder)


@dataclass(frozen=True)
class Started:
    graph: Graph
    state: Path  # as it began

    @classmethod
    def of(cls, graph: Graph, state: Path) -> "Started":
        state.mkdir()
        graph.writer()(state)
        return cls(graph, state)

    def rewound(self) -> Graph:
        supervisor = self.graph.supervisor
        for name in [name for name, post in supervisor.posts.items() if post.handle is None and not post.gone]:
            supervisor.renew(name)  # it failed in a test that wanted it to
        supervisor.progressed()
        self.graph.begin((0, self.state))
        return self.graph


def weights(graph: Graph) -> np.ndarray:
    """The policy's."""
    return np.array(ray.get(graph.roles["learner"].weights.remote()).flat)

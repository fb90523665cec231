from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from rlhf.graph import Graph
from tests.rlhf.graphs import GRPO, PPO, Before, Started, config
from tests.rlhf.tiny import save_chat


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """The folder of a tiny chat model."""
    return save_chat(tmp_path / "chat")


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> Before:
    """What the stages before rl have left: chat, reward and tasks."""
    return Before.made(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def _of_ppo(ray_cluster: None, before: Before, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    graph = before.start(config(PPO))
    with closing(graph):
        yield Started.of(graph, tmp_path_factory.mktemp("start") / "state")


@pytest.fixture
def of_ppo(_of_ppo: Started) -> Graph:
    """PPO's graph as it began: with a reward model and a critic."""
    return _of_ppo.rewound()


@pytest.fixture(scope="session")
def _of_grpo(ray_cluster: None, before: Before, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    graph = before.start(config(GRPO))
    with closing(graph):
        yield Started.of(graph, tmp_path_factory.mktemp("start") / "state")


@pytest.fixture
def of_grpo(_of_grpo: Started) -> Graph:
    """The graph of GRPO and RLOO as it began: rules alone, no critic."""
    return _of_grpo.rewound()

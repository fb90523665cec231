"""The answers of iterations to come, made while others are learnt from: by weights `ppo.staleness` versions old.

Iteration i learns from what version i - staleness answered, whatever takes how long, so that the run is the same to the
bit each time. What is answered already lies in the pool, and in every checkpoint: the weights that made it are gone.
With `ppo.staleness=0` an iteration asks, waits and learns.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from conf.knobs.reinforcement import Ppo, Routes
from moe.generation.engine import Sampling
from moe.tasks.task import Sample
from rlhf.graph import Graph
from rlhf.messages import Request, Response
from rlhf.pool.pool import Pool
from rlhf.rollouts import Begun, Query, admit

Asked = tuple[list[Sample], list[Request]]


class Ahead:
    def __init__(self, graph: Graph, queries: Sequence[Query], cfg: Ppo, seed: int, checkpoint: Path | None) -> None:
        """With what the `checkpoint` holds."""
        self._graph, self._queries, self._cfg, self._seed = graph, queries, cfg, seed
        self._pool = Pool.read(checkpoint, cfg.pool_mb) if checkpoint else Pool(cfg.pool_mb)
        self._open: dict[int, tuple[Asked, Any]] = {}  # what is being answered, by the iteration that it is for
        # temperature 1 and no truncation: the ratio is then exact
        self._sampling = Sampling(cfg.max_new_tokens, routes=cfg.routes is Routes.rollout)

    def answers(self, iteration: int, begun: Sequence[Begun]) -> tuple[list[Sample], list[Request], list[Response]]:
        """(query of each, requests, answers) that the iteration learns from. The weights that were broadcast last are
        asked for those of the one furthest ahead, at the beginning of all until then; they make what is `begun`."""
        if not self._cfg.staleness:
            asked, requests = admit(self._queries, self._cfg, iteration, self._seed, begun)
            return asked, requests, self._graph.rollout(requests, self._sampling)
        for to in range(iteration, iteration + self._cfg.staleness + 1):
            if to not in self._open and not self._pool.find(iteration=to):
                asked, requests = admit(self._queries, self._cfg, to, self._seed, version=iteration)
                self._open[to] = (asked, requests), self._graph.begin_rollout(requests, self._sampling)
        if iteration in self._open:
            self._collect(iteration)
        made = self._pool.take(self._pool.find(iteration=iteration))
        version = made[0].key.version
        return *admit(self._queries, self._cfg, iteration, self._seed, version=version), made

    def beside(self, write: Callable[[Path], None]) -> Callable[[Path], None]:
        """`write`, which writes a checkpoint's folder, with the answers to come in it, for which it waits."""
        for iteration in sorted(self._open):
            self._collect(iteration)
        if not len(self._pool):
            return write
        pool = self._pool.writer()

        def both(folder: Path) -> None:
            write(folder)
            pool(folder)

        return both

    def _collect(self, iteration: int) -> None:
        """Wait for the answers for an iteration, and put them into the pool."""
        (asked, requests), begun = self._open.pop(iteration)
        self._pool.put(self._graph.answers(requests, begun), [query.task for query in asked])

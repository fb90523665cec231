"""Three iterations of PPO by the six actors on one GPU: rollout (two), reward, reference, critic, learner."""

import shutil
import tempfile
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.gpu.machine import Skipped

NEEDS = ("ray", "hydra", "omegaconf", "rich", "pypinyin", "pyarrow", "psutil")
SHARE = 0.15  # of the GPU, for each of six
PHASES = ("gen", "assess", "adv", "update", "update_weights")


def run(toy: bool) -> dict[str, Any]:
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise Skipped(f"not installed: {', '.join(missing)}")
    from cluster.connect import connect  # before ray, which reads what it sets
    from cluster.tracking.tracker import read_metrics
    from conf.knobs.reinforcement import Actors
    from conf.knobs.running import Cluster
    from tests.rlhf.graphs import PPO, Before, config

    place = Path(tempfile.mkdtemp(prefix="conclave-check-"))
    import ray

    try:
        before, cfg = Before.made(place), config(replace(PPO, iterations=3, actors=Actors()))
        cfg.cluster = Cluster(
            cpus_per_worker=0.2, gpus_per_worker=0.0 if toy else SHARE, temp_dir=str(place), object_store_mb=256
        )
        connect(cfg.cluster)
        graph = before.start(cfg)
        with closing(graph):
            found = {name: ray.get(actor.__ray_call__.remote(place_of)) for name, actor in graph.roles.items()}
            assert set(found.values()) == {cfg.cluster.device}, f"models lie on {found}"
            before.learn(graph, cfg, place / "rl")
        lines = [line for line in read_metrics(place / "rl") if "actor/pg_loss" in line]
        assert len(lines) == 3, f"{len(lines)} iterations"
        last = lines[-1]
        return {
            "roles": found,
            "seconds": {name: round(last[f"timing_s/{name}"], 3) for name in PHASES if f"timing_s/{name}" in last},
            "rollout_logprob_abs_diff": max(line["train/rollout_logprob_abs_diff"] for line in lines),
        }
    finally:
        ray.shutdown()
        shutil.rmtree(place, ignore_errors=True)


def place_of(actor: Any) -> str:
    """The device of an actor's model; called inside it."""
    if hasattr(actor, "models"):  # the reward actor may have several
        return str(actor.models[0][0].device.type)
    model = actor.engine.model if hasattr(actor, "engine") else actor.model
    return str(model.device.type)

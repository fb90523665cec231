"""What runs on a GPU, run on a device that is none (`tests.gpu.elsewhere`): that nothing meets a tensor of the CPU's.

`python -m tests.gpu.strict loop FOLDER`, `ppo FOLDER`, `closing RUN`: of the last, a run of all stages.
"""

from tests.gpu import elsewhere  # isort: skip  # it changes torch before anything of ours is imported

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from conf.entry import compose
from conf.knobs.alignment import RewardLoss
from conf.knobs.reinforcement import KlIn
from conf.knobs.running import Cluster
from conf.knobs.training import Optim, Optimizer
from moe.formats import certificate, checkpoints, hugging_face
from moe.tasks.measure import read_task_file
from moe.text.tokenizer import Tokenizer
from moe.training import checkpoint
from rlhf import closing as rl_closing
from rlhf.rewards import Scale
from rlhf.rollouts import fitting
from tests.gpu.elsewhere import NAME, Card
from tests.rlhf.carried.alone import alone
from tests.rlhf.graphs import GRPO, PPO, Before, config
from tests.trainers.training import Broken, plan_for, run
from trainers import closing, prune
from trainers.rows import difficulty
from trainers.rows.rows import Rows


def loop(folder: Path) -> None:
    """Training with evaluations, checkpoints and another start, by both optimizers."""
    torch.set_default_device(elsewhere.NAME)
    for kind, ema in ((Optimizer.muon, 0.0), (Optimizer.adamw, 0.9)):
        fit = {"steps": 4, "save_every": 2, "keep": 3}
        plan = plan_for(folder / kind.value, fit=fit, optim=Optim(kind=kind, lr=1e-3, ema=ema))
        plan = replace(plan, cluster=replace(plan.cluster, gpus_per_worker=1.0, deterministic=bool(ema)))
        with contextlib.suppress(Broken):
            run(plan, until=3)
        state = run(plan)
        assert state.step == 4 and all(isinstance(p, Card) for p in state.model.parameters())


def ppo(folder: Path) -> None:
    """Two iterations of PPO, answered ahead of time, and of GRPO by all actors."""
    kinds = {"ppo": replace(PPO, staleness=1), "grpo": replace(GRPO, kl_in=KlIn.loss)}
    for name, kind in kinds.items():
        (folder / name).mkdir(parents=True)
        before, cfg = Before.made(folder / name), config(replace(kind, iterations=2))
        cfg.cluster = Cluster(gpus_per_worker=0.1)
        with alone(before, cfg, NAME) as made:
            for actor in made.roles.values():
                several = [model for model, _ in getattr(actor, "models", [])]  # the reward actor's
                own = actor.engine if hasattr(actor, "engine") else actor
                for model in [*several, *([own.model] if hasattr(own, "model") else [])]:
                    wrong = [name for name, p in model.named_parameters() if not isinstance(p, Card)]
                    assert not wrong, f"{actor}: {wrong} lie elsewhere"
            before.learn(made, cfg, folder / name / "rl")


def closing_measurements(run: Path) -> None:
    """What stages measure of what they have made."""
    small = "evaluate.prompts=4 evaluate.rows=8 evaluate.max_new_tokens=8 ppo.max_new_tokens=8 pipeline.samples=1"
    cfg = compose(
        ["preset=test", f"run.dir={run.parent}", f"run.name={run.name}", *small.split(), "cluster.gpus_per_worker=1"]
    )
    tokenizer, tasks, val = Tokenizer.load(run / "chat"), run / "tasks", run / "tokens" / "val"
    samples = read_task_file(tasks / "val.jsonl", limit=6)
    queries = fitting(
        read_task_file(tasks / "prompts.jsonl", limit=4), tokenizer, context=64, answer=8, knob="ppo.max_new_tokens"
    )
    closing.of_base(run / "base", val, cfg)
    closing.of_chat(run / "chat", run / "base", val, samples, [], cfg)
    closing.of_prompted(run / "chat", cfg)
    closing.of_reward(run / "reward", run / "reward" / "rows" / "val", RewardLoss.pairwise, cfg.cluster)
    rl_closing.of_rl({name: run / name for name in ("base", "chat", "rl")}, tasks, queries, cfg)
    rewarded = (run / "reward", Scale(0.0, 1.0))
    rl_closing.compared({name: run / name for name in ("chat", "rl")}, tasks, rewarded, None, cfg)
    list(difficulty.answer_losses(run / "base", [[([1, 5, 6, 7], [0, 0, 1, 1])]], cfg.cluster))
    model = hugging_face.load(run / "base")
    assert all(isinstance(p, Card) for p in model.parameters())
    prune.expert_load(model, Rows(val), limit=4)
    parent = compose([f"parent.model={run / 'base'}"]).parent
    certificate.logits(checkpoints.new_from(parent, 0), certificate.batch(model.vocab_size))


class _Cluster(Cluster):
    @property
    def device(self) -> str:
        return elsewhere.NAME if self.gpus_per_worker else "cpu"


def _saved(tensors: dict[str, torch.Tensor], *rest: Any, **more: Any) -> None:
    save_file(elsewhere.plain(tensors), *rest, **more)


def _take(cfg: Cluster) -> None:
    torch.set_default_device(cfg.device)


CASES = {"loop": loop, "ppo": ppo, "closing": closing_measurements}


if __name__ == "__main__":
    Cluster.device = _Cluster.device  # type: ignore[method-assign,assignment]
    checkpoint.save_file = hugging_face.save_file = _saved  # type: ignore[attr-defined]
    for module in (closing, difficulty, rl_closing):
        module.take_device = _take  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    CASES[sys.argv[1]](Path(sys.argv[2]))

"""Small stages that W&B is told of."""

from pathlib import Path
from typing import Any

from cluster.run import open_stage
from cluster.tracking.tracker import Tracker
from conf.knobs.running import Run, TrackerKind
from conf.knobs.running import Tracker as Knobs
from conf.schema import Config


def config(folder: Path, **knobs: Any) -> Config:
    return Config(run=Run(name="r", dir=str(folder), seed=7), tracker=Knobs(kind=TrackerKind.wandb, **knobs))


def chat(cfg: Config) -> Path:
    """A stage tasks, and a stage chat that reads it: four steps, a spike at the third."""
    with open_stage(cfg, "tasks", reads=[], settings={}) as stage:
        (stage.folder / "train.jsonl").write_text('{"id": "s", "task": "moon"}\n')
        stage.finish({"train": 1.0})
    with open_stage(cfg, "chat", reads=["tasks"], settings={}) as stage:
        with Tracker(stage.folder) as tracker:
            for step in range(1, 5):
                loads = {f"moe/{layer}/load/{expert}": (expert + 1) / 6 for layer in range(2) for expert in range(3)}
                samples = [{"prompt": "p", "answer": f"a{step}"}]
                tracker.log({"loss": 1 / step, "val/moon/loss": step / 8, **loads}, step, samples=samples)
            tracker.log({"incident": "step 3 left out: loss 9.1"}, 4)
            tracker.log({"moe/1/alarm/dead": "layer 1: expert 0 gets no token", "stopped": "doctor.stop=true"}, 4)
        (stage.folder / "config.json").write_text("{}")
        (stage.folder / "answers.json").write_text('[{"id": "q", "answer": "月", "reward": 0.5, "reasons": ["short"]}]')
        stage.finish({"form_ok": 0.5, "forgetting": 1.25})
    return stage.folder

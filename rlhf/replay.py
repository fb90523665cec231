"""Make the update of one iteration again, alone, and compare its numbers with those that the run logged.

It needs what `ppo.keep_samples` keeps, and a state before: the newest checkpoint of an earlier iteration, or the models
that the stage began with, from which the kept iterations lead on. Neither Ray nor a rollout takes part, so that a
debugger, a profiler or a changed loss can look at exactly what the run learnt from.
"""

from conf.entry import early, job

early(__name__)

from pathlib import Path

from cluster.checkpoints import newest_checkpoint
from cluster.run import stage_folder
from cluster.tracking.tracker import read_metrics
from conf.errors import InputError
from conf.knobs.model import Precision
from conf.knobs.running import Cluster
from conf.schema import Config
from rlhf.actors.critic import Critic
from rlhf.actors.learner import Learner
from rlhf.record import FOLDER, Lesson, Record, read, recorded


@job
def main(cfg: Config) -> dict[str, float]:
    """Print the numbers of `replay.step`, each beside the logged one; returns them."""
    folder = stage_folder(cfg, "rl")
    wanted = read(folder / FOLDER, cfg.replay.step)
    step = wanted.about["step"]
    found = again(folder, wanted, cfg.cluster.device)
    lines = [line for line in read_metrics(folder) if line["step"] == step and "attempt" not in line]
    logged = lines[-1] if lines else {}
    width = max(map(len, found))
    for name, value in found.items():
        before = logged.get(name)
        told = "the same" if value == before else f"logged {before!r}" if name in logged else "not logged"
        print(f"{name:{width}}  {value!r}  {told}")
    other = [name for name, value in found.items() if value != logged.get(name)]
    print(
        f"step {step}: {len(other)} of {len(found)} numbers differ; another processor, another torch, other "
        "cluster.threads or a changed code make other bits"
        if other
        else f"step {step}: all {len(found)} numbers are the same, to the bit"
    )
    return found


def again(folder: Path, wanted: Record, device: str = "cpu") -> dict[str, float]:
    """What learner and critic say of the update of the record `wanted` of the stage's `folder`. Raises `InputError`
    where an iteration between it and the state before is not kept."""
    about, cfg, step = wanted.about, wanted.ppo, wanted.about["step"]
    saved = newest_checkpoint(folder / "checkpoints", at_most=step - 1)
    first = saved[0] if saved else 0
    there = {number for number, _ in recorded(folder / FOLDER)}
    if missing := [number for number in range(first + 1, step) if number not in there]:
        raise InputError(
            f"replay.step={step}: from the state at {first} it takes steps {first + 1}-{step}, and {folder / FOLDER} "
            f"has no step {missing[0]}; ppo.keep_samples keeps {cfg.keep_samples}"
        )
    run, precision, threads = folder.parent, Precision(about["precision"]), about["threads"]
    trained = (cfg, precision, about["seed"], threads)
    slots = about.get("slots", 0)
    where = device, Cluster(deterministic=True, slots=slots) if slots else None
    learner = Learner(run / about["policy"], *trained, run / "tasks" / "train.jsonl", *where)
    critic = Critic(run / about["critic"], *trained, *where) if about["critic"] else None
    if saved:
        learner.load(saved[1] / "learner", first)
        if critic:
            critic.load(saved[1] / "critic", first)
    for number in range(first + 1, step):
        print(f"step {number} leads there", flush=True)
        _learn(learner, critic, read(folder / FOLDER, number).lesson)
    return _learn(learner, critic, wanted.lesson)


def _learn(learner: Learner, critic: Critic | None, lesson: Lesson) -> dict[str, float]:
    stats = learner.update(lesson.batch, lesson.advantages, lesson.reference)
    if critic is not None:
        assert lesson.values is not None and lesson.returns is not None
        stats |= critic.update(lesson.batch, lesson.values, lesson.returns)
    return stats


if __name__ == "__main__":
    main()

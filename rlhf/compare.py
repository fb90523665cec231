"""Compare the models of a run, those that there are of chat, hfft, cohft and rl, on the same held-out queries.

Of each measure of the domain's rules, the rules' and the reward model's score, the KL to the chat model and the length:
the mean with its 95 % interval, and how far it is from the chat model's, with its interval too.
"""

from conf.entry import early, job

early(__name__)

from collections.abc import Collection

from cluster.connect import connect, on_worker
from cluster.run import make, model_stage, open_stage, present
from cluster.storage import write_json
from conf.schema import Config
from moe.text.tokenizer import Tokenizer
from rlhf import closing
from rlhf.comparison import means
from rlhf.rewards import scored_by

TABLE, SAMPLES = "comparison.json", "samples.json"
ALIGNED = ("hfft", "cohft", "rl")


def reads(cfg: Config, there: Collection[str]) -> list[str]:
    aligned = [stage for stage in ALIGNED if stage in there]
    return [model_stage(cfg, "chat", there), *aligned, "tasks", *(["reward"] if "reward" in there else [])]


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the stages of the models, tasks, and reward where there is one; write comparison.json; returns its means.
    When a model is another or there is a new one, the comparison is made again."""
    if model_stage(cfg, "chat", present(cfg)) == "parent":
        make(cfg, "parent")
    origin, *others = needs = reads(cfg, present(cfg, finished=True))
    settings = {"pipeline.samples": cfg.pipeline.samples, **cfg.evaluate.measure()}
    measured = (TABLE, SAMPLES)
    with open_stage(cfg, "compared", reads=needs, settings=settings, measured=measured, measures=True) as stage:
        if stage.done:
            return stage.metrics
        folders = {"chat": stage.input(origin), **{name: stage.input(name) for name in others if name in ALIGNED}}
        tokenizer = Tokenizer.load(folders["chat"])
        reward = scored_by(stage.input("reward"), tokenizer) if "reward" in needs else None
        connect(cfg.cluster)
        asked = (folders, stage.input("tasks"), reward, cfg)
        compared, samples = on_worker(cfg.cluster, closing.compared, *asked, within=cfg.evaluate.timeout)
        write_json(stage.folder / TABLE, compared)
        write_json(stage.folder / SAMPLES, samples)
        return stage.finish(means(compared))


if __name__ == "__main__":
    main()

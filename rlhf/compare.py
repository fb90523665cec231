"""Compare the models of a run, those that there are of chat, hfft, cohft and rl, on the same held-out queries.

Of each measure of the domain's rules, the rules' and the reward model's score, each term of the reward, the KL to the
chat model and the length: the mean with its 95 % interval, and how far it is from the chat model's, with its interval
too. And how often each model's answer is better than the chat model's, as `compare.wins` says: at best a judge that no
training used. Models under another `ppo.name`, and those of `compare.models`, stand beside them.
"""

from conf.entry import early, job

early(__name__)

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from cluster.connect import connect, on_worker
from cluster.run import make, model_stage, open_stage, present
from cluster.storage import MANIFEST, write_json
from conf.errors import InputError
from conf.knobs.reinforcement import Wins
from conf.schema import Config
from moe.tasks.domain import Domain
from moe.tasks.measure import read_task_file
from moe.text.tokenizer import Tokenizer
from rlhf import closing, rewards
from rlhf.comparison import FIRST, Answered, means, table
from rlhf.judges import ai, wins

TABLE, SAMPLES, JUDGE = "comparison.json", "samples.json", "judge.json"
ALIGNED = ("hfft", "cohft", "rl")


def reads(cfg: Config, there: Collection[str]) -> list[str]:
    aligned = [stage for stage in ALIGNED if stage in there]
    return [model_stage(cfg, "chat", there), *aligned, "tasks", *(["reward"] if "reward" in there else [])]


def check(cfg: Config) -> None:
    """Raise `InputError` for a model that is not there."""
    for name, folder in cfg.compare.models.items():
        if not (Path(folder) / "config.json").is_file():
            raise InputError(f"compare.models.{name}={folder}: no model here (config.json is missing)")


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the stages of the models, tasks, and reward where there is one; write comparison.json, and judge.json, which
    says who judged; returns the means. When a model is another or there is a new one, the comparison is made again."""
    check(cfg)
    if model_stage(cfg, "chat", present(cfg)) == "parent":
        make(cfg, "parent")
    needs = reads(cfg, present(cfg, finished=True))
    needs += named(cfg)
    more = {name: Path(folder).absolute() for name, folder in cfg.compare.models.items()}
    judge = wins.judge_of(cfg, {name: cfg.run.folder / name for name in needs if is_model(name)} | more)
    settings = {
        "pipeline.samples": cfg.pipeline.samples,
        "compare": {"models": {name: ai.digests(folder) for name, folder in more.items()}, **wins.identity(cfg, judge)},
        **cfg.evaluate.measure(),
    }
    measured = (TABLE, SAMPLES, JUDGE)
    with open_stage(cfg, "compared", reads=needs, settings=settings, measured=measured, measures=True) as stage:
        if stage.done:
            return stage.metrics
        folders = {
            FIRST: stage.input(needs[0]),
            **{name: stage.input(name) for name in needs if is_model(name)},
            **more,
        }
        tokenizer = Tokenizer.load(folders[FIRST])
        reward = rewards.scored_by(stage.input("reward"), tokenizer) if "reward" in needs else None
        held = Path(cfg.compare.reward) if judge.kind is Wins.reward else None
        connect(cfg.cluster)
        asked = (folders, stage.input("tasks"), reward, held, cfg)
        models, samples = on_worker(cfg.cluster, closing.compared, *asked, within=cfg.evaluate.timeout)
        models, took = judged(models, stage.input("tasks"), judge.kind, cfg)
        compared = table(models, cfg.run.seed)
        write_json(stage.folder / TABLE, compared)
        write_json(stage.folder / SAMPLES, samples)
        write_json(stage.folder / JUDGE, judge.line)
        print(f"compared: {judge.told}", flush=True)
        return stage.finish(means(compared) | took)


def named(cfg: Config) -> list[str]:
    """The finished stages of reinforcement learning under other names."""
    return sorted(path.parent.name for path in cfg.run.folder.glob(f"rl-*/{MANIFEST}") if "." not in path.parent.name)


def is_model(stage: str) -> bool:
    return stage in ALIGNED or stage.startswith("rl-")


def judged(
    models: Mapping[str, Answered], tasks: Path, kind: Wins, cfg: Config
) -> tuple[dict[str, Answered], dict[str, float]]:
    """The models with their wins against the chat model, and what asking took."""
    first, found, took = models[FIRST], dict(models), dict[str, float]()
    queries = read_task_file(tasks / "test_prompts.jsonl", limit=cfg.evaluate.prompts)
    principles = Domain.of(cfg.tasks).chosen(cfg.rank.principles)
    for name, model in models.items():
        if name == FIRST:
            continue
        if kind is Wins.ai:
            won, told = wins.asked(queries, model.answers, first.answers, principles, cfg)
            took = {each: took.get(each, 0.0) + value for each, value in told.items()}
        elif kind is Wins.reward:
            assert model.held is not None and first.held is not None
            won = dict(enumerate(wins.better(model.held, first.held)))
        else:
            own, other = ([verdict.reward for verdict in each.verdicts] for each in (model, first))
            won = dict(enumerate(wins.better(own, other)))
        found[name] = replace(model, wins=won)
    return found, took


if __name__ == "__main__":
    main()

"""Reinforcement learning on a graph of Ray actors: rollout, reward, reference, learner, and a critic for PPO.

`ppo.advantages=gae` is PPO, `group` is GRPO, `leave_one_out` is RLOO; what an answer earns is in `rlhf.rewards`.
"""

from conf.entry import early, job

early(__name__)

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from cluster.checkpoints import newest_checkpoint, newest_step
from cluster.connect import connect, on_worker
from cluster.progress import follow
from cluster.run import make, model_stage, open_stage, present
from cluster.saver import Saver
from cluster.stopping import Request, deferred
from cluster.storage import write_json
from cluster.tracking.tracker import Tracker
from conf.errors import InputError
from conf.knobs.model import Precision
from conf.knobs.reinforcement import KlEstimate, Ppo, Start
from conf.schema import Config
from moe.formats import hugging_face
from moe.tasks.measure import read_task_file
from moe.tasks.task import Verdict
from moe.text.tokenizer import Tokenizer
from rlhf import closing as measured
from rlhf import rewards
from rlhf.actors import placement
from rlhf.actors.rehearsal import tasks_of
from rlhf.advantages import ADVANTAGES, heard
from rlhf.carried.state import Carried
from rlhf.graph import Graph, start
from rlhf.losses import token_rewards
from rlhf.messages import Response, pad
from rlhf.pool.ahead import Ahead
from rlhf.record import ASKED, FOLDER, Answered, Recorder
from rlhf.reporting import Stopwatch, answer_metrics, hacked, learning_metrics, to_look_at
from rlhf.rollouts import Query, fitting, groups, in_order, numbered
from rlhf.selection import widest
from rlhf.supervisor import surviving

KEEP = 2  # checkpoints
MEASURED = ("answers.json", "samples.json")  # files that the closing measurement writes


def reads(cfg: Config, there: Collection[str]) -> list[str]:
    """The base model is only shown beside the others, and so is the chat model where rl starts from another."""
    shown = ["base"] if "base" in there else []
    started = [] if cfg.ppo.start is Start.chat else [cfg.ppo.start.value]
    scored = ["reward"] if "model" in cfg.ppo.weights else []
    return [*shown, model_stage(cfg, "chat", there), *started, "tasks", *scored]


def check(cfg: Config) -> None:
    """Raise `InputError` for a reward, a precision or a placement that cannot be."""
    placement.check(cfg)
    rewards.check(cfg.ppo.rewards, cfg.ppo.terms)
    precision(cfg)


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the chat (or parent) and tasks stages, that of `ppo.start`, and reward where the reward has a model; write
    the rl model; returns the domain's measures on held-out queries."""
    check(cfg)
    scored = "model" in cfg.ppo.weights
    settings = {
        "ppo": cfg.ppo.decisive,
        "compute.precision": cfg.compute.precision,
        "pipeline.samples": cfg.pipeline.samples,
        **cfg.evaluate.measure(),
    }
    if (origin := model_stage(cfg, "chat", present(cfg))) == "parent":
        make(cfg, "parent")
    needs = reads(cfg, present(cfg))
    longer = partial(lengthened, cfg.ppo)
    more: dict[str, Any] = {
        "measured": MEASURED,
        "longer": longer,
        "outside": [Path(folder) for folder in cfg.ppo.ensemble],
    }
    with open_stage(cfg, cfg.ppo.stage, reads=needs, settings=settings, **more) as stage:
        if stage.done:
            return stage.metrics
        chat, tasks = stage.input(origin), stage.input("tasks")
        folders = {"base": stage.input("base")} if "base" in needs else {}
        folders |= {"chat": chat}
        folders |= {name: stage.input(name) for name in needs if name == cfg.ppo.start.value}
        folders |= {"rl": stage.folder}
        tokenizer = Tokenizer.load(chat)
        if cfg.ppo.replay:
            tasks_of(tasks / "train.jsonl", cfg.ppo.replay_tasks)
        queries = fitting(
            read_task_file(tasks / "prompts.jsonl"),
            tokenizer,
            context=hugging_face.load_config(chat).context,
            answer=cfg.ppo.max_new_tokens,
            knob="ppo.max_new_tokens",
        )
        connect(cfg.cluster)
        if not stage.made:
            write_json(stage.folder / ASKED, in_order(queries, cfg.ppo))
            reward, scale = rewards.scored_by(stage.input("reward"), tokenizer) if scored else (None, None)
            others = [rewards.scored_by(Path(folder), tokenizer) for folder in cfg.ppo.ensemble]
            graph = start(
                cfg,
                chat=folders[cfg.ppo.start.value],
                tasks=tasks,
                reward=reward,
                scale=scale,
                precision=precision(cfg),
                ensemble=others,
            )
            with closing(graph):
                learn(graph, queries, tokenizer, cfg, stage.folder)
        metrics, answers, samples = on_worker(
            cfg.cluster, measured.of_rl, folders, tasks, queries, cfg, within=cfg.evaluate.timeout
        )
        write_json(stage.folder / "answers.json", answers)
        write_json(stage.folder / "samples.json", samples)
        return stage.finish(metrics)


def lengthened(cfg: Ppo, before: Mapping[str, Any], step: int) -> str:
    """Why a stage that has saved iteration `step` cannot go on to `ppo.iterations`. No iteration knows how many there
    are, so that more of them are what they would have been from the start."""
    return "" if step <= cfg.iterations else f"it has saved iteration {step}"


def precision(cfg: Config) -> Precision:
    """In what learner and critic multiply. Rollouts decode in fp32, so the learner does too unless told otherwise."""
    if cfg.compute.precision is Precision.fp16:
        raise InputError("compute.precision=fp16: the stage rl scales no losses, which fp16 needs; try bf16 or fp32")
    return Precision.fp32 if cfg.compute.precision is Precision.auto else cfg.compute.precision


def learn(graph: Graph, queries: Sequence[Query], tokenizer: Tokenizer, cfg: Config, folder: Path) -> None:
    """From the newest checkpoint to the last iteration, and the model into `folder`; from the newest again where the
    learner or the critic is lost on the way."""
    checkpoints = folder / "checkpoints"
    with deferred(checkpoints) as request:
        surviving(lambda: attempt(graph, queries, tokenizer, cfg, folder, request), ended=lambda: bool(request))
        step = newest_step(checkpoints)
        request.where = f"at iteration {step}; saved" if step else "in its first iteration"


def attempt(
    graph: Graph, queries: Sequence[Query], tokenizer: Tokenizer, cfg: Config, folder: Path, request: Request
) -> None:
    """As `learn`, until one of the two is lost."""
    found = newest_checkpoint(folder / "checkpoints")
    first = found[0] if found else 0
    graph.begin(found)
    carried = Carried.of(cfg.ppo, found[1] if found else None)
    ahead = Ahead(graph, queries, cfg.ppo, cfg.run.seed, found[1] if found else None)
    show = ("rl/reward", "rl/rules/mean", "rl/kl", "response_length/mean")
    saver = Saver(
        folder / "checkpoints",
        cfg.checkpoints,
        keep=KEEP,
        rank=0,
        world=1,
        attempt=os.urandom(6).hex(),
        deadline=cfg.ppo.timeout,
    )
    about = {"seed": cfg.run.seed, "precision": precision(cfg).value, "threads": cfg.cluster.threads or 1}
    about |= {"slots": cfg.cluster.slots if cfg.cluster.deterministic else 0}
    recorder = Recorder(folder / FOLDER, cfg.ppo, about | graph.origin)
    with (
        follow(folder, cfg.ppo.stage, cfg.ppo.iterations, show=show) as seen,
        Tracker(folder, step=first) as tracker,
        saver,
    ):
        seen.begin(first, "begins")
        sizes = {"first": first, "samples": cfg.tracker.samples}
        loop(graph, ahead, tokenizer, tracker, saver, recorder, carried, cfg.ppo, request, **sizes)
    if not request:
        graph.export(folder)


def loop(
    graph: Graph,
    ahead: Ahead,
    tokenizer: Tokenizer,
    tracker: Tracker,
    saver: Saver,
    recorder: Recorder,
    carried: Carried,
    cfg: Ppo,
    request: Request,
    *,
    first: int,
    samples: int,
) -> None:
    """PPO from iteration `first` until the last, or a `request` to end. Iteration i moves policy version i to i + 1 by
    what it answered, or an older one `ahead` of time; so many `samples` of its answers are logged with it."""
    estimate = KlEstimate.k1 if cfg.kl_estimate is KlEstimate.auto else cfg.kl_estimate
    for iteration in range(first, cfg.iterations + 1):  # one extra turn: the final save
        last = iteration == cfg.iterations
        usual = last or iteration % cfg.save_every == 0
        if iteration > first and (usual or request):
            tracker.sync()
            saver.save(iteration, ahead.beside(carried.beside(graph.writer())), interim=not usual)
        if last or request:
            break
        watch = Stopwatch()
        graph.broadcast()
        watch.lap("update_weights")
        asked, requests, responses = ahead.answers(iteration, carried.segments.next(cfg, iteration))
        watch.lap("gen")
        verdicts = graph.judge(asked, responses)
        texts = [tokenizer.decode(response.whole) for response in responses]
        every, going = Answered(asked, responses, verdicts, texts), carried.segments.going(responses, cfg)
        stats, shown = answer_metrics(every.done(going)), to_look_at(asked, texts, verdicts, samples)
        same = groups(requests, cfg)
        kept = widest(same, worth(graph, responses, verdicts, cfg), cfg.keep)
        same = [same[place] for place in kept]
        responses, verdicts = [responses[place] for place in kept], [verdicts[place] for place in kept]
        batch = pad(responses)
        said = graph.assess(batch)
        watch.lap("assess")
        written = [tokenizer.written(response.whole)[response.begun :] for response in responses]
        about = [asked[place] for place in kept], [texts[place] for place in kept]
        begun, going = [response.begun for response in responses], [going[place] for place in kept]
        judged = rewards.judged(batch, verdicts, written, said.scored, cfg.max_new_tokens, *about, begun, going)
        earned = graph.earn(judged, cfg, carried.terms)
        per_token = token_rewards(earned.rewards, batch.logprobs, said.reference, batch.mask, carried.kl_coef, estimate)
        following = cfg.gamma * graph.beyond(batch, going)
        learnt_of = per_token + following, said.values, batch.mask, numbered(same)
        advantages, returns = ADVANTAGES[cfg.advantages](*learnt_of, cfg)
        advantages = advantages * heard([response.finished for response in responses], going, cfg)
        watch.lap("adv")
        stats |= graph.update(batch, advantages, returns, said) | earned.told
        watch.lap("update")
        stats |= learning_metrics(batch, earned.rewards, said.reference, per_token)
        stats |= carried.learnt(earned.running, stats["rl/kl"], len(responses), cfg)
        alarms = hacked(responses, earned.rewards.sum(1), going, by_length="length" in cfg.weights)
        recorder.write(iteration + 1, every, kept, batch, said, advantages, returns, earned.sums)
        tracker.log(stats | alarms | watch.times(int(batch.segments.sum())), iteration + 1, samples=shown)


def worth(graph: Graph, responses: Sequence[Response], verdicts: Sequence[Verdict], cfg: Ppo) -> list[float]:
    """What the answers that are learnt from are chosen by: the rules, which cost nothing, or where these do not count
    the reward model."""
    if "rules" in cfg.weights or not graph.scored or not cfg.keep:
        return [verdict.reward for verdict in verdicts]
    return graph.score(pad(responses)).mean.tolist()


if __name__ == "__main__":
    main()

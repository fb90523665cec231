"""Let the chat model answer each query several times, and let judges rank the answers under the chosen principles."""

from conf.entry import early, job

early(__name__)

import json
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from cluster.connect import connect
from cluster.progress import counter
from cluster.room import bundle, check_room
from cluster.run import make, model_stage, open_stage, present, read_manifest
from cluster.storage import Damaged, write_file
from conf.errors import InputError
from conf.knobs.alignment import Judges, Rank
from conf.schema import Config
from moe.formats import hugging_face
from moe.generation.engine import Sampling
from moe.tasks.domain import Domain
from moe.tasks.measure import read_task_file
from moe.text.tokenizer import Tokenizer
from rlhf.actors.rollout import Rollout
from rlhf.judges import ai, feedback, rules
from rlhf.judges.agreement import agreement
from rlhf.judges.feedback import Told
from rlhf.judges.opinions import Asked, Opinion, placed, together
from rlhf.judges.people import EXACT, People
from rlhf.messages import Request, Response
from rlhf.rollouts import Query, fitting, other_keys, ranked
from rlhf.supervisor import Post, Supervisor

TOGETHER = 128  # requests of one call
_BESIDE = ("feedback", "labelled", "restarts")  # knobs that no result hangs on


def reads(cfg: Config, there: Collection[str]) -> list[str]:
    if not _samples(cfg.rank):
        return []
    return [model_stage(cfg, "chat", there), "tasks"]


def check(cfg: Config) -> None:
    """Raise `InputError` for a principle that the domain does not score, and for a judge that cannot be asked."""
    Domain.of(cfg.tasks).chosen(cfg.rank.principles)
    judges = [judge.name for judge in cfg.rank.judges]
    for name in cfg.rank.weights:
        if name not in judges:
            raise InputError(f"rank.weights.{name}: no such judge in rank.judges=[{','.join(judges)}]")
    if Judges.ai in cfg.rank.judges:
        ai.check(cfg)
    if Judges.feedback in cfg.rank.judges:
        feedback.check(cfg)
        if "feedback" in cfg.rank.weights:
            raise InputError(
                "rank.weights.feedback: people judge the answers that they were given, which no other judge scores; "
                "leave it out"
            )


def _samples(cfg: Rank) -> bool:
    """Whether answers are sampled to be judged: people alone judge those that they were given."""
    return cfg.judges != [Judges.feedback]


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the chat (or parent) and tasks stages, write rankings.jsonl: one query a line, with its answers, scores and
    ranks. What people said is read from its store, and writes corrections.jsonl, too: samples for `sft.files`."""
    check(cfg)
    domain = Domain.of(cfg.tasks)
    principles = domain.chosen(cfg.rank.principles)
    told = feedback.told(feedback.store(cfg), principles) if Judges.feedback in cfg.rank.judges else None
    if told and not _samples(cfg.rank):
        return of_votes(told, cfg, principles)
    people = People.of(cfg) if Judges.people in cfg.rank.judges else None
    if (origin := model_stage(cfg, "chat", present(cfg))) == "parent":
        make(cfg, "parent")
    settings = decisive(cfg, principles, told) | ({"people": people.digests} if people else {})
    needs, cheap = reads(cfg, present(cfg)), people is not None and _only_people(cfg)
    with open_stage(cfg, "ranked", reads=needs, settings=settings, measures=cheap) as stage:
        if stage.done:
            return stage.metrics
        chat, tasks = stage.input(origin), stage.input("tasks")
        tokenizer = Tokenizer.load(chat)
        queries = fitting(
            # from the end of the list: reinforcement learning begins at its start
            read_task_file(tasks / "prompts.jsonl")[-cfg.rank.prompts :],
            tokenizer,
            context=hugging_face.load_config(chat).context,
            answer=cfg.rank.max_new_tokens,
            knob="rank.max_new_tokens",
        )

        def sampled() -> dict[str, list[dict[str, Any]]]:
            connect(cfg.cluster)
            return answered(queries, tokenizer, chat, cfg)

        answers = people.answers(cfg, needs, sampled) if people else sampled()
        asked = [Asked(query.sample, answers[query.sample.id]) for query in queries]
        if people:
            people.ask(asked, principles, cfg.rank.labelled)
        opinions: dict[str, list[Opinion]] = {}
        metrics: dict[str, float] = {}
        if Judges.rules in cfg.rank.judges:
            opinions["rules"] = rules.opinions(asked, domain.judge(tasks), principles)
        if Judges.ai in cfg.rank.judges:
            connect(cfg.cluster)
            opinions["ai"], metrics = ai.opinions(asked, principles, cfg)
        if people:
            opinions["people"], more = people.opinions(asked, principles)
            metrics |= more
        rankings = [
            ranking(each, {judge: by_query[place] for judge, by_query in opinions.items()}, cfg.rank)
            for place, each in enumerate(asked)
        ]
        if len(opinions) > 1:
            metrics |= agreement(rankings, principles)
        if told:
            rankings, metrics = rankings + told.rankings, metrics | told.metrics
        written(stage.folder, rankings, told)
        return stage.finish({**summary(rankings, principles), **metrics})


def of_votes(people: Told, cfg: Config, principles: Sequence[str]) -> dict[str, float]:
    """The stage where people's votes alone judge. It takes no time, and its old rankings have what somebody has asked
    to be forgotten: whenever the store has changed it is made again, and nobody is asked."""
    if not people.rankings:
        raise InputError(
            f"{feedback.store(cfg)}: its {people.metrics['feedback/votes']:.0f} votes compare no two answers yet; "
            "that takes a pick, a correction, or a thumb up and one down in the same conversation"
        )
    settings = decisive(cfg, principles, people)
    with open_stage(cfg, "ranked", reads=[], settings=settings, measures=_only_people(cfg)) as stage:
        if stage.done:
            return stage.metrics
        written(stage.folder, people.rankings, people)
        return stage.finish({**summary(people.rankings, principles), **people.metrics})


def _only_people(cfg: Config) -> bool:
    """Whether what others than people said in the rankings that are there is soon said again: the answers that people
    were asked about are kept, an AI judge's replies too."""
    try:
        judges = read_manifest(cfg.run.folder / "ranked")["config"]["rank"].get("judges", [])
    except Damaged:
        return False
    return "people" in judges or bool(judges == ["feedback"])


def written(folder: Path, rankings: Sequence[dict[str, Any]], people: Told | None) -> None:
    for name, lines in {"rankings": rankings, **({"corrections": people.samples} if people else {})}.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_file(folder / f"{name}.jsonl", text)


def decisive(cfg: Config, principles: Sequence[str], people: Told | None = None) -> dict[str, Any]:
    """What the stage's result hangs on; of people's conversations each by name, so that the manifest says which it has.
    The rules alone know nothing of other judges' knobs, nor did runs that were made before there were others."""
    knobs = {name: getattr(cfg.rank, name) for name in cfg.rank.__dataclass_fields__ if name not in _BESIDE}
    knobs["principles"] = list(principles)
    heard = {"feedback": {"conversations": people.conversations}} if people else {}
    if not _samples(cfg.rank):
        return {"rank": {"judges": knobs["judges"], "principles": knobs["principles"]}, **heard}
    if Judges.ai not in cfg.rank.judges and cfg.rank.judges != [Judges.rules]:
        return {"rank": knobs, **heard}
    if cfg.rank.judges == [Judges.rules]:
        return {"rank": {name: value for name, value in knobs.items() if name not in ("judges", "weights")}}
    judge = {name: getattr(cfg.judge, name) for name in cfg.judge.__dataclass_fields__}
    judge["folder"] = ai.who(cfg.judge) if cfg.judge.folder else ""  # by what it holds, wherever it lies
    return {"rank": knobs, "judge": judge, **heard}


def answered(
    queries: Sequence[Query], tokenizer: Tokenizer, chat: Path, cfg: Config
) -> dict[str, list[dict[str, Any]]]:
    """{query: [{"text", "finished"}]} of the chat model's answers, made by `rank.actors` rollout actors. One that dies,
    hangs or fails is started again, and asked again for what it still owes: the same keys give the same answers."""
    threads = cfg.cluster.threads or 1
    less = "rank.actors, cluster.cpus_per_worker or cluster.gpus_per_worker"
    check_room(cfg.cluster, [bundle(cfg.cluster)] * cfg.rank.actors, "stage ranked", less=less)
    remote = ray.remote(Rollout).options(
        num_cpus=cfg.cluster.cpus_per_worker,
        num_gpus=cfg.cluster.gpus_per_worker,
        max_restarts=0,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
    )
    made = Post(partial(remote.remote, chat, threads, "ours", cfg.cluster.device), state=False)
    posts = {f"rollout {number}": replace(made) for number in range(cfg.rank.actors)}
    supervisor = Supervisor(
        posts,
        timeout=cfg.rank.timeout,
        restarts=cfg.rank.restarts,
        start_timeout=cfg.cluster.start_timeout,
        section="rank",
    )
    jobs = [
        (requests[at : at + TOGETHER], Sampling(cfg.rank.max_new_tokens, temperature=temperature))
        for temperature, requests in ranked(queries, cfg.rank, cfg.run.seed).items()
        for at in range(0, len(requests), TOGETHER)
    ]
    found: dict[str, dict[int, Response]] = {query.sample.id: {} for query in queries}
    with closing(supervisor), counter("ranked", len(queries) * cfg.rank.answers) as progress:
        supervisor.start()
        for responses in supervisor.share(posts, "generate", jobs, _unfit):
            for response in responses:
                found[response.key.query][response.key.sample] = response
            supervisor.progressed()
            progress.advance(len(responses))
    return {
        query: [
            {"text": tokenizer.decode(by_number[number].answer), "finished": by_number[number].finished}
            for number in range(cfg.rank.answers)
        ]
        for query, by_number in found.items()
    }


def _unfit(requests: Sequence[Request], sampling: Sampling, made: Sequence[Response]) -> str:
    return other_keys(requests, made)


def ranking(asked: Asked, opinions: Mapping[str, Opinion], cfg: Rank) -> dict[str, Any]:
    """The query with its answers; each gets `scores` per principle, their mean `total`, and the places that the scores
    come to (0 the best): `ranks` per principle and `rank`. The rules alone add their `reasons`; of other judges each
    answer has, under `judges`, what every one of them gave it and why, and the query `unjudged` says under which
    principles one had no verdict: there no answer has a rank. What people `said` of a query stands with it."""
    margins = {judge: EXACT if judge == "people" else cfg.margin for judge in opinions}
    own = {judge: placed(opinion.scores, opinion.why, margins[judge]) for judge, opinion in opinions.items()}
    missing = {judge: dict(opinion.missing) for judge, opinion in opinions.items() if opinion.missing}
    if list(own) == ["rules"]:
        more = own["rules"]
    else:
        margin = max(margins.values())
        more = placed(together(opinions, cfg.weights), [{} for _ in asked.answers], margin)
        for place, answer in enumerate(more):
            answer["judges"] = {judge: given[place] for judge, given in own.items()}
    answers = [{**answer, **given} for answer, given in zip(asked.answers, more, strict=True)]
    said = {judge: list(opinion.said) for judge, opinion in opinions.items() if opinion.said}
    return (
        asked.query.line
        | {"answers": answers}
        | ({"unjudged": missing} if missing else {})
        | ({"said": said} if said else {})
    )


def summary(rankings: Sequence[dict[str, Any]], principles: Sequence[str]) -> dict[str, float]:
    """{"queries", "answers", "pairs", "total" and every principle's mean score}, over the answers that have one."""
    answers = [answer for line in rankings for answer in line["answers"]]
    ranks = [[answer["rank"] for answer in line["answers"] if "rank" in answer] for line in rankings]
    totals = [answer["total"] for answer in answers if "total" in answer]
    under = {name: [a["scores"][name] for a in answers if name in a["scores"]] for name in principles}
    return {
        "queries": float(len(rankings)),
        "answers": float(len(answers)),
        "pairs": float(sum(a < b for line in ranks for a in line for b in line)),
        "total": sum(totals) / max(1, len(totals)),
        **{name: sum(scores) / len(scores) for name, scores in under.items() if scores},
    }


if __name__ == "__main__":
    main()

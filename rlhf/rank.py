"""Let the chat model answer each query several times and rank the answers under the chosen principles, by rules."""

from typing import TYPE_CHECKING, Any

from conf.entry import job
from conf.schema import Config, Rank

if TYPE_CHECKING:
    from moe.verse import Copies


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the chat and tasks stages, write rankings.jsonl: one query a line, with its answers, scores and ranks."""
    import json

    import ray

    from cluster.connect import connect
    from cluster.progress import counter
    from cluster.run import open_stage
    from cluster.storage import write_file
    from moe.chat import prompt_ids
    from moe.engine import Sampling
    from moe.evaluation import read_queries
    from moe.tokenizer import Tokenizer
    from moe.verse import Copies
    from rlhf.actors import Rollout
    from rlhf.messages import Key, Request

    with open_stage(cfg, "ranked", reads=["chat", "tasks"], settings={"rank": cfg.rank}) as stage:
        if stage.done:
            return stage.metrics
        connect(cfg.cluster)
        chat, tasks = stage.input("chat"), stage.input("tasks")
        tokenizer = Tokenizer.load(chat)
        # from the end of the list: reinforcement learning begins at its start
        queries = read_queries(tasks / "prompts.jsonl")[-cfg.rank.prompts :]
        copies = Copies.load(tasks / "copies.npy")
        threads = cfg.cluster.threads or 1
        remote = ray.remote(Rollout).options(
            num_cpus=cfg.cluster.cpus_per_worker, runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}}
        )
        actors = ray.util.ActorPool([remote.remote(chat, threads) for _ in range(cfg.rank.actors)])
        jobs = []
        for temperature in sorted(set(cfg.rank.temperatures)):
            sampling = Sampling(cfg.rank.max_new_tokens, temperature=temperature)
            requests = []
            for query in queries:
                prompt = prompt_ids(tokenizer, query["messages"])
                for number in range(cfg.rank.answers):
                    if cfg.rank.temperatures[number % len(cfg.rank.temperatures)] == temperature:
                        key = Key(0, query["id"], number, version=0)
                        requests.append(Request(key, prompt, key.seed(cfg.run.seed)))
            jobs += [(requests[at : at + 128], sampling) for at in range(0, len(requests), 128)]
        answers: dict[str, dict[int, dict[str, Any]]] = {query["id"]: {} for query in queries}
        with counter("ranked", len(queries) * cfg.rank.answers) as progress:
            for samples in actors.map(lambda actor, job: actor.generate.remote(*job), jobs):
                for sample in samples:
                    text = tokenizer.decode(sample.answer)
                    answers[sample.key.query][sample.key.sample] = {"text": text, "finished": sample.finished}
                progress.advance(len(samples))
        ranked = [
            ranking(query, [answers[query["id"]][n] for n in range(cfg.rank.answers)], copies, cfg.rank)
            for query in queries
        ]
        lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in ranked)
        write_file(stage.folder / "rankings.jsonl", lines)
        return stage.finish(summary(ranked))


def ranking(query: dict[str, Any], answers: list[dict[str, Any]], copies: "Copies", cfg: Rank) -> dict[str, Any]:
    """The query with its answers; each gets `scores` per principle and their mean `total`, and the places that these
    come to (0 the best): `ranks` per principle and `rank`."""
    from rlhf.principles import rank, score, total

    scored = []
    for answer in answers:
        scores = score(query, answer["text"], answer["finished"], copies=copies)
        scored.append(
            answer
            | {"scores": {p.name: round(scores[p], 4) for p in cfg.principles}, "total": total(scores, cfg.principles)}
        )
    places = rank([answer["total"] for answer in scored], cfg.margin)
    under = {p.name: rank([answer["scores"][p.name] for answer in scored], cfg.margin) for p in cfg.principles}
    return query | {
        "answers": [
            answer | {"rank": place, "ranks": {name: ranks[number] for name, ranks in under.items()}}
            for number, (answer, place) in enumerate(zip(scored, places, strict=True))
        ]
    }


def summary(ranked: list[dict[str, Any]]) -> dict[str, float]:
    """{"queries", "answers", "pairs", "total" and every principle's mean score}."""
    answers = [answer for line in ranked for answer in line["answers"]]
    count = max(1, len(answers))
    pairs = sum(a["rank"] < b["rank"] for line in ranked for a in line["answers"] for b in line["answers"])
    means = {name: sum(a["scores"][name] for a in answers) / count for name in answers[0]["scores"]} if answers else {}
    return {
        "queries": float(len(ranked)),
        "answers": float(len(answers)),
        "pairs": float(pairs),
        "total": sum(a["total"] for a in answers) / count,
        **means,
    }


if __name__ == "__main__":
    main()

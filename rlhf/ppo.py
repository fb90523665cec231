"""Reinforcement learning by PPO on a graph of Ray actors: rollout, judge, reference, critic, learner."""

from contextlib import closing
from typing import TYPE_CHECKING, Any

from conf.entry import job
from conf.schema import Config, InputError

if TYPE_CHECKING:
    from pathlib import Path

    from cluster.tracker import Tracker
    from conf.schema import Ppo
    from moe.decoder import Decoder
    from moe.tokenizer import Tokenizer
    from rlhf.graph import Graph


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the chat and reward stages, write the rl model; returns the rules' metrics on held-out queries."""
    from cluster.connect import connect
    from cluster.progress import follow
    from cluster.run import open_stage, read_manifest
    from cluster.storage import newest_checkpoint, write_json
    from cluster.tracker import Tracker
    from moe import folder
    from moe.evaluation import answers, read_queries, side_by_side
    from moe.tokenizer import Tokenizer
    from rlhf.graph import start

    settings = {"ppo": cfg.ppo, "pipeline.samples": cfg.pipeline.samples, **cfg.evaluate.measure()}
    with open_stage(cfg, "rl", reads=["base", "chat", "reward", "tasks"], settings=settings) as stage:
        if stage.done:
            return stage.metrics
        connect(cfg.cluster)
        chat, reward, tasks = (stage.input(name) for name in ("chat", "reward", "tasks"))
        tokenizer = Tokenizer.load(chat)
        if tokenizer.digest != Tokenizer.load(reward).digest:
            raise InputError(f"{reward}: the reward model has another tokenizer than {chat}; make both in one run")
        scores = read_manifest(reward)["metrics"]
        queries = read_queries(tasks / "prompts.jsonl")
        found = newest_checkpoint(stage.folder / "checkpoints")
        first = found[0] if found else 0
        graph = start(
            chat=chat,
            reward=reward,
            tasks=tasks,
            mean=scores["score_mean"],
            std=scores["score_std"],
            cfg=cfg.ppo,
            cluster=cfg.cluster,
            seed=cfg.run.seed,
        )
        with (
            closing(graph),
            follow(stage.folder, "rl", cfg.ppo.iterations, show=("rl/reward", "rl/form_ok", "rl/rhyme_ok", "rl/kl")),
            Tracker(stage.folder, cfg.tracker, run=cfg.run.name, stage="rl", step=first) as tracker,
        ):
            if found:
                graph.load(found[1], version=first)
            loop(graph, queries, tokenizer, tracker, cfg.ppo, stage.folder, first=first, seed=cfg.run.seed)
            graph.export(stage.folder)
        tokenizer.save(stage.folder)
        models = {name: folder.load(path) for name, path in (("base", stage.input("base")), ("chat", chat))}
        models["rl"] = folder.load(stage.folder)
        metrics, shown = answers(models["rl"], tokenizer, tasks, cfg.evaluate, seed=cfg.run.seed)
        metrics["kl_per_answer"] = kl_per_answer(models, tokenizer, queries[: cfg.evaluate.prompts], cfg)
        write_json(stage.folder / "answers.json", shown)
        samples = side_by_side(models, tokenizer, tasks, cfg.evaluate, count=cfg.pipeline.samples)
        write_json(stage.folder / "samples.json", samples)
        return stage.finish(metrics)


def loop(
    graph: "Graph",
    queries: list[dict[str, Any]],
    tokenizer: "Tokenizer",
    tracker: "Tracker",
    cfg: "Ppo",
    folder: "Path",
    *,
    first: int,
    seed: int,
) -> None:
    """PPO from iteration `first`. Iteration i is made by policy version i and makes version i + 1."""
    from cluster.storage import save_checkpoint
    from moe.engine import Sampling
    from rlhf.losses import gae, token_rewards, whiten
    from rlhf.messages import pad
    from rlhf.reporting import Stopwatch, answer_metrics, learning_metrics
    from rlhf.selection import widest

    sampling = Sampling(cfg.max_new_tokens)  # temperature 1 and no truncation: the ratio is then exact
    for iteration in range(first, cfg.iterations + 1):  # one extra turn: the final save
        last = iteration == cfg.iterations
        if iteration > first and (last or iteration % cfg.save_every == 0):
            save_checkpoint(folder / "checkpoints", iteration, graph.save, keep=2)
        if last:
            break
        watch = Stopwatch()
        graph.broadcast(version=iteration)
        watch.lap("update_weights")
        asked, requests = admit(queries, tokenizer, cfg, iteration, seed)
        samples = graph.rollout(requests, sampling)
        watch.lap("gen")
        stats = answer_metrics(asked, samples, tokenizer)
        kept = widest([sample.key.query for sample in samples], graph.rules(asked, samples), cfg.keep)
        asked, samples = [asked[i] for i in kept], [samples[i] for i in kept]
        batch = pad(samples)
        scores, reference, values = graph.assess(asked, samples, batch)
        watch.lap("assess")
        rewards = token_rewards(scores.earned, batch.logprobs, reference, batch.mask, cfg.kl_coef)
        advantages, returns = gae(rewards, values, batch.mask, gamma=cfg.gamma, lam=cfg.lam)
        watch.lap("adv")
        stats |= graph.update(batch, whiten(advantages, batch.mask), values, returns)
        watch.lap("update")
        stats |= learning_metrics(batch, scores, reference, rewards)
        tracker.log(stats | watch.times(int(batch.segments.sum())), iteration + 1)


def kl_per_answer(
    models: dict[str, "Decoder"], tokenizer: "Tokenizer", queries: list[dict[str, Any]], cfg: Config
) -> float:
    """Mean over sampled answers of log rl(answer) - log chat(answer): KL(rl || chat) in nats per answer."""
    import torch

    from moe.chat import prompt_ids
    from moe.engine import Sampling, generate
    from rlhf.forward import token_logprobs
    from rlhf.messages import Key, Sample, pad

    prompts = [prompt_ids(tokenizer, query["messages"]) for query in queries]
    keys = [Key(cfg.ppo.iterations, query["id"], 0, version=cfg.ppo.iterations) for query in queries]
    asked = [Sampling(cfg.ppo.max_new_tokens, seed=key.seed(cfg.run.seed)) for key in keys]
    answers = generate(models["rl"], prompts, asked, stop=(tokenizer.im_end, tokenizer.eos))
    batch = pad(
        [
            Sample(key, prompt, answer.tokens, answer.logprobs, answer.finish == "stop")
            for key, prompt, answer in zip(keys, prompts, answers, strict=True)
        ]
    )
    with torch.inference_mode():
        reference = token_logprobs(models["chat"], batch)[0].sum()
    return float(batch.logprobs.sum() - reference) / len(queries)


def admit(
    queries: list[dict[str, Any]], tokenizer: "Tokenizer", cfg: "Ppo", iteration: int, seed: int
) -> tuple[list[dict[str, Any]], list[Any]]:
    """(query of each request, requests) of an iteration: a function of (seed, iteration) alone."""
    from moe.chat import prompt_ids
    from rlhf.messages import Key, Request

    asked, requests = [], []
    for place in range(iteration * cfg.prompts, (iteration + 1) * cfg.prompts):
        query = queries[place % len(queries)]
        prompt = prompt_ids(tokenizer, query["messages"])
        for sample in range(cfg.samples):
            # a query that comes round again within one iteration is another sample of it
            key = Key(iteration, query["id"], sample + cfg.samples * (place // len(queries)), version=iteration)
            asked.append(query)
            requests.append(Request(key, prompt, key.seed(seed)))
    return asked, requests


if __name__ == "__main__":
    main()

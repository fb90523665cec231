"""What the stages rl and compared say of the models that were written; computed on a worker, from the folders."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from conf.schema import Config
from moe.decoder import Decoder
from moe.formats import hugging_face
from moe.generation.answers import Reply, answer, judged_answers, side_by_side
from moe.generation.engine import Sampling
from moe.generation.engines import Ours
from moe.tasks.domain import Domain
from moe.tasks.measure import read_task_file
from moe.tasks.task import Sample, Verdict
from moe.text.chat import answer_ids, prompt_ids
from moe.text.tokenizer import Tokenizer
from moe.training.parallel import take_device
from rlhf.comparison import Answered
from rlhf.forward import answer_scores, slices, spread, token_logprobs
from rlhf.messages import Batch, Key, Response, pad
from rlhf.rewards import Judged, Scale, parts
from rlhf.rollouts import Query


def of_rl(
    folders: Mapping[str, Path], tasks: Path, queries: Sequence[Query], cfg: Config
) -> tuple[dict[str, float], list[dict[str, Any]], list[dict[str, str]]]:
    """(metrics, answers to the held-out queries, all models' answers side by side) of the models base, chat, the one
    that rl started from, and rl."""
    take_device(cfg.cluster)
    tokenizer = Tokenizer.load(folders["rl"])
    engines = {name: Ours.open(folder) for name, folder in folders.items()}
    held_out = read_task_file(tasks / "test_prompts.jsonl", limit=cfg.evaluate.prompts)
    judge = Domain.of(cfg.tasks).judge(tasks)
    metrics, answers = judged_answers(engines["rl"], tokenizer, held_out, judge, cfg.evaluate, seed=cfg.run.seed)
    metrics["kl_per_answer"] = kl_per_answer(engines["rl"], engines["chat"], queries[: cfg.evaluate.prompts], cfg)
    shown = read_task_file(tasks / "test_prompts.jsonl", limit=cfg.pipeline.samples)
    return metrics, answers, side_by_side(engines, tokenizer, shown, cfg.evaluate)


def kl_per_answer(policy: Ours, chat: Ours, queries: Sequence[Query], cfg: Config) -> float:
    """Mean over sampled answers of log rl(answer) - log chat(answer): KL(rl || chat) in nats per answer."""
    keys = [Key(cfg.ppo.iterations, query.sample.id, 0, version=cfg.ppo.iterations) for query in queries]
    asked = [Sampling(cfg.ppo.max_new_tokens, seed=key.seed(cfg.run.seed)) for key in keys]
    return sum(nats(policy, chat, [query.prompt for query in queries], asked)) / len(queries)


def nats(policy: Ours, chat: Ours, prompts: Sequence[list[int]], samplings: Sequence[Sampling]) -> list[float]:
    """Of an answer to each prompt, sampled as the model is: log policy(answer) - log chat(answer)."""
    answers = policy.generate(prompts, samplings)
    batch = pad(
        [
            Response(_NOBODYS, prompt, made.tokens, made.logprobs, made.finish == "stop")
            for prompt, made in zip(prompts, answers, strict=True)
        ]
    )
    with torch.inference_mode():
        reference = [spread(token_logprobs(chat.model, part)[0], part.mask).sum(1) for part in slices(batch)]
    return (batch.logprobs.sum(1) - torch.cat(reference)).tolist()


def compared(
    folders: Mapping[str, Path], tasks: Path, reward: tuple[Path, Scale] | None, held: Path | None, cfg: Config
) -> tuple[dict[str, Answered], list[dict[str, str]]]:
    """(what each of the models in `folders`, "chat" among them, answers to the held-out queries, some answers side by
    side). `held` is a reward model that no training used. One policy beside the chat model is in memory at a time."""
    take_device(cfg.cluster)
    tokenizer, chat = Tokenizer.load(folders["chat"]), Ours.open(folders["chat"])
    queries = read_task_file(tasks / "test_prompts.jsonl", limit=cfg.evaluate.prompts)
    shown = read_task_file(tasks / "test_prompts.jsonl", limit=cfg.pipeline.samples)
    judge = Domain.of(cfg.tasks).judge(tasks)
    scorer = hugging_face.load(reward[0]) if reward else None
    models: dict[str, Answered] = {}
    samples: list[dict[str, str]] = [{} for _ in shown]
    for name, folder in folders.items():
        engine = chat if name == "chat" else Ours.open(folder)
        replies = answer(engine, tokenizer, queries, cfg.evaluate, seed=cfg.run.seed)
        scores = None
        if scorer is not None and reward is not None:
            scores = in_deviations(scorer, reward[1], tokenizer, queries, replies)
        verdicts = [judge(query, made.text, made.finished) for query, made in zip(queries, replies, strict=True)]
        models[name] = Answered(
            texts=[made.text for made in replies],
            verdicts=verdicts,
            lengths=[len(made.tokens) for made in replies],
            scores=scores,
            nats=None if engine is chat else _far(engine, chat, tokenizer, queries, cfg),
            terms=_terms(tokenizer, queries, replies, verdicts, scores, cfg),
            held=None if held is None else of_text(held, queries, [made.text for made in replies]),
        )
        beside = side_by_side({name: engine}, tokenizer, shown, cfg.evaluate)
        samples = [before | more for before, more in zip(samples, beside, strict=True)]
    return models, samples


def _terms(
    tokenizer: Tokenizer,
    queries: Sequence[Sample],
    replies: Sequence[Reply],
    verdicts: Sequence[Verdict],
    scores: Sequence[float] | None,
    cfg: Config,
) -> dict[str, list[float]]:
    """Each term of the run's reward, before its weight, summed over each answer; what a reward model says only where
    there is one, and what several differ by never."""
    there = {name for name in cfg.ppo.weights if name != "spread" and (name != "model" or scores is not None)}
    weights = {name: weight for name, weight in cfg.ppo.weights.items() if name in there}
    batch = _batch(tokenizer, queries, replies)
    judged = Judged(
        batch,
        verdicts,
        [tokenizer.written(made.tokens) for made in replies],
        None if scores is None else torch.tensor(scores),
        cfg.evaluate.max_new_tokens,
        queries,
        [made.text for made in replies],
    )
    return {name: part.sum(1).tolist() for name, part in parts(judged, weights, cfg.ppo.terms).items()}


@torch.inference_mode()
def of_text(folder: Path, queries: Sequence[Sample], texts: Sequence[str]) -> list[float]:
    """The scores that a reward model with whatever tokenizer of its own gives to texts."""
    scorer, tokenizer = hugging_face.load(folder), Tokenizer.load(folder)
    rows = []
    for query, text in zip(queries, texts, strict=True):
        prompt, ids = prompt_ids(tokenizer, query.messages), answer_ids(tokenizer, query.messages, [text])[0]
        ids = ids[: max(1, scorer.cfg.context - len(prompt))]
        rows.append(Response(_NOBODYS, prompt, ids, [0.0] * len(ids), True))
    return torch.cat([answer_scores(scorer, part) for part in slices(pad(rows))]).tolist()


@torch.inference_mode()
def in_deviations(
    scorer: Decoder, scale: Scale, tokenizer: Tokenizer, queries: Sequence[Sample], replies: Sequence[Reply]
) -> list[float]:
    """The reward model's score of each reply, in standard deviations of those of the rankings."""
    scores = torch.cat([answer_scores(scorer, part) for part in slices(_batch(tokenizer, queries, replies))])
    return ((scores - scale.mean) / scale.std).tolist()


def _batch(tokenizer: Tokenizer, queries: Sequence[Sample], replies: Sequence[Reply]) -> Batch:
    prompts = [prompt_ids(tokenizer, query.messages) for query in queries]
    return pad(
        [
            Response(_NOBODYS, prompt, made.tokens, [0.0] * len(made.tokens), made.finished)
            for prompt, made in zip(prompts, replies, strict=True)
        ]
    )


def _far(policy: Ours, chat: Ours, tokenizer: Tokenizer, queries: Sequence[Sample], cfg: Config) -> list[float]:
    """`nats` of answers to the queries, as long as `evaluate.max_new_tokens` and the context allow."""
    prompts = [prompt_ids(tokenizer, query.messages) for query in queries]
    seeds = [Key(0, query.id, 0, version=0).seed(cfg.run.seed) for query in queries]
    room = [max(1, min(cfg.evaluate.max_new_tokens, policy.context - len(prompt))) for prompt in prompts]
    asked = [Sampling(many, seed=seed) for many, seed in zip(room, seeds, strict=True)]
    return nats(policy, chat, prompts, asked)


_NOBODYS = Key(0, "", 0, version=0)  # of a response that no actor made

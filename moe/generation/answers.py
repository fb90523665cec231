"""A model's answers to queries, and what it says of answers that are given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conf.errors import InputError
from conf.knobs.running import Evaluate
from moe.decoder import Decoder
from moe.generation.engine import Answer, Sampling
from moe.generation.engines import Generation
from moe.generation.scoring import Scores, score
from moe.tasks.measure import measures
from moe.tasks.task import Judge, Sample
from moe.text.chat import answer_ids, prompt_ids
from moe.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Reply:
    text: str
    finished: bool  # the model ended the answer itself
    tokens: list[int]  # the one that ends it included


def answer(
    engine: Generation, tokenizer: Tokenizer, queries: Sequence[Sample], cfg: Evaluate, *, seed: int
) -> list[Reply]:
    """The engine's answers to the queries, in their order."""
    prompts = [prompt_ids(tokenizer, query.messages) for query in queries]
    asked = [
        Sampling(
            max(1, min(cfg.max_new_tokens, engine.context - len(prompt))),
            temperature=cfg.temperature,
            top_p=cfg.top_p,
            seed=seed * 1_000_003 + place,  # from the query's place, so that two models answer with the same dice
        )
        for place, prompt in enumerate(prompts)
    ]
    return [reply(tokenizer, made) for made in engine.generate(prompts, asked)]


def reply(tokenizer: Tokenizer, made: Answer) -> Reply:
    return Reply(tokenizer.decode(made.tokens), made.finish == "stop", made.tokens)


def answer_scores(
    model: Decoder, tokenizer: Tokenizer, queries: Sequence[Sample], answers: Sequence[str]
) -> list[Scores]:
    """What the model says of the tokens of an answer to each query, the mark that ends it included.

    Their sum is the log-probability of just this answer: one that is the beginning of another, or shorter, has no
    advantage, so answers of different length can be compared. Raises `InputError` naming a query that is too long.
    """
    prompts = [prompt_ids(tokenizer, query.messages) for query in queries]
    wholes = [
        [*prompt, *answer_ids(tokenizer, query.messages, [text])[0]]
        for prompt, query, text in zip(prompts, queries, answers, strict=True)
    ]
    for query, ids in zip(queries, wholes, strict=True):
        if len(ids) > model.cfg.context:
            raise InputError(
                f"sample {query.id}: {len(ids)} tokens are more than the model's context of {model.cfg.context}; "
                "shorten it or leave it out"
            )
    return score(model, wholes, starts=[len(prompt) for prompt in prompts])


def judged_answers(
    engine: Generation, tokenizer: Tokenizer, queries: Sequence[Sample], judge: Judge, cfg: Evaluate, *, seed: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The measures of the engine's answers, and [{"id", "task", "prompt", "answer", "reward", "reasons"}]."""
    replies = answer(engine, tokenizer, queries, cfg, seed=seed)
    verdicts = [judge(query, made.text, made.finished) for query, made in zip(queries, replies, strict=True)]
    shown = [
        {
            "id": query.id,
            "task": query.task,
            "prompt": query.prompt,
            "answer": made.text,
            "reward": verdict.reward,
            "reasons": list(verdict.reasons),
        }
        for query, made, verdict in zip(queries, replies, verdicts, strict=True)
    ]
    return measures(verdicts, [made.text for made in replies]), shown


def side_by_side(
    engines: Mapping[str, Generation], tokenizer: Tokenizer, queries: Sequence[Sample], cfg: Evaluate
) -> list[dict[str, str]]:
    """[{"prompt", <name of an engine>: answer, ...}] of each query, with one seed."""
    made = {name: answer(engine, tokenizer, queries, cfg, seed=1) for name, engine in engines.items()}
    return [
        {"prompt": query.prompt} | {name: replies[n].text for name, replies in made.items()}
        for n, query in enumerate(queries)
    ]

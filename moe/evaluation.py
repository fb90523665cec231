"""How good a model is on held-out text and held-out queries."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conf.schema import Evaluate, InputError
from moe.chat import prompt_ids
from moe.decoder import Decoder
from moe.engine import Answer, Sampling, generate
from moe.scoring import Scores, score
from moe.tokenizer import Tokenizer
from moe.verse import Copies, distinct_share, judge

Query = Mapping[str, Any]  # {"id", "task", "messages", and where they apply "form", "title", "label"}


@dataclass(frozen=True)
class Reply:
    text: str
    finished: bool  # the model ended the answer itself


def perplexity(nats: float, targets: int) -> float:
    return exp(min(nats / max(1, targets), 700.0))


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Cross-entropy per UTF-8 byte of the targets: comparable between tokenizers, as perplexity is not."""
    return nats / log(2) / max(1, text_bytes)


def piece_bytes(tokenizer: Tokenizer) -> Tensor:
    """UTF-8 bytes that each token id stands for, [padded vocabulary]; specials stand for none."""
    sizes = torch.zeros(tokenizer.padded_size, dtype=torch.long)
    for token in range(tokenizer.size):
        sizes[token] = len(tokenizer.bytes_of(token))
    return sizes


def answer(
    model: Decoder, tokenizer: Tokenizer, queries: Sequence[Query], cfg: Evaluate, *, seed: int, slots: int = 128
) -> list[Reply]:
    """The model's answers to the queries, in their order."""
    prompts = [prompt_ids(tokenizer, query["messages"]) for query in queries]
    asked = [
        Sampling(
            max(1, min(cfg.max_new_tokens, model.cfg.context - len(prompt))),
            temperature=cfg.temperature,
            top_p=cfg.top_p,
            seed=seed * 1_000_003 + place,  # from the query's place, so that two models answer with the same dice
        )
        for place, prompt in enumerate(prompts)
    ]
    stop = (tokenizer.im_end, tokenizer.eos)
    return [reply(tokenizer, made) for made in generate(model, prompts, asked, stop=stop, slots=slots)]


def reply(tokenizer: Tokenizer, made: Answer) -> Reply:
    return Reply(tokenizer.decode(made.tokens), made.finish == "stop")


def answer_scores(
    model: Decoder, tokenizer: Tokenizer, queries: Sequence[Query], answers: Sequence[str]
) -> list[Scores]:
    """What the model says of the tokens of an answer to each query, the `<|im_end|>` that ends it included.

    Their sum is the log-probability of just this answer: one that is the beginning of another, or shorter, has no
    advantage, so answers of different length can be compared. Raises `InputError` naming a query that is too long.
    """
    prompts = [prompt_ids(tokenizer, query["messages"]) for query in queries]
    wholes = [
        [*prompt, *ids, tokenizer.im_end] for prompt, ids in zip(prompts, tokenizer.encode_batch(answers), strict=True)
    ]
    for query, ids in zip(queries, wholes, strict=True):
        if len(ids) > model.cfg.context:
            raise InputError(
                f"sample {query['id']}: {len(ids)} tokens are more than the model's context of {model.cfg.context}; "
                "shorten it or leave it out"
            )
    return score(model, wholes, starts=[len(prompt) for prompt in prompts])


def overlap(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """{"bleu", "chrf"} of all answers together (Papineni et al. 2002; Popovic 2015), each in [0, 100].

    Sacrebleu's `zh` tokens, whatever the language: every Chinese character is a word, and the rest is cut as its
    default cuts it. The default alone would take a line of verse for one word. Where all are shorter than four tokens,
    n-grams that no answer could have do not count (effective order).
    """
    from sacrebleu.metrics import BLEU, CHRF

    return {
        "bleu": BLEU(tokenize="zh", effective_order=True).corpus_score(answers, [references]).score,
        "chrf": CHRF().corpus_score(answers, [references]).score,
    }


def verse_metrics(queries: Sequence[Query], replies: Sequence[Reply], copies: Copies | None) -> dict[str, float]:
    """Shares in [0, 1] over the queries that ask for a poem in a form: `form_ok`, `rhyme_ok` (whatever the form),
    `rhyme_share`, `repeats`, `title_share`, `copied`, `distinct`, `finished`; and over those with a label,
    `<task>_accuracy`."""
    poems = [(query, reply) for query, reply in zip(queries, replies, strict=True) if query["task"] == "compose"]
    metrics: dict[str, float] = {}
    if poems:
        verdicts = [judge(r.text.strip(), q["form"], title=q.get("title", ""), copies=copies) for q, r in poems]
        metrics |= {
            "form_ok": _mean([v.form for v in verdicts]),
            "rhyme_ok": _mean([v.rhyme for v in verdicts]),
            "rhyme_share": _mean([v.rhyme_share for v in verdicts]),
            "repeats": _mean([v.repeats for v in verdicts]),
            "title_share": _mean([v.title_share for v in verdicts]),
            "copied": _mean([v.copied for v in verdicts]),
            "distinct": distinct_share(r.text for _, r in poems),
            "finished": _mean([r.finished for _, r in poems]),
        }
    labelled: dict[str, list[bool]] = {}
    for query, made in zip(queries, replies, strict=True):
        if "label" in query:
            labelled.setdefault(query["task"], []).append(query["label"] in made.text)
    return metrics | {f"{task}_accuracy": _mean(right) for task, right in labelled.items()}


def _mean(values: Sequence[float | bool]) -> float:
    return sum(map(float, values)) / max(1, len(values))


def read_queries(path: Path, *, limit: int = 0) -> list[dict[str, Any]]:
    """The queries of a file of the tasks stage, in its order; with a limit, at most so many of each task."""
    queries = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return first_of_each(queries, limit) if limit else queries


def first_of_each(queries: Sequence[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most `limit` queries of each task, in their order."""
    taken: Counter[str] = Counter()
    first = []
    for query in queries:
        taken[query["task"]] += 1
        if taken[query["task"]] <= limit:
            first.append(query)
    return first


def answers(
    model: Decoder, tokenizer: Tokenizer, tasks: Path, cfg: Evaluate, *, seed: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The rules' metrics over the held-out queries of the tasks stage, and [{"id", "task", "prompt", "answer"}]."""
    queries = read_queries(tasks / "test_prompts.jsonl", limit=cfg.prompts)
    replies = answer(model, tokenizer, queries, cfg, seed=seed)
    shown = [
        {"id": q["id"], "task": q["task"], "prompt": q["messages"][-1]["content"], "answer": r.text}
        for q, r in zip(queries, replies, strict=True)
    ]
    return verse_metrics(queries, replies, Copies.load(tasks / "copies.npy")), shown


def side_by_side(
    models: Mapping[str, Decoder], tokenizer: Tokenizer, tasks: Path, cfg: Evaluate, *, count: int
) -> list[dict[str, str]]:
    """[{"prompt", <model>: answer, ...}] of the first `count` queries of each held-out task, with one seed."""
    queries = read_queries(tasks / "test_prompts.jsonl", limit=count)
    made = {name: answer(model, tokenizer, queries, cfg, seed=1) for name, model in models.items()}
    return [
        {"prompt": query["messages"][-1]["content"]} | {name: replies[n].text for name, replies in made.items()}
        for n, query in enumerate(queries)
    ]

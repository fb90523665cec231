"""What `trainers.evaluate` can measure of a language model: suites, which give metrics and answers to look at."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conf.schema import Config, Evaluate, InputError, Suite
from moe.decoder import Decoder
from moe.evaluation import (
    answer,
    answer_scores,
    answers,
    bits_per_byte,
    first_of_each,
    overlap,
    perplexity,
    piece_bytes,
    read_queries,
)
from moe.scoring import Scores
from moe.tokenizer import Tokenizer
from trainers.objectives import Batch, in_turn, language_loss
from trainers.packing import document, pack
from trainers.poems import query
from trainers.readers import expand, read_records
from trainers.rows import FILE as ROWS_FILE
from trainers.rows import Rows
from trainers.samples import Sample, read_samples
from trainers.tokenizer import texts

WINDOW = 1024  # tokens of text that are read at once, if the model's context has so many
ROWS_AT_ONCE = 8

Metrics = dict[str, float]
Shown = list[dict[str, Any]]  # examples to look at: id, task, prompt, answer, and the reference where there is one


def language_metrics(model: Decoder, tokenizer: Tokenizer, batches: Iterable[Batch]) -> Metrics:
    """{"loss" (nats per target), "perplexity", "bits_per_byte"} over all batches together."""
    sizes, nats, targets, text_bytes = piece_bytes(tokenizer), 0.0, 0, 0
    with torch.no_grad():
        for batch in batches:
            loss = language_loss(model, batch)
            nats += float(loss.total)
            targets += loss.units
            text_bytes += int(sizes[batch["tokens"][batch["loss"] == 1]].sum())
    return {
        "loss": nats / max(1, targets),
        "perplexity": perplexity(nats, targets),
        "bits_per_byte": bits_per_byte(nats, text_bytes),
    }


def packed(documents: Iterable[str], tokenizer: Tokenizer, *, row_length: int, limit: int) -> Iterator[Batch]:
    """The documents as at most `limit` packed rows, some at a time. A long one is read in windows of a row's length."""
    pieces = (document(tokenizer.encode(text), tokenizer.eos) for text in documents)
    rows = islice(pack(pieces, row_length, pad=tokenizer.pad), limit)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        names = ("tokens", "segments", "loss")
        yield {name: torch.from_numpy(np.stack([getattr(row, name) for row in some])).long() for name in names}


def task_metrics(
    model: Decoder, tokenizer: Tokenizer, samples: Sequence[Sample], cfg: Evaluate
) -> tuple[Metrics, Shown]:
    """Metrics of each task, `<task>/<name>`, and the answers.

    The last turn of a sample is the reference. Of the reference itself: `loss` (nats per token, the end of the answer
    included) and `bits_per_byte`. Of the model's likeliest answer (greedy, so that it is one answer and not a draw):
    `exact_match`; `accuracy`, whether it names the sample's `label`; where neither label nor choices bind an answer,
    `bleu` and `chrf`. Of the sample's `choices`: `choice_accuracy`, whether the reference is the most probable answer.
    `macro/<name>` is the mean over the tasks that have it. Raises `InputError` naming a sample that cannot be used.
    """
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample["task"], []).append(sample)
    metrics: Metrics = {}
    shown: Shown = []
    for task, its in sorted(by_task.items()):
        measured, examples = _measure(model, tokenizer, its, cfg)
        metrics |= {f"{task}/{name}": value for name, value in measured.items()}
        shown += examples
    names = sorted({name.rpartition("/")[2] for name in metrics})
    return metrics | {
        f"macro/{name}": _mean([metrics.get(f"{task}/{name}") for task in by_task]) for name in names
    }, shown


def _measure(model: Decoder, tokenizer: Tokenizer, samples: Sequence[Sample], cfg: Evaluate) -> tuple[Metrics, Shown]:
    queries = [query(sample) for sample in samples]
    references = [str(sample["messages"][-1]["content"]) for sample in samples]
    scores = answer_scores(model, tokenizer, queries, references)
    nats = fsum(score.nats for score in scores)
    metrics = {
        "loss": nats / sum(len(score.logprobs) for score in scores),
        "bits_per_byte": bits_per_byte(nats, sum(len(text.encode()) for text in references)),
    }
    # Greedy: the dice need no seed.
    replies = [reply.text.strip() for reply in answer(model, tokenizer, queries, replace(cfg, temperature=0.0), seed=0)]
    metrics["exact_match"] = _mean([made == text.strip() for made, text in zip(replies, references, strict=True)])
    labelled = [(made, sample["label"]) for made, sample in zip(replies, samples, strict=True) if "label" in sample]
    if labelled:
        metrics["accuracy"] = _mean([label in made for made, label in labelled])
    chosen = [place for place, sample in enumerate(samples) if "choices" in sample]
    if chosen:
        metrics["choice_accuracy"] = _mean(
            [_chooses_right(model, tokenizer, samples[place], scores[place]) for place in chosen]
        )
    if not labelled and not chosen:
        metrics |= overlap(replies, references)
    shown = [
        {"id": sample["id"], "task": sample["task"], "prompt": asked["messages"][-1]["content"]}
        | {"reference": reference, "answer": made}
        for sample, asked, reference, made in zip(samples, queries, references, replies, strict=True)
    ]
    return metrics, shown


def _chooses_right(model: Decoder, tokenizer: Tokenizer, sample: Sample, reference: Scores) -> bool:
    """Whether none of the other choices is as probable as the reference."""
    choices, right = sample["choices"], sample["messages"][-1]["content"]
    if not isinstance(choices, list) or not all(isinstance(text, str) for text in choices) or right not in choices:
        raise InputError(f"sample {sample['id']}: choices must be a list of answers, its last message among them")
    others = [text for text in choices if text != right]
    scores = answer_scores(model, tokenizer, [query(sample)] * len(others), others)
    return all(other.nats > reference.nats for other in scores)


def _mean(values: Sequence[float | None]) -> float:
    known = [float(value) for value in values if value is not None]
    return fsum(known) / len(known)


def missing(suite: Suite, cfg: Config) -> str:
    """What a suite would measure on and does not have; empty if it has it."""
    run, given = cfg.run.folder, cfg.evaluate
    if suite is Suite.perplexity:
        has, want = bool(given.files) or (run / "tokens" / "val" / ROWS_FILE).is_file(), "evaluate.files"
    elif suite is Suite.verse:
        has, want = (run / "tasks" / "copies.npy").is_file(), "a run with the stage tasks"
    else:
        has, want = bool(given.tasks) or (run / "tasks" / "val.jsonl").is_file(), "evaluate.tasks"
    return "" if has else f"{run} has no data for the suite {suite.name}; give {want}, or another run.name"


def _perplexity(model: Decoder, tokenizer: Tokenizer, cfg: Config) -> tuple[Metrics, Shown]:
    run, given = cfg.run.folder, cfg.evaluate
    documents: Iterable[str]
    if given.files:
        documents = _documents(expand(given.files, "evaluate.files"))
    else:
        rows = Rows(run / "tokens" / "val")
        if rows.tokenizer == tokenizer.digest:
            return language_metrics(model, tokenizer, in_turn(rows, given.rows)), []
        documents = texts(run / "corpus", "val")  # the same text, in the pieces of this model
    row_length = min(WINDOW, model.cfg.context)
    batches = packed(documents, tokenizer, row_length=row_length, limit=given.rows)
    return language_metrics(model, tokenizer, batches), []


def _documents(files: Sequence[str]) -> Iterator[str]:
    for path in files:
        for number, record in read_records(path):
            if not isinstance(record.get("text"), str):
                raise InputError(f"{path}:{number}: no text in field 'text'; evaluate.files are .txt, or have it")
            yield record["text"]


def _samples(cfg: Config) -> list[Sample]:
    if cfg.evaluate.tasks:
        return [sample for path in expand(cfg.evaluate.tasks, "evaluate.tasks") for sample in read_samples(path)]
    return read_queries(cfg.run.folder / "tasks" / "val.jsonl")


def _tasks(model: Decoder, tokenizer: Tokenizer, cfg: Config) -> tuple[Metrics, Shown]:
    return task_metrics(model, tokenizer, first_of_each(_samples(cfg), cfg.evaluate.prompts), cfg.evaluate)


def _verse(model: Decoder, tokenizer: Tokenizer, cfg: Config) -> tuple[Metrics, Shown]:
    return answers(model, tokenizer, cfg.run.folder / "tasks", cfg.evaluate, seed=cfg.run.seed)


def _examples(model: Decoder, tokenizer: Tokenizer, cfg: Config) -> tuple[Metrics, Shown]:
    """An answer to the first sample of each task, sampled as a user would see it."""
    queries = [query(sample) for sample in first_of_each(_samples(cfg), 1)]
    replies = answer(model, tokenizer, queries, cfg.evaluate, seed=cfg.run.seed)
    return {}, [
        {"id": asked["id"], "task": asked["task"], "prompt": asked["messages"][-1]["content"], "answer": made.text}
        for asked, made in zip(queries, replies, strict=True)
    ]


SUITES: dict[Suite, Callable[[Decoder, Tokenizer, Config], tuple[Metrics, Shown]]] = {
    Suite.perplexity: _perplexity,
    Suite.tasks: _tasks,
    Suite.verse: _verse,
    Suite.samples: _examples,
}


def load(path: Path) -> tuple[Decoder, Tokenizer]:
    """Model and tokenizer of a folder, ours or any that can be a parent. A base model without the marks of a chat gets
    them, each as the mean of the pieces it was written with before."""
    from moe.parents import read
    from moe.vocabulary import grow

    tokenizer = Tokenizer.load(path)
    return grow(read(path), tokenizer, tokenizer), tokenizer

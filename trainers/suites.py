"""What `trainers.evaluate` can measure of a language model: suites, which give metrics and answers to look at."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from math import fsum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conf.errors import InputError
from conf.knobs.running import Evaluate, Suite
from conf.knobs.text import Txt
from conf.schema import Config
from moe.decoder import Decoder
from moe.formats.checkpoints import read
from moe.formats.grow import grow
from moe.generation.answers import answer, answer_scores, judged_answers
from moe.generation.engines import Generation, Ours
from moe.generation.scoring import Scores, bits_per_byte, perplexity, piece_bytes
from moe.losses import cross_entropy_sum
from moe.tasks.domain import Domain
from moe.tasks.measure import first_of_each, overlap, read_task_file
from moe.tasks.task import Sample, Verdict, query
from moe.text.chat import replacement
from moe.text.tokenizer import Tokenizer
from moe.training.objectives import Batch, language_loss, on
from trainers.files.kinds import Form
from trainers.files.readers import at, expand, read_records
from trainers.files.samples import read_samples
from trainers.files.store import texts
from trainers.rows.held_out import in_turn
from trainers.rows.packing import Piece, document, pack
from trainers.rows.rows import FILE as ROWS_FILE
from trainers.rows.rows import Rows

WINDOW = 1024  # tokens of text that are read at once, if the model's context has so many
ROWS_AT_ONCE = 8

Metrics = dict[str, float]
Shown = list[dict[str, Any]]  # examples to look at: id, task, prompt, answer, and the reference where there is one


def language_metrics(model: Decoder, tokenizer: Tokenizer, batches: Iterable[Batch]) -> Metrics:
    """{"loss" (nats per target), "perplexity", "bits_per_byte" (of text: see there)} over all batches together."""
    sizes, nats, targets, text_nats, text_bytes = piece_bytes(tokenizer).to(model.device), 0.0, 0, 0.0, 0
    with torch.no_grad():
        for batch in (on(one, model) for one in batches):
            loss = language_loss(model, batch)
            nats += float(loss.total)
            targets += loss.units
            tokens, counted = batch["tokens"].flatten(), batch["loss"].flatten() == 1
            no_text = (counted & (sizes[tokens] == 0)).nonzero().squeeze(1)
            marks = cross_entropy_sum(loss.hidden.before(no_text), model.lm_head.weight, tokens[no_text])
            text_nats += float(loss.total) - float(marks)
            text_bytes += int(sizes[tokens[counted]].sum())
    return {
        "loss": nats / max(1, targets),
        "perplexity": perplexity(nats, targets),
        "bits_per_byte": bits_per_byte(text_nats, text_bytes),
    }


def held_out(model: Decoder, tokenizer: Tokenizer, rows: Rows, *, limit: int) -> Metrics:
    """{"loss" (nats per target), "perplexity", "bits_per_byte"} over the first `limit` packed rows."""
    check_tokenizer(rows, tokenizer)
    return language_metrics(model, tokenizer, in_turn(rows, limit))


def check_tokenizer(rows: Rows, tokenizer: Tokenizer) -> None:
    """Raise `InputError` if the rows were made with another tokenizer than the model's."""
    if rows.tokenizer != tokenizer.digest:
        raise InputError(
            f"{rows.folder}: made with tokenizer {rows.tokenizer[:12]}, the model has {tokenizer.digest[:12]}; "
            "run trainers.tokens again with the model's tokenizer (tokenizer.path=<model folder>)"
        )


def packed(documents: Iterable[str], tokenizer: Tokenizer, *, row_length: int, limit: int) -> Iterator[Batch]:
    """The documents as at most `limit` packed rows, some at a time. A long one is read in windows of a row's length."""
    pieces = (piece for text in documents for piece in windows(text, tokenizer, row_length))
    rows = islice(pack(pieces, row_length, pad=tokenizer.pad), limit)
    while some := list(islice(rows, ROWS_AT_ONCE)):
        names = ("tokens", "segments", "loss")
        yield {name: torch.from_numpy(np.stack([getattr(row, name) for row in some])).long() for name in names}


def windows(text: str, tokenizer: Tokenizer, row_length: int) -> Iterator[Piece]:
    """A document to be read, each of its tokens predicted once. Where the tokenizer's family puts a mark before every
    text, every window of a long one begins with it: such a model is lost without."""
    (ids,), before = tokenizer.encode_texts([text]), tokenizer.opening
    if not before:
        yield document(ids, tokenizer.eos)
        return
    whole, room = [*ids, tokenizer.eos], row_length - len(before)
    first = whole[:room]
    yield document(first[:-1], first[-1], before)
    for start in range(room, len(whole), room - 1):
        part = whole[start - 1 : start + room - 1]
        yield [*before, *part], [0] * (len(before) + 1) + [1] * (len(part) - 1)


def task_metrics(
    model: Decoder, tokenizer: Tokenizer, samples: Sequence[Sample], cfg: Evaluate
) -> tuple[Metrics, Shown]:
    """Metrics of each task, `<task>/<name>`, and the answers.

    The last turn of a sample is the reference. Of the reference itself: `loss` (nats per token, the end of the answer
    included) and `bits_per_byte` (without it). Of the model's likeliest answer (greedy: one answer and not a draw):
    `exact_match`; `accuracy`, whether it names the sample's `label`; where neither label nor choices bind an answer,
    `bleu` and `chrf`. Of the sample's `choices`: `choice_accuracy`, whether the reference is the most probable answer.
    `macro/<name>` is the mean over the tasks that have it. Raises `InputError` naming a sample that cannot be used.
    """
    by_task: dict[str, list[Sample]] = {}
    for sample in samples:
        by_task.setdefault(sample.task, []).append(sample)
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
    references = [sample.messages[-1]["content"] for sample in samples]
    scores = answer_scores(model, tokenizer, queries, references)
    nats = fsum(score.nats for score in scores)
    text_nats = nats + fsum(score.logprobs[-1] for score in scores)  # the last is the end
    metrics = {
        "loss": nats / sum(len(score.logprobs) for score in scores),
        "bits_per_byte": bits_per_byte(text_nats, sum(len(text.encode()) for text in references)),
    }
    # Greedy: the dice need no seed.
    greedy = replace(cfg, temperature=0.0)
    replies = [reply.text.strip() for reply in answer(Ours(model, tokenizer), tokenizer, queries, greedy, seed=0)]
    metrics["exact_match"] = _mean([made == text.strip() for made, text in zip(replies, references, strict=True)])
    labelled = [(made, sample.label) for made, sample in zip(replies, samples, strict=True) if sample.label is not None]
    if labelled:
        metrics["accuracy"] = _mean([label in made for made, label in labelled])
    chosen = [place for place, sample in enumerate(samples) if "choices" in sample.fields]
    if chosen:
        metrics["choice_accuracy"] = _mean(
            [_chooses_right(model, tokenizer, samples[place], scores[place]) for place in chosen]
        )
    if not labelled and not chosen:
        metrics |= overlap(replies, references)
    shown = [
        {"id": sample.id, "task": sample.task, "prompt": asked.prompt} | {"reference": reference, "answer": made}
        for sample, asked, reference, made in zip(samples, queries, references, replies, strict=True)
    ]
    return metrics, shown


def _chooses_right(model: Decoder, tokenizer: Tokenizer, sample: Sample, reference: Scores) -> bool:
    """Whether none of the other choices is as probable as the reference."""
    choices, right = sample.fields["choices"], sample.messages[-1]["content"]
    if not isinstance(choices, list) or not all(isinstance(text, str) for text in choices) or right not in choices:
        raise InputError(f"sample {sample.id}: choices must be a list of answers, its last message among them")
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
    elif suite is Suite.rules:
        has, want = (run / "tasks" / "test_prompts.jsonl").is_file(), "a run with the stage tasks"
    else:
        has, want = bool(given.tasks) or (run / "tasks" / "val.jsonl").is_file(), "evaluate.tasks"
    return "" if has else f"{run} has no data for the suite {suite.name}; give {want}, or another run.name"


def _perplexity(model: Decoder, tokenizer: Tokenizer, cfg: Config) -> tuple[Metrics, Shown]:
    run, given = cfg.run.folder, cfg.evaluate
    documents: Iterable[str]
    if given.files:
        documents = _documents(expand(given.files, "evaluate.files"), cfg.corpus.txt)
    else:
        rows = Rows(run / "tokens" / "val")
        if rows.tokenizer == tokenizer.digest:
            return language_metrics(model, tokenizer, in_turn(rows, given.rows)), []
        documents = texts(run / "corpus", "val")  # the same text, in the pieces of this model
    row_length = min(WINDOW, model.cfg.context)
    batches = packed(documents, tokenizer, row_length=row_length, limit=given.rows)
    return language_metrics(model, tokenizer, batches), []


def _documents(files: Sequence[str], txt: Txt) -> Iterator[str]:
    for path in files:
        for number, record in read_records(path, needed=["text"], form=Form(txt=txt)):
            if not isinstance(record.get("text"), str):
                raise InputError(f"{at(path, number)}: no text in field 'text'; evaluate.files are .txt, or have it")
            yield record["text"]


def _samples(cfg: Config) -> list[Sample]:
    if cfg.evaluate.tasks:
        return [sample for path in expand(cfg.evaluate.tasks, "evaluate.tasks") for sample in read_samples(path)]
    return read_task_file(cfg.run.folder / "tasks" / "val.jsonl")


def _tasks(model: Decoder, tokenizer: Tokenizer, cfg: Config) -> tuple[Metrics, Shown]:
    return task_metrics(model, tokenizer, first_of_each(_samples(cfg), cfg.evaluate.prompts), cfg.evaluate)


def rules_metrics(
    engine: Generation, tokenizer: Tokenizer, cfg: Config, asking: Callable[[Sample], Sample] = lambda query: query
) -> tuple[Metrics, Shown]:
    """The measures of the domain's rules on answers to the held-out queries of the run, and the answers; the model may
    be asked in other words than those by which its answers are judged."""
    tasks = cfg.run.folder / "tasks"
    queries = read_task_file(tasks / "test_prompts.jsonl", limit=cfg.evaluate.prompts)
    judge, by_id = Domain.of(cfg.tasks).judge(tasks), {query.id: query for query in queries}
    asked = [asking(query) for query in queries]

    def judged(query: Sample, text: str, finished: bool) -> Verdict:
        return judge(by_id[query.id], text, finished)

    return judged_answers(engine, tokenizer, asked, judged, cfg.evaluate, seed=cfg.run.seed)


def _rules(model: Decoder, tokenizer: Tokenizer, cfg: Config) -> tuple[Metrics, Shown]:
    return rules_metrics(Ours(model, tokenizer), tokenizer, cfg)


def _examples(model: Decoder, tokenizer: Tokenizer, cfg: Config) -> tuple[Metrics, Shown]:
    """An answer to the first sample of each task, sampled as a user would see it."""
    queries = [query(sample) for sample in first_of_each(_samples(cfg), 1)]
    replies = answer(Ours(model, tokenizer), tokenizer, queries, cfg.evaluate, seed=cfg.run.seed)
    return {}, [
        {"id": asked.id, "task": asked.task, "prompt": asked.prompt, "answer": made.text}
        for asked, made in zip(queries, replies, strict=True)
    ]


SUITES: dict[Suite, Callable[[Decoder, Tokenizer, Config], tuple[Metrics, Shown]]] = {
    Suite.perplexity: _perplexity,
    Suite.tasks: _tasks,
    Suite.rules: _rules,
    Suite.samples: _examples,
}


def load(path: Path) -> tuple[Decoder, Tokenizer]:
    """Model and tokenizer of a folder, ours or any that can be a parent. A base model without the marks of a chat gets
    them, each as the mean of the pieces it was written with before."""

    tokenizer = Tokenizer.load(path)
    if line := replacement(tokenizer):
        print(line)
    return grow(read(path), tokenizer, tokenizer), tokenizer

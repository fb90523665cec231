"""What the supervised stages say of the model that they have written; computed on a worker, from the folder."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from math import exp, log
from pathlib import Path
from typing import Any

import torch

from cluster.connect import on_worker
from cluster.storage import write_json
from conf.knobs.alignment import RewardLoss
from conf.knobs.running import Cluster
from conf.schema import Config
from moe.decoder import Decoder
from moe.footprint import active_parameters, parameters
from moe.formats import hugging_face
from moe.generation.engines import Ours
from moe.tasks.measure import first_of_each
from moe.tasks.task import Sample
from moe.text.chat import prompt_ids
from moe.text.tokenizer import Tokenizer
from moe.training.objectives import on
from moe.training.parallel import take_device
from trainers.files.hindsight import asking, language
from trainers.rows.held_out import in_turn
from trainers.rows.preferences import calibration, count_units, judge
from trainers.rows.rows import Rows
from trainers.suites import held_out, language_metrics, rules_metrics, task_metrics

Shown = dict[str, list[dict[str, Any]]]
ANSWERS = ("answers.json", "task_answers.json")  # files that `answering` writes


def of_base(
    folder: Path, text: Path, cfg: Config, general: Mapping[str, Path] | None = None
) -> tuple[dict[str, float], dict[str, float]]:
    """(loss, perplexity and bits per byte on the held-out text and how large the model is, its `general_loss`)."""
    take_device(cfg.cluster)
    model, tokenizer = hugging_face.load(folder), Tokenizer.load(folder)
    metrics = held_out(model, tokenizer, Rows(text), limit=cfg.evaluate.rows) | sizes(model)
    return metrics, general_loss(model, tokenizer, general) if general else {}


def general_loss(model: Decoder, tokenizer: Tokenizer, rows: Mapping[str, Path]) -> dict[str, float]:
    """{"loss" (nats per token), "per_byte" (nats per byte)} over all the texts that `rows` are packed of, and
    "<name>/loss", "<name>/per_byte" of each."""
    found: dict[str, float] = {}
    batches = {name: list(in_turn(opened, len(opened))) for name, opened in ((n, Rows(p)) for n, p in rows.items())}
    for prefix, part in {"": list(chain.from_iterable(batches.values())), **batches}.items():
        measured = language_metrics(model, tokenizer, part)
        head = f"{prefix}/" if prefix else ""
        found |= {f"{head}loss": measured["loss"], f"{head}per_byte": measured["bits_per_byte"] * log(2)}
    return found


def sizes(model: Decoder) -> dict[str, float]:
    """How many parameters there are, and how many of them a token passes through."""
    return {
        "parameters": sum(parameters(model.cfg, model.vocab_size).values()),
        "active_parameters": sum(active_parameters(model.cfg, model.vocab_size).values()),
    }


def of_chat(
    folder: Path, base: Path, text: Path | None, samples: Sequence[Sample], rows: Sequence[Path], cfg: Config
) -> tuple[dict[str, float], Shown]:
    """(metrics, answers to look at): the measures of the domain's rules on the held-out queries, each task's metrics on
    the held-out `samples`, the loss on the `rows` packed of them, and what was forgotten of the base model's `text`, if
    the run has any."""
    take_device(cfg.cluster)
    model, tokenizer = hugging_face.load(folder), Tokenizer.load(folder)
    ruled, answers = rules_metrics(Ours(model, tokenizer), tokenizer, cfg)
    by_task, told = task_metrics(model, tokenizer, first_of_each(samples, cfg.evaluate.prompts), cfg.evaluate)
    batches = chain.from_iterable(in_turn(Rows(path), cfg.evaluate.rows) for path in rows)
    metrics = ruled | by_task | language_metrics(model, tokenizer, batches)
    if text is not None:
        metrics |= forgetting(hugging_face.load(base), model, tokenizer, Rows(text), limit=cfg.evaluate.rows)
    return metrics, {"answers": answers, "task_answers": told}


def of_prompted(folder: Path, cfg: Config) -> dict[str, float]:
    """{"prompted/<measure>"} of the domain's rules on answers to the held-out queries, each asked with the good phrase
    of its language where the context has room for it."""
    take_device(cfg.cluster)
    model, tokenizer = hugging_face.load(folder), Tokenizer.load(folder)

    def asked(query: Sample) -> Sample:
        messages = asking(query.messages, language(query.messages, cfg.cohft).good)
        return replace(query, messages=messages) if len(prompt_ids(tokenizer, messages)) < model.cfg.context else query

    metrics, _ = rules_metrics(Ours(model, tokenizer), tokenizer, cfg, asked)
    return {f"prompted/{name}": value for name, value in metrics.items()}


def answering(
    folder: Path, base: Path, text: Path | None, samples: Sequence[Sample], rows: Sequence[Path], cfg: Config
) -> dict[str, float]:
    """`of_chat` on a worker: its metrics; the answers are written into `folder`."""
    asked = (folder, base, text, samples, rows, cfg)
    metrics, shown = on_worker(cfg.cluster, of_chat, *asked, within=cfg.evaluate.timeout)
    for name, answers in shown.items():
        write_json(folder / f"{name}.json", answers)
    return metrics


def forgetting(before: Decoder, after: Decoder, tokenizer: Tokenizer, text: Rows, *, limit: int) -> dict[str, float]:
    """{"base_perplexity_before", "base_perplexity_after"} of the base model's held-out text, and "forgetting", the
    second over the first; nothing where the corpus holds no text out."""
    if not len(text):
        return {}
    old, new = (held_out(model, tokenizer, text, limit=limit)["perplexity"] for model in (before, after))
    return {"base_perplexity_before": old, "base_perplexity_after": new, "forgetting": new / old}


def kept(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Metrics of two `general_loss`: "retention/before", "retention/after", the same per byte and of each text, and
    "forgetting", the perplexity after over that before."""
    found: dict[str, float] = {}
    for when, losses in (("before", before), ("after", after)):
        for name, value in losses.items():
            head, _, measure = name.rpartition("/")
            short = when if measure == "loss" else f"{when}_per_byte"
            found["/".join(filter(None, ("retention", head, short)))] = value
    return found | {"forgetting": exp(after["loss"] - before["loss"])}


def of_reward(
    folder: Path, rows: Path, kind: RewardLoss, cluster: Cluster
) -> tuple[dict[str, float], dict[str, list[dict[str, float]]]]:
    """(metrics, the bins of each score's calibration) over all rankings in the rows, of the reward model in `folder`.

    "loss" (of the total, mean, nats), "pair_accuracy", "brier", "ece", of a principle "<name>/accuracy" and so on where
    the rows tell answers apart by it, and "score_mean" and "score_std" of all answers, the scale of PPO.
    """
    take_device(cluster)
    model, opened = hugging_face.load(folder), Rows(rows)
    head = model.head
    totals, units, loss = [], 0, 0.0
    ahead: dict[str, list[Any]] = {name: [] for name in head}
    with torch.no_grad():
        for batch in (on(one, model) for one in in_turn(opened, len(opened))):
            judged, _ = judge(model, batch, head)
            loss += float(judged[0].loss(kind))
            units += count_units(batch, kind)
            totals.append(judged[0].scores[judged[0].ranks >= 0])
            for name, one in zip(head, judged, strict=True):
                ahead[name].append(one.ahead())
    scores = torch.cat(totals)
    metrics = {"loss": loss / units, "score_mean": float(scores.mean()), "score_std": float(scores.std())}
    bins = {}
    for name, parts in ahead.items():
        if len(differences := torch.cat(parts)):
            found, bins[name] = calibration(differences)
            if name == head[0]:
                metrics |= {"pair_accuracy": found.pop("accuracy"), **found}
            else:
                metrics |= {f"{name}/{key}": value for key, value in found.items()}
    return metrics, bins

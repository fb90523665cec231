"""How hard the samples of a task are for a model: its loss on their answers, and their rank within the task by it."""

import json
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from cluster.progress import counter
from cluster.storage import write_file, write_json
from moe.decoder import Decoder
from moe.scoring import score
from trainers.packing import Piece
from trainers.samples import Sample

GRADES = "grades.jsonl"  # of each sample: id, task, loss, rank
SUMMARY = "difficulty.json"  # of each task: how its losses lie
_TOGETHER = 256  # samples between two looks at the progress
_SHOWN = 5  # samples of a task that the summary names at either end


def grade(folder: Path, model: Decoder, samples: Sequence[Sample], pieces: Sequence[Piece]) -> None:
    """Write how hard the samples are for the model, whose ids and loss masks are `pieces`, into `folder`."""
    losses = answer_losses(model, pieces)
    grades = [
        {"id": sample["id"], "task": sample["task"], "loss": loss, "rank": rank}
        for sample, loss, rank in zip(samples, losses.tolist(), ranks(samples, losses).tolist(), strict=True)
    ]
    write_json(folder / SUMMARY, summary(grades))
    write_file(folder / GRADES, "".join(json.dumps(made, ensure_ascii=False) + "\n" for made in grades))


def read_ranks(folder: Path) -> list[float]:
    """The rank of each sample, as `grade` wrote them."""
    return [json.loads(line)["rank"] for line in (folder / GRADES).read_text("utf-8").splitlines()]


def answer_losses(model: Decoder, pieces: Sequence[Piece]) -> np.ndarray:
    """[n] fp64: the mean loss in nats over the tokens of each piece that carry loss, to six digits."""
    losses = np.empty(len(pieces))
    by_length = sorted(range(len(pieces)), key=lambda number: len(pieces[number][0]))  # alike together: less padding
    with counter("difficulty", len(pieces)) as bar:
        for start in range(0, len(pieces), _TOGETHER):
            part = by_length[start : start + _TOGETHER]
            starts = [pieces[number][1].index(1) for number in part]
            scores = score(model, [pieces[number][0] for number in part], starts=starts)
            for number, first, scored in zip(part, starts, scores, strict=True):
                mask = np.array(pieces[number][1][first:])
                losses[number] = -(np.array(scored.logprobs) * mask).sum() / mask.sum()
            bar.advance(len(part))
    return losses.round(6)  # the last digits hang on the machine; the order of the samples must not


def ranks(samples: Sequence[Sample], losses: np.ndarray) -> np.ndarray:
    """[n] in (0, 1): the share of its task's samples that are easier than a sample, half of itself counted.

    By rank and not by z-score, since the losses of a task may lie anyhow, a few far out: every task has the same share
    of its samples in each quantile, so that what changes along a curriculum is the difficulty, not the mix of tasks.
    Where answers recur (labels, set phrases), what counts first is the rank among the samples of the same answer: a
    base model finds one label likelier than another whatever the question, and a quantile would hold little but it.
    """
    tasks = [sample["task"] for sample in samples]
    alike = [f"{sample['task']}\n{sample['messages'][-1]['content']}" for sample in samples]
    return _ranks(tasks, _ranks(alike, losses), losses)


def _ranks(groups: Sequence[str], *keys: np.ndarray) -> np.ndarray:
    """As `ranks`, within groups and by the first of `keys`, then the next; equals stay in their order."""
    codes = np.unique(np.array(groups, dtype=object), return_inverse=True)[1]
    counts = np.bincount(codes)
    order = np.lexsort((*reversed(keys), codes))  # group by group
    places = np.empty(len(groups))
    places[order] = np.arange(len(groups)) - np.repeat(np.cumsum(counts) - counts, counts)
    return (places + 0.5) / counts[codes]


def summary(grades: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each task: its samples, the mean and spread (standard deviation) of their losses, and those at the ends."""
    found = {}
    ordered = sorted(grades, key=lambda made: (made["task"], made["rank"]))
    for task, group in groupby(ordered, key=lambda made: made["task"]):
        own = [{"id": made["id"], "loss": made["loss"]} for made in group]
        losses = np.array([made["loss"] for made in own])
        found[task] = {
            "samples": len(own),
            "mean": float(losses.mean()),
            "spread": float(losses.std()),
            "easiest": own[:_SHOWN],
            "hardest": own[: -_SHOWN - 1 : -1],
        }
    return found

"""How hard the samples of a task are for a model: its loss on their answers, and their rank within the task by it."""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from cluster.connect import each_on_worker
from cluster.progress import counter
from cluster.storage import write_file, write_json
from conf.knobs.running import Cluster
from conf.schema import Config
from moe.formats import hugging_face
from moe.generation.scoring import score
from moe.tasks.task import Sample
from moe.training.parallel import take_device
from trainers.rows.packing import Piece

GRADES = "grades.jsonl"  # of each sample: id, task, loss, rank
SUMMARY = "difficulty.json"  # of each task: how its losses lie
_TOGETHER = 256  # samples between two steps of the progress
_SHOWN = 5  # samples of a task that the summary names at either end


def grade(folder: Path, base: Path, samples: Sequence[Sample], pieces: Sequence[Piece], cfg: Config) -> None:
    """Write how hard the samples, whose ids and loss masks are `pieces`, are for the model in `base` into `folder`."""
    losses = np.empty(len(pieces))
    by_length = sorted(range(len(pieces)), key=lambda number: len(pieces[number][0]))  # alike together: less padding
    parts = [by_length[start : start + _TOGETHER] for start in range(0, len(pieces), _TOGETHER)]
    asked = (base, [[pieces[number] for number in part] for part in parts], cfg.cluster)
    with counter("difficulty", len(pieces)) as bar:
        found = each_on_worker(cfg.cluster, answer_losses, *asked, within=cfg.evaluate.timeout)
        for part, made in zip(parts, found, strict=True):
            losses[part] = made
            bar.advance(len(part))
    grades = [
        {"id": sample.id, "task": sample.task, "loss": loss, "rank": rank}
        for sample, loss, rank in zip(samples, losses.tolist(), ranks(samples, losses).tolist(), strict=True)
    ]
    write_json(folder / SUMMARY, summary(grades))
    write_file(folder / GRADES, "".join(json.dumps(made, ensure_ascii=False) + "\n" for made in grades))


def read_ranks(folder: Path) -> list[float]:
    """The rank of each sample, as `grade` wrote them."""
    return [json.loads(line)["rank"] for line in (folder / GRADES).read_text("utf-8").splitlines()]


def answer_losses(base: Path, parts: Sequence[Sequence[Piece]], cfg: Cluster) -> Iterator[np.ndarray]:
    """Of each part [n] fp64: the mean loss in nats over the tokens of each piece that carry loss, to six digits."""
    take_device(cfg)
    model = hugging_face.load(base)
    for part in parts:
        starts = [mask.index(1) for _, mask in part]
        scores = score(model, [ids for ids, _ in part], starts=starts)
        losses = np.empty(len(part))
        for number, (scored, (_, mask)) in enumerate(zip(scores, part, strict=True)):
            learnt = np.array(mask[starts[number] :])
            losses[number] = -(np.array(scored.logprobs) * learnt).sum() / learnt.sum()
        yield losses.round(6)  # the last digits hang on the machine; the order of the samples must not


def ranks(samples: Sequence[Sample], losses: np.ndarray) -> np.ndarray:
    """[n] in (0, 1): the share of its task's samples that are easier than a sample, half of itself counted.

    By rank and not by z-score, since the losses of a task may lie anyhow, a few far out: every task has the same share
    of its samples in each quantile, so that what changes along a curriculum is the difficulty, not the mix of tasks.
    Where answers recur (labels, set phrases), what counts first is the rank among the samples of the same answer: a
    base model finds one label likelier than another whatever the question, and a quantile would hold little but it.
    """
    tasks = [sample.task for sample in samples]
    alike = [f"{sample.task}\n{sample.messages[-1]['content']}" for sample in samples]
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

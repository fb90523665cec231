"""What a model's answers come to, by the domain's verdicts and by comparison with references. Loads no model."""

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from moe.tasks.task import Sample, Verdict


def read_task_file(path: Path, *, limit: int = 0) -> list[Sample]:
    """The samples of a file of the stage tasks, in its order; with a limit, at most so many of each task."""
    samples = [Sample.of(json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    return first_of_each(samples, limit) if limit else samples


def first_of_each(samples: Sequence[Sample], limit: int) -> list[Sample]:
    """At most `limit` samples of each task, in their order."""
    taken: Counter[str] = Counter()
    first = []
    for sample in samples:
        taken[sample.task] += 1
        if taken[sample.task] <= limit:
            first.append(sample)
    return first


def measures(verdicts: Sequence[Verdict], texts: Sequence[str]) -> dict[str, float]:
    """The mean of each of the verdicts' measures over the answers that have it, and `distinct`: the share of the
    answers that are the first of their kind, labels left out."""
    names = dict.fromkeys(name for verdict in verdicts for name in verdict.measures)
    found = {name: _mean([v.measures[name] for v in verdicts if name in v.measures]) for name in names}
    free = [text for text, verdict in zip(texts, verdicts, strict=True) if verdict.free]
    return found | ({"distinct": len(set(free)) / len(free)} if free else {})


@cache
def _metrics() -> tuple[Any, Any]:
    from sacrebleu.metrics import BLEU, CHRF  # loads numpy's half of the world

    return BLEU(tokenize="zh", effective_order=True), CHRF()


def overlap(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """{"bleu", "chrf"} of all answers together (Papineni et al. 2002; Popovic 2015), each in [0, 100].

    Sacrebleu's `zh` tokens, whatever the language: every Chinese character is a word, and the rest is cut as its
    default cuts it. The default alone would take a line of verse for one word. Where all are shorter than four tokens,
    n-grams that no answer could have do not count (effective order).
    """
    bleu, chrf = _metrics()
    return {
        "bleu": bleu.corpus_score(answers, [references]).score,
        "chrf": chrf.corpus_score(answers, [references]).score,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(map(float, values)) / max(1, len(values))

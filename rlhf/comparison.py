"""Models beside each other on the same queries: of each measure a mean, how sure it is, and how far from the chat
model's. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from moe.tasks.task import Verdict
from moe.tasks.writing import words

RESAMPLES = 2000
LEVEL = 0.95
FIRST = "chat"  # what the others are compared with

Values = dict[int, float]  # of a measure, by the number of the query


@dataclass(frozen=True)
class Answered:
    """A model's answers to the queries, one each, in their order."""

    texts: Sequence[str]
    verdicts: Sequence[Verdict]  # of the domain's rules
    lengths: Sequence[int]  # tokens, the end included
    scores: Sequence[float] | None  # the reward model's, in standard deviations of the rankings'; None without one
    nats: Sequence[float] | None  # log-probability of a sampled answer less the chat model's; None for that model
    terms: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of the reward, each before its weight
    held: Sequence[float] | None = None  # scores of a reward model that no training used
    wins: Mapping[int, float] | None = None  # {query: 1 where it is better than the chat model's answer, 0.5: as good}

    @property
    def answers(self) -> list[dict[str, Any]]:
        """As judges are asked about them."""
        return [{"text": text, "finished": True} for text in self.texts]

    def values(self) -> dict[str, Values]:
        """Each measure that is a mean over queries: `win_rate`, `rules`, `reward_model`, `held_out_reward`, `kl`,
        `length`, `term/<term>`, `task/<measure>`."""
        found = {"rules": [verdict.reward for verdict in self.verdicts], "reward_model": self.scores, "kl": self.nats}
        found |= {"held_out_reward": self.held, "length": self.lengths}
        found |= {f"term/{name}": values for name, values in self.terms.items()}
        by_query = {name: dict(enumerate(map(float, of))) for name, of in found.items() if of is not None}
        if self.wins is not None:
            by_query["win_rate"] = dict(self.wins)
        for number, verdict in enumerate(self.verdicts):
            for name, value in verdict.measures.items():
                by_query.setdefault(f"task/{name}", {})[number] = float(value)
        return by_query


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


def interval(values: Sequence[float], seed: int) -> Interval:
    """The mean of one value a query, and the percentile bootstrap's interval over the queries (Efron 1979) in which it
    lies with a probability of `LEVEL`. The same seed draws the same queries."""
    array = np.asarray(values, dtype=np.float64)
    dice = np.random.default_rng(seed)
    means = np.array([array[dice.integers(0, len(array), len(array))].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(array.mean()), float(low), float(high))


def distinct_2(texts: Sequence[str]) -> float:
    """The share of all pairs of neighbouring words that are the first of their kind (Li et al. 2016); each Han
    character is a word. 0 where there are no pairs. It falls with the number of texts, so that resampling would give it
    a wrong interval."""
    pairs = [pair for text in texts for pair in pairwise(words(text))]
    return len(set(pairs)) / max(1, len(pairs))


def table(models: Mapping[str, Answered], seed: int) -> dict[str, dict[str, dict[str, Any]]]:
    """{model: {measure: {"mean", "low", "high", "gain": {"mean", "low", "high"}}}}: the mean over the queries that have
    the measure, and over those the difference from the chat model, query by query. `distinct_2` is a mean alone."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    base = models[FIRST].values() if FIRST in models else {}
    for model, answered in models.items():
        found[model] = {"distinct_2": {"mean": distinct_2(answered.texts)}}
        for name, values in answered.values().items():
            cell: dict[str, Any] = asdict(interval(list(values.values()), seed))
            both = values.keys() & base.get(name, {}).keys() if model != FIRST else set()
            if both:
                cell["gain"] = asdict(interval([values[n] - base[name][n] for n in sorted(both)], seed))
            found[model][name] = cell
    return found


def means(compared: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, float]:
    """The means of a table as metrics, "<model>/<measure>"."""
    return {f"{model}/{name}": cell["mean"] for model, cells in compared.items() for name, cell in cells.items()}

"""What a judge says of the answers to one query, what several say together, and the places that it comes to.

Letters: K answers of a query.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from moe.tasks.ranks import rank, total
from moe.tasks.task import Sample

Scores = Mapping[str, Sequence[float]]  # principle: [K] in [0, 1], more is better


@dataclass(frozen=True)
class Asked:
    """A query and the answers that are to be ranked."""

    query: Sample
    answers: Sequence[Mapping[str, Any]]  # [K] {"text", "finished"}


@dataclass(frozen=True)
class Opinion:
    """One judge's, on the answers to one query, under each principle apart."""

    scores: Scores  # under the principles on which it has a verdict
    why: Sequence[Mapping[str, Any]]  # [K] what it goes by, as rankings.jsonl shall keep it
    missing: Mapping[str, str] = field(default_factory=dict)  # principle without a verdict: why there is none
    said: Sequence[Mapping[str, Any]] = ()  # of the query as a whole, by whom and when


def together(opinions: Mapping[str, Opinion], weights: Mapping[str, float]) -> Scores:
    """The weighted mean of the judges' scores, an unnamed weight being 1, under the principles on which all of them
    have a verdict; one judge's own are left as they are."""
    first, *others = opinions.values()
    if not others:
        return first.scores
    shares = {name: weights.get(name, 1.0) / sum(weights.get(each, 1.0) for each in opinions) for name in opinions}
    return {
        principle: [
            sum(shares[name] * opinion.scores[principle][place] for name, opinion in opinions.items())
            for place in range(len(scores))
        ]
        for principle, scores in first.scores.items()
        if all(principle in other.scores for other in others)
    }


def placed(scores: Scores, why: Sequence[Mapping[str, Any]], margin: float) -> list[dict[str, Any]]:
    """[K] {"scores", "total", ..., "rank", "ranks"}: an answer's score under each principle, their mean, what `why`
    says of it, and the places (0 the best) that total and scores come to. Without any verdict there is neither total
    nor rank."""
    rounded = {name: [round(score, 4) for score in under] for name, under in scores.items()}
    ranks = {name: rank(under, margin) for name, under in rounded.items()}
    places = range(len(why))
    means = [total({name: under[place] for name, under in scores.items()}, scores) for place in places if scores]
    return [
        {
            "scores": {name: under[place] for name, under in rounded.items()},
            **({"total": means[place]} if scores else {}),
            **why[place],
            **({"rank": rank(means, margin)[place]} if scores else {}),
            "ranks": {name: under[place] for name, under in ranks.items()},
        }
        for place in places
    ]

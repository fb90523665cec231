"""What one PPO iteration reports, under verl's metric names."""

import time
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from moe.tasks.measure import measures
from moe.tasks.task import Sample, Verdict
from rlhf.messages import Batch, Response
from rlhf.record import Answered

_FEW = 16  # answers of which nothing is said
_PAIRS, _REPEATED = 8, 0.5  # pairs of neighbouring tokens that an answer must have; the share that was there before
_ORDERED, _LONGER = 0.95, 1.5  # rank correlation of length and reward; the longest answer in shortest ones
_NAMED = 5  # samples in a text


class Stopwatch:
    """Seconds of the parts of an iteration."""

    def __init__(self) -> None:
        self._last = self._start = time.perf_counter()
        self._parts: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._parts[f"timing_s/{name}"] = now - self._last
        self._last = now

    def times(self, tokens: int) -> dict[str, float]:
        """The parts, their sum, and tokens per second (prompts and answers) of the whole iteration."""
        whole = time.perf_counter() - self._start
        return self._parts | {"timing_s/step": whole, "perf/throughput": tokens / whole}


def answer_metrics(every: Answered) -> dict[str, float]:
    """Of all answers that an iteration ended, before any is chosen to learn from: the measures of the domain's rules as
    `rl/task/<measure>`, and how long the answers are. Nothing where none ended."""
    count = len(every.responses)
    if not count:
        return {}
    return {f"rl/task/{name}": value for name, value in measures(every.verdicts, every.texts).items()} | {
        "response_length/mean": sum(len(response.whole) for response in every.responses) / count,
        "response/finished": sum(response.finished for response in every.responses) / count,
        "rl/rules/mean": sum(verdict.reward for verdict in every.verdicts) / count,
    }


def to_look_at(
    asked: Sequence[Sample], texts: Sequence[str], verdicts: Sequence[Verdict], count: int
) -> list[dict[str, str | float]]:
    """At most `count` of an iteration's answers: the first to each query, then the others."""
    firsts = [place for place, query in enumerate(asked) if place == 0 or query.id != asked[place - 1].id]
    rest = [place for place in range(len(asked)) if place not in set(firsts)]
    return [
        {
            "id": asked[place].id,
            "task": asked[place].task,
            "prompt": asked[place].prompt,
            "answer": texts[place],
            "rules": verdicts[place].reward,
        }
        for place in [*firsts, *rest][:count]
    ]


def learning_metrics(batch: Batch, earned: Tensor, reference: Tensor, rewards: Tensor) -> dict[str, float]:
    """Means over the answers that are learnt from; `rl/kl` is in nats per answer, against the chat model."""
    return {
        "rl/reward": float(earned.sum(1).mean()),
        "rl/kl": float(((batch.logprobs - reference) * batch.mask).sum(1).mean()),
        "critic/rewards/mean": float(rewards.sum(1).mean()),
    }


def hacked(
    responses: Sequence[Response], earned: Tensor, going: Sequence[bool] = (), *, by_length: bool = False
) -> dict[str, str]:
    """{"rl/alarm/<what>": text naming samples} where what the answers `earned` [B], but those that are still `going`,
    says that the reward is paid for repetition or for length, not for what is meant; `by_length`: length is meant to be
    paid."""
    if any(going):
        done = [place for place, more in enumerate(going) if not more]
        responses, earned = [responses[place] for place in done], earned[done]
    if len(responses) < _FEW or not float(earned.std()) > 0:
        return {}
    order = earned.argsort(descending=True, stable=True).tolist()
    best, others = order[: len(order) // 2], order[len(order) // 2 :]
    found = {}
    hollow = {place for place in order if _repeated(responses[place].whole) >= _REPEATED}
    paid, unpaid = [place for place in best if place in hollow], [place for place in others if place in hollow]
    if len(paid) >= len(best) / 2 and len(paid) > 2 * len(unpaid):
        found["rl/alarm/repetition"] = (
            f"{len(paid)} of the {len(best)} best paid answers repeat themselves, of the others {len(unpaid)}: "
            f"{_names(responses, paid)}"
        )
    lengths = torch.tensor([float(len(response.whole)) for response in responses])
    ordered = _spearman(lengths, earned)
    if not by_length and abs(ordered) >= _ORDERED and float(lengths.max()) >= _LONGER * float(lengths.min()):
        found["rl/alarm/length"] = (
            f"the {'longer' if ordered > 0 else 'shorter'} an answer, the more it earned (rank correlation "
            f"{ordered:+.2f}): {_names(responses, best)}"
        )
    return found


def _repeated(ids: Sequence[int]) -> float:
    """The share of pairs of neighbours that were there before; 0 of an answer too short to say."""
    pairs = list(pairwise(ids))
    return 1 - len(set(pairs)) / len(pairs) if len(pairs) >= _PAIRS else 0.0


def _spearman(one: Tensor, other: Tensor) -> float:
    """The rank correlation; equal values share their mean rank."""
    ranks = [
        (values.unsqueeze(1) > values).sum(1) + 0.5 * (values.unsqueeze(1) == values).sum(1) for values in (one, other)
    ]
    centred = [rank.double() - rank.double().mean() for rank in ranks]
    sizes = centred[0].norm() * centred[1].norm()
    return float(centred[0] @ centred[1] / sizes) if sizes > 0 else 0.0


def _names(responses: Sequence[Response], places: Sequence[int]) -> str:
    """'q3/1, q7/0, ...'"""
    named = [f"{responses[place].key.query}/{responses[place].key.sample}" for place in places[:_NAMED]]
    return ", ".join(named + ["..."] * (len(places) > _NAMED))

"""What one PPO iteration reports, under verl's metric names."""

import time
from collections.abc import Sequence

from torch import Tensor

from moe.tasks.measure import measures
from moe.tasks.task import Sample, Verdict
from rlhf.messages import Batch, Response


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


def answer_metrics(
    verdicts: Sequence[Verdict], responses: Sequence[Response], texts: Sequence[str]
) -> dict[str, float]:
    """Of all answers of an iteration, before any is chosen to learn from: the measures of the domain's rules as
    `rl/task/<measure>`, and how long the answers are."""
    count = len(responses)
    return {f"rl/task/{name}": value for name, value in measures(verdicts, texts).items()} | {
        "response_length/mean": sum(len(response.answer) for response in responses) / count,
        "response/finished": sum(response.finished for response in responses) / count,
        "rl/rules/mean": sum(verdict.reward for verdict in verdicts) / count,
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

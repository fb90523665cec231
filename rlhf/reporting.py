"""What one PPO iteration reports, under verl's metric names."""

import time
from collections.abc import Sequence

from torch import Tensor

from moe.tokenizer import Tokenizer
from moe.verse import judge
from rlhf.actors import Scores
from rlhf.messages import Batch, Sample
from rlhf.principles import Query


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


def answer_metrics(queries: Sequence[Query], samples: Sequence[Sample], tokenizer: Tokenizer) -> dict[str, float]:
    """What the rules say of all answers of an iteration, before any is chosen to learn from."""
    texts = [tokenizer.decode(sample.answer).strip() for sample in samples]
    verdicts = [
        judge(text, query["form"], title=query.get("title", ""))
        for query, text in zip(queries, texts, strict=True)
        if "form" in query
    ]
    poems = max(1, len(verdicts))
    return {
        "rl/form_ok": sum(v.form for v in verdicts) / poems,
        "rl/rhyme_ok": sum(v.rhyme for v in verdicts) / poems,
        "rl/rhyme_share": sum(v.rhyme_share for v in verdicts) / poems,
        "rl/repeats": sum(v.repeats for v in verdicts) / poems,
        "rl/distinct": len(set(texts)) / len(texts),
        "response_length/mean": sum(len(sample.answer) for sample in samples) / len(samples),
        "response/finished": sum(sample.finished for sample in samples) / len(samples),
    }


def learning_metrics(batch: Batch, scores: Scores, reference: Tensor, rewards: Tensor) -> dict[str, float]:
    """Means over the answers that are learnt from; `rl/kl` is in nats per answer, against the chat model."""
    return {
        "rl/reward": float(scores.earned.sum(1).mean()),
        "rl/kl": float(((batch.logprobs - reference) * batch.mask).sum(1).mean()),
        "critic/score/mean": float(scores.model.mean()),
        "critic/rules/mean": float(scores.rules.mean()),
        "critic/rewards/mean": float(rewards.sum(1).mean()),
    }

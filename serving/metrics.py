"""What the server measures of itself, in Prometheus's text and under vLLM's names, so that its dashboards fit.

A request is here one answer: `n=3` is three of them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 40, 80)
_WHOLE = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)


@dataclass
class Clock:
    """Of one answer, in seconds of the monotonic clock."""

    prompt: int  # tokens
    asked: float = field(default_factory=time.monotonic)
    first: float = 0.0  # when its first token came; 0: it has none
    last: float = 0.0
    made: int = 0  # tokens

    @property
    def runs(self) -> bool:
        return self.made > 0


class Meter:
    """One model's figures. Any thread may call."""

    def __init__(self, model: str) -> None:
        self._registry = CollectorRegistry()
        self._labels = {"model_name": model, "engine": "0"}
        names = tuple(self._labels)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"vllm:{name}", text, names, registry=self._registry)

        def counter(name: str, text: str) -> Counter:
            return Counter(f"vllm:{name}", text, names, registry=self._registry).labels(**self._labels)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            made = Histogram(f"vllm:{name}_seconds", text, names, registry=self._registry, buckets=buckets)
            return made.labels(**self._labels)

        self._running = gauge("num_requests_running", "Answers that are being decoded.")
        self._waiting = gauge("num_requests_waiting", "Answers that wait for a slot.")
        self._prompt = counter("prompt_tokens", "Tokens of prompts.")
        self._looked_up = counter("prefix_cache_queries", "Tokens of prompts that were looked up in the prefix cache.")
        self._cached = counter("prefix_cache_hits", "Tokens of prompts that were in the prefix cache.")
        self._made = counter("generation_tokens", "Tokens of answers.")
        self._ended = Counter(
            "vllm:request_success", "Answers by how they ended.", (*names, "finished_reason"), registry=self._registry
        )
        self._first = histogram("time_to_first_token", "From the request to the answer's first token.", _FIRST)
        self._between = histogram("inter_token_latency", "From one token of an answer to the next.", _BETWEEN)
        self._per_token = histogram("request_time_per_output_token", "An answer's mean time per token.", _BETWEEN)
        self._whole = histogram("e2e_request_latency", "From the request to the answer's end.", _WHOLE)

    def watch(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """What to ask for the numbers of answers whenever somebody reads them."""
        self._running.labels(**self._labels).set_function(running)
        self._waiting.labels(**self._labels).set_function(waiting)

    def token(self, clock: Clock, cached: int = 0) -> None:
        """One has come, of an answer to a prompt of which so many tokens were in the prefix cache."""
        now = time.monotonic()
        if clock.made:
            self._between.observe(now - clock.last)
        else:
            clock.first = now
            self._first.observe(now - clock.asked)
            self._prompt.inc(clock.prompt)
            self._looked_up.inc(clock.prompt)
            self._cached.inc(cached)
        clock.last, clock.made = now, clock.made + 1
        self._made.inc()

    def ended(self, clock: Clock, reason: str) -> None:
        """By a mark or a text of its own ("stop"), its bound ("length"), or because nobody waits for it ("abort")."""
        self._ended.labels(**self._labels, finished_reason=reason).inc()
        if reason != "abort":
            self._whole.observe(time.monotonic() - clock.asked)
            if clock.made > 1:
                self._per_token.observe((clock.last - clock.first) / (clock.made - 1))

    def text(self) -> bytes:
        return generate_latest(self._registry)

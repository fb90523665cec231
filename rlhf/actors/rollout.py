"""The rollout actor: answers queries with the policy of one version. Stateless but for its weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cluster import fault
from moe.generation.engine import Sampling
from moe.generation.engines import ENGINES
from rlhf.messages import Request, Response, Weights


class Rollout:
    def __init__(self, folder: Path, threads: int, engine: str = "ours", device: str = "cpu") -> None:
        torch.set_num_threads(threads)
        with torch.device(device):
            self.engine = ENGINES[engine](folder)

    def load_weights(self, weights: Weights) -> int:
        fault.at("rollout.load_weights")
        self.engine.load_weights(weights.version, weights.named())
        return self.engine.version

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Answers in the order of the requests. Refuses a request for another version than the one loaded."""
        for request in requests:
            assert request.key.version == self.engine.version, (
                f"{request.key}: this rollout holds version {self.engine.version}"
            )
        fault.at("rollout.generate")
        asked = [
            replace(
                sampling,
                seed=request.seed,
                begun=request.begun,
                max_new_tokens=min(sampling.max_new_tokens, request.room or sampling.max_new_tokens),
            )
            for request in requests
        ]
        answers = self.engine.generate([request.prompt for request in requests], asked)
        fault.at("rollout.generated")
        return [
            Response(
                request.key,
                request.prompt,
                answer.tokens,
                answer.logprobs,
                answer.finish == "stop",
                answer.routes,
                request.begun,
            )
            for request, answer in zip(requests, answers, strict=True)
        ]

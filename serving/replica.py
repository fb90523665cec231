"""The Ray Serve deployment: one replica owns the model, the decoding thread and the HTTP endpoint."""

import os
from collections.abc import Sequence
from pathlib import Path

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from cluster import feedback
from cluster.people import labels
from conf.schema import Config
from moe.generation.engine import Engine
from moe.tasks.domain import Domain
from moe.text.tokenizer import Tokenizer
from serving.app import endpoint
from serving.decoding import DecodingThread
from serving.keys import Key
from serving.models import load_model, version
from serving.replies import Served

# Requests that reach the replica, and as many that may be on their way: the endpoint itself says who has to come back,
# in the API's words, and whoever asks for its health must get there.
ONGOING = 4096


@serve.ingress()
class Replica:
    def __init__(
        self, folder: str, name: str, cfg: Config, keys: Sequence[Key], *, run: Path, principles: tuple[str, ...]
    ) -> None:
        self._cfg, self._keys = cfg.serve, keys
        model, tokenizer = (
            load_model(folder, int8=cfg.serve.int8, bf16=cfg.serve.bf16, device=cfg.cluster.device),
            Tokenizer.load(folder),
        )
        engine = Engine(model, cfg.serve.slots, tokenizer.stop, keep=cfg.serve.slots)
        self._served = Served(
            name=name,
            tokenizer=tokenizer,
            decoding=DecodingThread(
                engine, waiting=cfg.serve.queue, threads=decoding_threads(cfg.cluster.threads), name=name
            ),
            context=model.cfg.context,
            version=version(Path(folder)),
            principles=principles,
            feedback=feedback.Store(run / feedback.FILE),
            labels=labels.Labels(run / labels.FILE),
            max_new_tokens=cfg.serve.max_new_tokens,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return endpoint(self._served, self._cfg, self._keys, behind=True)

    async def drain(self) -> None:
        """Begin nothing more; returns when all that runs has ended, or after the deadline was cut off in words."""
        await self._served.decoding.drain(self._cfg.drain_timeout)

    def check_health(self) -> None:
        """Ray Serve asks; an exception makes it start another replica."""
        if self._served.decoding.error is not None:
            raise self._served.decoding.error


def decoding_threads(given: int) -> int:
    """A core stays free for the event loop and Serve's proxy: a step waits for its slowest thread."""
    return given or max(1, len(os.sched_getaffinity(0)) - 1)


def application(folder: str, name: str, cfg: Config, keys: Sequence[Key]) -> Application:
    """The app that serves the model of `folder` under `name` to who has one of the `keys`, ready for `serve.run`."""
    deployment = serve.deployment(
        name="chat",
        num_replicas=1,
        max_ongoing_requests=ONGOING,
        max_queued_requests=ONGOING,
        ray_actor_options={"num_cpus": cfg.cluster.cpus_per_worker, "num_gpus": cfg.cluster.gpus_per_worker},
        graceful_shutdown_timeout_s=max(5.0, cfg.serve.drain_timeout),  # of a replica that another one replaces
        health_check_period_s=5.0,
    )
    # What hangs on where the command was given, its folder and the modules beside it, is settled here.
    more = {"run": cfg.run.folder, "principles": Domain.of(cfg.tasks).principles}
    return deployment(Replica).bind(folder, name, cfg, keys, **more)

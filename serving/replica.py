"""The Ray Serve deployment: one replica owns the model, the decoding thread and the HTTP endpoint."""

import os

from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from conf.schema import Config
from moe import folder as model_folder
from moe.decoder import Decoder
from moe.engine import Engine
from moe.quantize import quantize
from moe.tokenizer import Tokenizer
from serving.app import endpoint
from serving.decoding import DecodingThread
from serving.replies import Served

SPARE = 32  # requests beyond the queue that reach the replica, to be told so, or to ask for its health


@serve.ingress()
class Replica:
    def __init__(self, folder: str, name: str, cfg: Config) -> None:
        self._cfg = cfg.serve
        model, tokenizer = load_model(folder, int8=cfg.serve.int8), Tokenizer.load(folder)
        engine = Engine(model, cfg.serve.slots, (tokenizer.im_end, tokenizer.eos))
        threads = cfg.cluster.threads or os.cpu_count() or 1
        self._served = Served(
            name=name,
            tokenizer=tokenizer,
            decoding=DecodingThread(engine, waiting=cfg.serve.queue, threads=threads),
            context=model.cfg.context,
            max_new_tokens=cfg.serve.max_new_tokens,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return endpoint(self._served, max_body_bytes=self._cfg.max_body_bytes)

    def check_health(self) -> None:
        """Ray Serve asks; an exception makes it start another replica."""
        if self._served.decoding.error is not None:
            raise self._served.decoding.error


def load_model(folder: str, *, int8: bool) -> Decoder:
    model = model_folder.load(folder)
    return quantize(model) if int8 else model


def application(folder: str, name: str, cfg: Config) -> Application:
    """The app that serves the model of `folder` under `name`, ready for `serve.run`."""
    ongoing = cfg.serve.slots + cfg.serve.queue + SPARE
    deployment = serve.deployment(
        name="chat",
        num_replicas=1,
        max_ongoing_requests=ongoing,
        max_queued_requests=ongoing,
        ray_actor_options={"num_cpus": cfg.cluster.cpus_per_worker, "num_gpus": cfg.cluster.gpus_per_worker},
        graceful_shutdown_timeout_s=5.0,
        health_check_period_s=5.0,
    )
    return deployment(Replica).bind(folder, name, cfg)

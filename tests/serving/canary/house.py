"""A fleet in one process: real replicas' apps behind the real layers of the proxy, without Ray Serve around them."""

from collections.abc import Callable
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.feedback import FILE, Store
from cluster.people import labels
from conf.schema import Config
from moe.generation.engine import Engine
from moe.text.tokenizer import Tokenizer
from serving.app import endpoint
from serving.canary.route import PREFIX, Shared
from serving.decoding import DecodingThread
from serving.door import Door
from serving.failover.replay import Replay
from serving.models import load_model, version
from serving.replies import Served


class House:
    """`door` is the whole as an ASGI app; a model is called `tiny`."""

    def __init__(self, cfg: Config, folder: Path, engine: Callable[..., Engine] = Engine) -> None:
        self._cfg, self._engine = cfg, engine
        self._replicas: dict[str, tuple[DecodingThread, ASGIApp]] = {}
        self.switch(folder)
        self.door = Door(Shared(Replay(self._inside, cfg.serve), cfg.run.folder), cfg.serve)

    async def _inside(self, scope: Scope, receive: Receive, send: Send) -> None:
        prefix = PREFIX if str(scope["path"]).startswith(PREFIX) else ""
        await self._replicas[prefix][1](dict(scope) | {"root_path": prefix}, receive, send)

    def _serve(self, prefix: str, folder: Path) -> None:
        tokenizer, run, model = Tokenizer.load(folder), self._cfg.run.folder, load_model(folder, int8=False)
        decoding = DecodingThread(self._engine(model, 8, tokenizer.stop, keep=8), waiting=8)
        served = Served(
            "tiny",
            tokenizer,
            decoding,
            model.cfg.context,
            self._cfg.serve.max_new_tokens,
            version=version(folder),
            feedback=Store(run / FILE),
            labels=labels.Labels(run / labels.FILE),
        )
        self._end(prefix)
        self._replicas[prefix] = decoding, endpoint(served, self._cfg.serve, behind=True)

    def _end(self, prefix: str) -> None:
        if prefix in self._replicas:
            self._replicas.pop(prefix)[0].close()

    def begin(self, folder: Path) -> None:
        self._serve(PREFIX, folder)

    def switch(self, folder: Path) -> None:
        self._serve("", folder)

    def end(self) -> None:
        self._end(PREFIX)

    def close(self) -> None:
        for prefix in list(self._replicas):
            self._end(prefix)

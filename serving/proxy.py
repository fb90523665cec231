"""What stands in Ray Serve's proxy process: the door, what lies behind it, and a deadline for headers."""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from conf.knobs.running import Auth, Serve
from serving.canary.route import Shared
from serving.dialects.strict import ApiError
from serving.door import Door
from serving.failover.replay import Replay
from serving.keys import Key

_LAST_LOOK = 0.1  # seconds
_SETTINGS = "CONCLAVE_SERVE"  # the knobs and the keys' digests, in the proxy's environment


def environment(cfg: Serve, keys: Sequence[Key], run: Path) -> dict[str, str]:
    """What Serve's controller, and the proxies that it starts, must find in their environment."""
    told = {"serve": asdict(cfg) | {"auth": cfg.auth.value}, "keys": [asdict(key) for key in keys]}
    told["run"] = str(run.absolute())
    return {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": f"{__name__}.middlewares",
        _SETTINGS: json.dumps(told),
    }


def middlewares() -> list[Middleware]:
    """Called by Serve in each proxy before it listens. Its server has no knob for the headers' deadline, so that the
    class that it takes for a connection is ours."""
    cfg, keys, run = settings(os.environ)
    auto.AutoHTTPProtocol = connection(cfg)
    # The last one is the first one asked.
    return [Middleware(Replay, cfg), Middleware(Shared, run), Middleware(Door, cfg, keys)]


def settings(given: Mapping[str, str]) -> tuple[Serve, tuple[Key, ...], Path]:
    """What `environment` has put into it."""
    told = json.loads(given[_SETTINGS])
    cfg = Serve(**told["serve"] | {"auth": Auth(told["serve"]["auth"])})
    return cfg, tuple(Key(**key) for key in told["keys"]), Path(told["run"])


def connection(cfg: Serve) -> type[HttpToolsProtocol]:
    """uvicorn's class for a connection, closed where the headers of a request take longer than the knob says."""

    class Prompt(HttpToolsProtocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._wait()
            else:
                self._arrived()

        def connection_lost(self, exc: Exception | None) -> None:
            self._arrived()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP is answered in the API's shape, too."""
            body = json.dumps(ApiError(400, msg, code="invalid_http").body).encode()
            head = f"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(head.encode() + b"connection: close\r\n\r\n" + body)
            self.transport.close()

        def _wait(self) -> None:
            if self._late is None:
                self._late = self.loop.call_later(cfg.header_timeout, self._look)

        def _look(self) -> None:
            """uvloop calls before it reads: what has arrived by now is in time."""
            self._late = self.loop.call_later(_LAST_LOOK, self.transport.close)

        def _arrived(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Prompt

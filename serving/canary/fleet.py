"""The models that answer, as apps of Ray Serve: the incumbent's, and a candidate's under a path of its own."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from ray import serve
from ray.exceptions import RayError

from cluster.room import bundle, check_room
from conf.errors import InputError
from conf.schema import Config
from serving.canary.route import PREFIX
from serving.keys import Key
from serving.replica import application

APP, CANDIDATE = "conclave", "conclave-candidate"


class ServeFleet:
    """All answer under one name: a client does not see which model it has."""

    def __init__(self, cfg: Config, name: str, keys: Sequence[Key]) -> None:
        self._cfg, self._name, self._keys = cfg, name, keys

    def begin(self, folder: Path) -> None:
        less = "cluster.cpus_per_worker or cluster.gpus_per_worker"
        check_room(self._cfg.cluster, [bundle(self._cfg.cluster)] * 2, "a candidate beside the incumbent", less=less)
        try:
            self._run(folder, CANDIDATE, PREFIX)
        except RuntimeError as error:
            self._delete()
            raise InputError(f"{folder}: no model that can be served: {error}") from error

    def switch(self, folder: Path) -> None:
        self._run(folder, APP, "/")

    def end(self) -> None:
        drain(CANDIDATE)
        self._delete()

    def _run(self, folder: Path, app: str, prefix: str) -> None:
        made = application(str(folder), self._name, self._cfg, self._keys)
        serve.run(made, name=app, route_prefix=prefix)

    def _delete(self) -> None:
        with contextlib.suppress(RayError, RuntimeError):  # it may not have come up
            serve.delete(CANDIDATE)


def drain(app: str = APP) -> None:
    """Let what runs end, within `serve.drain_timeout`, while nothing more begins."""
    with contextlib.suppress(RayError):  # a replica that has died has nothing that runs
        serve.get_app_handle(app).drain.remote().result()

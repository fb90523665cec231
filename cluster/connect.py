"""Join the Ray cluster that `RAY_ADDRESS` names, or start one on this machine."""

import logging
import os
import re
import socket
from pathlib import Path

# Ray reads these while it is imported or started, so they come before `import ray`. What is already set wins.
SETTINGS = {
    "RAY_DATA_USE_DATASOURCE_V2": "0",  # V2 starts an actor per CPU to read footers: seconds each time
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # bounds how long a dead worker goes unnoticed
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # a worker for every logical CPU, of which most would never have work
    "RAY_worker_maximum_startup_concurrency": "4",  # at four times this many workers Ray warns that they are too many
    "RAY_worker_niceness": "0",  # the workers do the work here: they should not yield to the driver
    "MALLOC_ARENA_MAX": "1",  # Ray Train trains in a thread, whose own arena would map its large buffers anew each time
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # keeps a deprecation notice off the screen
}
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)

import ray  # noqa: E402
from ray.data import DataContext  # noqa: E402

from conf.errors import user_error as user_error  # noqa: E402
from conf.schema import Cluster, InputError  # noqa: E402

_ANSWER_WITHIN = 10.0  # seconds
_SOCKET_BYTES = 107  # what Linux allows for the path of a unix socket


def connect(cfg: Cluster) -> None:
    """Make `ray` usable in this process; the second call does nothing.

    Raises `InputError` when nothing answers at `RAY_ADDRESS`, or when `cluster.temp_dir` is too long for Ray's sockets.
    """
    _quieten(cfg)
    if not ray.is_initialized():
        if address := os.environ.get("RAY_ADDRESS"):
            _join(address, cfg)
        else:
            _start(cfg)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    _quieten(cfg)  # again, for starting Ray sets its loggers up anew


def _quieten(cfg: Cluster) -> None:
    # What Ray logs before it raises is also in what it raises, so that nothing is lost here.
    for name in ("ray", "ray.data", "ray.train", "ray.serve"):
        logging.getLogger(name).setLevel(_level(cfg))


def _level(cfg: Cluster) -> int:
    return logging.INFO if cfg.worker_logs else logging.CRITICAL


def _join(address: str, cfg: Cluster) -> None:
    try:
        if match := re.fullmatch(r"([\w.-]+):(\d+)", address):
            # Ray itself would try for more than a minute.
            socket.create_connection((match[1], int(match[2])), timeout=_ANSWER_WITHIN).close()
        # Resources belong to the cluster: Ray refuses to hear about them here.
        ray.init(log_to_driver=cfg.worker_logs, logging_level=_level(cfg))
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({str(error).splitlines()[0]}); "
            "start one with `ray start --head`, or unset RAY_ADDRESS"
        ) from error


def _start(cfg: Cluster) -> None:
    ray.init(
        address="local",  # never a cluster that somebody else left running here
        # Logical CPUs, not cores. Ray Train's workers hold theirs while Ray Data asks for more to feed them: with two
        # the pair waits for each other for ever.
        num_cpus=max(8, os.cpu_count() or 1),
        object_store_memory=cfg.object_store_mb * 2**20,
        include_dashboard=False,
        log_to_driver=cfg.worker_logs,
        logging_level=_level(cfg),
        _temp_dir=_session_folder(cfg.temp_dir) or None,
    )


def _session_folder(given: str) -> str:
    if not given:
        return ""
    folder = Path(given).absolute()
    longest = folder / f"session_2000-01-01_00-00-00_000000_{os.getpid()}" / "sockets" / "plasma_store"
    over = len(os.fsencode(longest)) - _SOCKET_BYTES
    if over > 0:
        raise InputError(
            f"cluster.temp_dir={given} is {over} bytes too long for Ray's sockets; "
            f"try cluster.temp_dir=/tmp/ray-{os.getpid()}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)

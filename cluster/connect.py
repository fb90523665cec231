"""Join the Ray cluster that `RAY_ADDRESS` names, or start one on this machine."""

import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

# Ray reads these while it is imported or started, so they come before `import ray`. What is already set wins.
SETTINGS = {
    "RAY_DATA_USE_DATASOURCE_V2": "0",  # V2 starts an actor per CPU to read footers: seconds each time
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # bounds how long a dead worker goes unnoticed
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # a worker for every logical CPU, of which most would never have work
    "RAY_worker_maximum_startup_concurrency": "4",  # at four times this many workers Ray warns that they are too many
    # A worker without work goes after a while, however few there are: it holds the libraries that it has loaded.
    "RAY_num_workers_soft_limit": "0",
    "RAY_idle_worker_killing_time_threshold_ms": "20000",
    "RAY_worker_niceness": "0",  # the workers do the work here: they should not yield to the driver
    "MALLOC_ARENA_MAX": "1",  # Ray Train trains in a thread, whose own arena would map its large buffers anew each time
    "RAY_DEDUP_LOGS_SKIP_REGEX": r"Raylet is terminated|\[state-dump\]",  # a lost node: twice 20 lines of its log
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # keeps a deprecation notice off the screen
}
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)

import psutil
import ray
from ray.data import DataContext
from ray.exceptions import GetTimeoutError

from cluster.room import bundle, check_room
from cluster.stopping import give_up, renew
from conf.errors import InputError, NotStarted
from conf.errors import user_error as user_error
from conf.knobs.running import Cluster

Made = TypeVar("Made")
_ANSWER_WITHIN, _WATCH_EVERY, _HEAD_WITHIN = 10.0, 1.0, 30.0  # seconds
_connected = object()  # another one at each connection
_NEEDED = {"gcs_server": "Ray's head process (gcs_server)", "raylet": "this node's Ray process (raylet)"}
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
        renew()  # Ray takes SIGTERM for itself
        _watch()
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    _quieten(cfg)  # again, for starting Ray sets its loggers up anew


def on_worker(cfg: Cluster, work: Callable[..., Made], *arguments: Any, within: float, ends: bool = False) -> Made:
    """What `work(*arguments)` gives, computed by one worker with the threads and the GPU that the run's workers have;
    if it `ends`, its process does so with the work, and the memory is free for what comes next.

    Raises `InputError` when the cluster has too little for it, and when it has no answer after `within` seconds, naming
    what it asks the cluster for.
    """
    made = _on_one(cfg, ray.remote(max_calls=1)(work) if ends else ray.remote(work), work)
    ref = made.remote(*arguments)
    try:
        return cast(Made, ray.get(ref, timeout=within))
    except GetTimeoutError:
        raise _silent(cfg, ref, work, within) from None


def each_on_worker(cfg: Cluster, work: Callable[..., Iterator[Made]], *arguments: Any, within: float) -> Iterator[Made]:
    """As `on_worker`, for work that yields: each is given as soon as it is there, and may take `within` seconds."""
    made = _on_one(cfg, ray.remote(num_returns="streaming")(work), work).remote(*arguments)
    try:
        while ray.wait([made], timeout=within)[0]:
            try:
                ref = next(made)
            except StopIteration:
                return
            yield cast(Made, ray.get(ref))
    except GeneratorExit:  # nobody wants the rest
        ray.cancel(made, force=True)
        raise
    raise _silent(cfg, made, work, within)


def _on_one(cfg: Cluster, remote: Any, work: Callable[..., Any]) -> Any:
    check_room(cfg, [bundle(cfg)], work.__name__, less="cluster.cpus_per_worker or cluster.gpus_per_worker")
    threads = {"OMP_NUM_THREADS": str(cfg.threads or os.cpu_count() or 1)}
    return remote.options(**_asked(cfg), max_retries=0, runtime_env={"env_vars": threads})


def _asked(cfg: Cluster) -> dict[str, float]:
    return {"num_cpus": cfg.cpus_per_worker, "num_gpus": cfg.gpus_per_worker}


def _silent(cfg: Cluster, made: Any, work: Callable[..., Any], within: float) -> InputError:
    ray.cancel(made, force=True)
    there = {name: ray.cluster_resources().get(name, 0.0) for name in ("CPU", "GPU")}
    return InputError(
        f"{work.__name__}: no answer from a worker within {within:g} seconds; it asks for {_asked(cfg)}, and the "
        f"cluster has {there}"
    )


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
    folder = _session_folder(cfg.temp_dir)
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody takes this machine's node away
    try:
        ray.init(
            address="local",  # never a cluster that somebody else left running here
            # Logical CPUs, not cores. Ray Train's workers hold theirs while Ray Data asks for more to feed them: with
            # two the pair waits for each other for ever.
            num_cpus=max(8, os.cpu_count() or 1),
            object_store_memory=cfg.object_store_mb * 2**20,
            include_dashboard=False,
            log_to_driver=cfg.worker_logs,
            logging_level=_level(cfg),
            _temp_dir=folder or None,
        )
    except Exception as error:  # a plain one, where its processes took too long on a busy machine
        raise NotStarted(str(error)) from error


def _watch() -> None:
    """End this process, in a line, when one of Ray's that it cannot do without is gone: Ray itself would abort it,
    perhaps minutes later, with a stack of C++."""
    global _connected
    here = [process for process in psutil.Process().children(recursive=True) if process.name() in _NEEDED]
    names = {process.pid: _NEEDED[process.name()] for process in here}
    head = re.fullmatch(r"([\w.-]+):(\d+)", os.environ.get("RAY_ADDRESS", "")) if not here else None
    _connected = mine = object()

    def look() -> None:
        silent = time.monotonic()  # since when the head does not answer, or now
        while ray.is_initialized() and _connected is mine:
            gone = [names[process.pid] for process in here if not _lives(process)]
            if not head or _answers(head[1], int(head[2])):
                silent = time.monotonic()
            elif time.monotonic() - silent > _HEAD_WITHIN:  # a head may come back
                gone = [f"Ray's head at {head[0]}"]
            time.sleep(_WATCH_EVERY)
            if gone and ray.is_initialized() and _connected is mine:  # it was not this process that ended it
                give_up(f"{gone[0]} died")

    threading.Thread(target=look, daemon=True).start()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=_ANSWER_WITHIN).close()
    except OSError:
        return False
    return True


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

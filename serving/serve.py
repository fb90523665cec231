"""Serve a chat model over HTTP with OpenAI's API, until Ctrl-C."""

from conf.entry import early, job

early(__name__)

import contextlib
import signal
import socket
import threading
from threading import Event
from urllib.error import URLError
from urllib.request import urlopen

import ray
from ray import serve
from ray.exceptions import RayError

from cluster.connect import connect
from conf.errors import InputError
from conf.schema import Config
from moe.tasks.domain import Domain
from serving.canary.fleet import APP, ServeFleet, drain
from serving.canary.rollout import Rollout
from serving.keys import admitted
from serving.models import find_model, version
from serving.proxy import environment
from serving.replica import application


def free_port(host: str, port: int) -> int:
    """`port`, or any free one for 0. Raises InputError if somebody listens there."""

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"serve.host={host} serve.port={port}: {error.strerror}; try serve.port=0") from None
        return int(probe.getsockname()[1])


def start(cfg: Config) -> tuple[str, str]:
    """Start the app on the connected Ray cluster -> (address, name of the model). Returns once it answers."""

    folder, name = find_model(cfg)
    keys = admitted(cfg.serve)
    port = free_port(cfg.serve.host, cfg.serve.port)
    # No request_timeout_s: it would cut long streams.
    serve.start(
        http_options={"host": cfg.serve.host, "port": port},
        logging_config={"enable_access_log": False},
        controller_options={"runtime_env": {"env_vars": environment(cfg.serve, keys, cfg.run.folder)}},
    )
    serve.run(application(str(folder), name, cfg, keys), name=APP, route_prefix="/")
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(cfg.serve.host, cfg.serve.host)
    address = f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"
    _check_answers(address, port)
    return address, name


def _check_answers(address: str, port: int) -> None:
    """A cluster has one Serve, which keeps the port of whoever started it first."""

    try:
        urlopen(f"{address}/healthz", timeout=30).close()
    except URLError as error:
        raise InputError(
            f"serve.port={port}: the model is up but {address} does not answer ({error.reason}); if this cluster "
            "served on another port before, run `serve shutdown -y` first"
        ) from None


def stop() -> None:
    """End Serve, for everybody on the cluster, and leave Ray."""
    import io

    # Serve's controller ends itself while it is asked to end; Ray prints that as a failure, which it is not.
    with contextlib.redirect_stdout(io.StringIO()):
        serve.shutdown()
        ray.shutdown()


def wait_for_signal() -> Event:
    """An event that SIGINT or SIGTERM sets."""

    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    return asked


def look(rollout: Rollout, told: str) -> str:
    """Take a candidate's trial one step on, and say what is new -> what was said last."""
    try:
        trial = rollout.look()
        now = f"{trial.model} is {trial.state}: {trial.why or 'it answers'}" if trial else ""
    except (InputError, OSError, RuntimeError, RayError) as error:  # the incumbent answers on
        now = f"the trial of a candidate: {error}"
    if now and now != told:
        print(now, flush=True)
    return now


@job
def main(cfg: Config) -> dict[str, float]:

    find_model(cfg)  # what the user got wrong shows before a cluster is started
    Domain.of(cfg.tasks)
    keyed = bool(admitted(cfg.serve))
    connect(cfg.cluster)
    address, name = start(cfg)
    asked = wait_for_signal()
    print(f"{name} answers at {address}/v1 and has a page at {address} (Ctrl-C ends it). Try:\n", flush=True)
    body = f'{{"model": "{name}", "stream": true, "messages": [{{"role": "user", "content": "你是谁？"}}]}}'
    bearer = ' -H "Authorization: Bearer $KEY"' if keyed else ""
    print(
        f"  curl -N {address}/v1/chat/completions -H 'Content-Type: application/json'{bearer} -d '{body}'\n", flush=True
    )
    folder, _ = find_model(cfg)
    rollout = Rollout(cfg.run.folder, ServeFleet(cfg, name, admitted(cfg.serve)), version(folder), name)
    told = ""
    while not asked.wait(1.0):
        told = look(rollout, told)
    print("shutting down", flush=True)
    drain()
    stop()
    return {}


if __name__ == "__main__":
    main()

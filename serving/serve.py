"""Serve a chat model over HTTP with OpenAI's API, until Ctrl-C."""

from pathlib import Path
from typing import TYPE_CHECKING

from conf.entry import job
from conf.schema import Config, InputError

if TYPE_CHECKING:
    from threading import Event

STAGES = ("rl", "chat")  # the best first
APP = "conclave"


def find_model(cfg: Config) -> tuple[Path, str]:
    """(folder, the name it is served under): `serve.model`, or the run's newest finished chat model.

    Raises InputError if there is none, a file is damaged, or model and tokenizer do not belong together.
    """
    from cluster.run import newest_model

    folder = newest_model(cfg, cfg.serve.model, among=STAGES, knob="serve.model")
    _check_vocabulary(folder)
    return folder, folder.name if cfg.serve.model else f"{cfg.run.name}-{folder.name}"


def _check_vocabulary(folder: Path) -> None:
    import json

    from moe.tokenizer import Tokenizer

    allotted = json.loads((folder / "config.json").read_text("utf-8")).get("vocab_size")
    needed = Tokenizer.load(folder).size
    if not allotted or allotted < needed:
        raise InputError(
            f"{folder / 'config.json'}: vocab_size={allotted}, but the tokenizer beside it needs {needed}; "
            "they are not of the same run"
        )


def free_port(host: str, port: int) -> int:
    """`port`, or any free one for 0. Raises InputError if somebody listens there."""
    import socket

    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(f"serve.host={host} serve.port={port}: {error.strerror}; try serve.port=0") from None
        return int(probe.getsockname()[1])


def start(cfg: Config) -> tuple[str, str]:
    """Start the app on the connected Ray cluster -> (address, name of the model). Returns once it answers."""
    from ray import serve

    from serving.replica import application

    folder, name = find_model(cfg)
    port = free_port(cfg.serve.host, cfg.serve.port)
    # No request_timeout_s: it would cut long streams.
    serve.start(http_options={"host": cfg.serve.host, "port": port}, logging_config={"enable_access_log": False})
    serve.run(application(str(folder), name, cfg), name=APP, route_prefix="/")
    here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(cfg.serve.host, cfg.serve.host)
    address = f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"
    _check_answers(address, port)
    return address, name


def _check_answers(address: str, port: int) -> None:
    """A cluster has one Serve, which keeps the port of whoever started it first."""
    from urllib.error import URLError
    from urllib.request import urlopen

    try:
        urlopen(f"{address}/healthz", timeout=30).close()
    except URLError as error:
        raise InputError(
            f"serve.port={port}: the model is up but {address} does not answer ({error.reason}); if this cluster "
            "served on another port before, run `serve shutdown -y` first"
        ) from None


def stop() -> None:
    """End Serve, for everybody on the cluster, and leave Ray."""
    import contextlib
    import io

    import ray
    from ray import serve

    # Serve's controller ends itself while it is asked to end; Ray prints that as a failure, which it is not.
    with contextlib.redirect_stdout(io.StringIO()):
        serve.shutdown()
        ray.shutdown()


def wait_for_signal() -> "Event":
    """An event that SIGINT or SIGTERM sets."""
    import signal
    import threading

    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    return asked


@job
def main(cfg: Config) -> dict[str, float]:
    from cluster.connect import connect

    find_model(cfg)  # what the user got wrong shows before a cluster is started
    connect(cfg.cluster)
    address, name = start(cfg)
    asked = wait_for_signal()
    print(f"{name} answers at {address}/v1 (Ctrl-C ends it). Try:\n", flush=True)
    body = f'{{"model": "{name}", "stream": true, "messages": [{{"role": "user", "content": "你是谁？"}}]}}'
    print(f"  curl -N {address}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'\n", flush=True)
    while not asked.wait(1.0):
        pass
    print("shutting down", flush=True)
    stop()
    return {}


if __name__ == "__main__":
    main()

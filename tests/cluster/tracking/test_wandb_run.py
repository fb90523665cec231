"""W&B: one run a stage over all attempts, read back from what waits for `wandb sync` or from a stand-in server.

Whatever is wrong with W&B costs a line on stderr, and neither the stage nor much of its time.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.tracking.tracker import FILE, Tracker, read_metrics
from cluster.tracking.wandb_run import _Log
from conf.knobs.running import WandbMode
from tests.cluster.tracking.wandb_file import written
from tests.cluster.tracking.wandb_server import Server
from tests.cluster.tracking.wandb_stages import chat, config

ROOT = Path(__file__).parents[3]
KEY = "canary0in0key" * 4


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user with a key, and nothing of W&B's left over from another test."""
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    yield
    wandb.teardown()


def test_steps_that_are_taken_again_are_sent_once_and_those_of_a_rollback_twice(tmp_path: Path) -> None:
    log = _Log(tmp_path / FILE)
    assert log.new() == []
    with Tracker(tmp_path) as tracker:
        for step in (1, 2, 3):
            tracker.log({"loss": float(step)}, step)
        tracker.log({"val/loss": 3.5}, 3)
        assert [line["step"] for line in log.new()] == [1, 2, 3, 3]
    with Tracker(tmp_path, step=1) as tracker:  # a worker died
        for step in (2, 3, 4):
            tracker.log({"loss": float(step)}, step)
        assert [(line["step"], line.get("attempt")) for line in log.new()] == [(1, 2), (4, None)]
        tracker.rewind(2)
        tracker.log({"incident": "from step 4 back to step 2: spike"}, 2)
        tracker.log({"loss": 3.25}, 3)
        assert [(line["step"], line.get("loss")) for line in log.new()] == [(2, None), (3, 3.25)]
        with open(tmp_path / FILE, "a") as file:
            file.write('{"step": 4, "lo')  # it is being written
        assert log.new() == []


def test_who_does_not_track_there_does_not_load_wandb(tmp_path: Path) -> None:
    code = (
        "import sys, threading; from cluster.run import open_stage; from conf.schema import Config, Run\n"
        "with open_stage(Config(run=Run(name='r', dir=sys.argv[1])), 'base', reads=[], settings={}) as stage:\n"
        "    stage.finish({})\n"
        "print('wandb' in sys.modules, threading.active_count())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == ["False", "1"]


def mute() -> socket.socket:
    """A server that takes connections and never says anything."""
    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=lambda: [listening.accept() for _ in range(9)], daemon=True).start()
    return listening


@pytest.mark.parametrize("what", ["closed", "mute", "refusing", "no key"])
def test_a_server_that_is_not_there_costs_a_line(
    what: str, account: None, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "mute":
        url = f"http://127.0.0.1:{mute().getsockname()[1]}"
    else:
        server = Server()
        url, server.status = server.url, 503
        if what == "closed":
            server.shutdown()
            server.server_close()
    if what == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_BASE_URL", url)
    began = time.monotonic()
    folder = chat(config(tmp_path, mode=WandbMode.online, timeout=1.0))
    assert time.monotonic() - began < 20.0
    why = {
        "closed": f"{url} cannot be reached ([Errno 111] Connection refused)",
        "mute": f"{url} cannot be reached (timed out)",
        "refusing": f"{url} answers 503",
        "no key": "no API key; `wandb login`, or WANDB_API_KEY",
    }[what]
    assert capfd.readouterr().err.splitlines() == [
        f"{stage}: W&B: {why}; kept in {folder.parent / stage / 'wandb'}, `wandb sync` sends it"
        for stage in ("tasks", "chat")
    ]
    run = written(folder)
    assert [line["step"] for line in run.history if "loss" in line] == [1, 2, 3, 4]
    assert run.summary["final/form_ok"] == 0.5


MIDWAY = """
import sys
from cluster.run import open_stage
from cluster.tracking.tracker import Tracker
from conf.knobs import running
from conf.schema import Config

knobs = running.Tracker(kind=running.TrackerKind.wandb, mode=running.WandbMode.online, timeout=2.0, finish_timeout=2.0)
cfg = Config(run=running.Run(name="r", dir=sys.argv[1]), tracker=knobs)
with open_stage(cfg, "base", reads=[], settings={}) as stage, Tracker(stage.folder) as tracker:
    tracker.log({"loss": 1.0}, 1)
    sys.stdin.read()
    tracker.log({"loss": 0.5}, 2)
    stage.finish({"loss": 0.5})
"""


def test_a_server_that_dies_midway_costs_a_line(tmp_path: Path) -> None:
    server = Server()
    own = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    stage = subprocess.Popen(
        [sys.executable, "-c", MIDWAY, str(tmp_path)],
        env={**os.environ, **own},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not server.rows and time.monotonic() < until:
        time.sleep(0.1)
    assert server.rows  # W&B knows of the run
    server.shutdown()
    server.server_close()
    began = time.monotonic()
    _, told = stage.communicate("", timeout=60)
    assert (stage.returncode, time.monotonic() - began < 20.0) == (0, True)
    folder = tmp_path / "r" / "base"
    assert len(told.splitlines()) == 1, told
    assert told.startswith("base: W&B: ") and told.endswith(f"; kept in {folder / 'wandb'}, `wandb sync` sends it\n")
    assert (folder / "manifest.json").exists() and [line["loss"] for line in read_metrics(folder)] == [1.0, 0.5]
    assert list((folder / "wandb").glob("run-*/run-*.wandb"))  # what `wandb sync` can still send


ATTEMPT = """
import os, signal, sys
from pathlib import Path
from cluster.run import open_stage
from cluster.tracking.tracker import Tracker
from conf.knobs import running
from conf.schema import Config

folder, mode, first, last, end, _ = sys.argv[1:]
knobs = running.Tracker(kind=running.TrackerKind.wandb, mode=running.WandbMode(mode))
cfg = Config(run=running.Run(name="r", dir=folder), tracker=knobs)
with open_stage(cfg, "base", reads=[], settings={}) as stage, Tracker(stage.folder, step=int(first)) as tracker:
    for step in range(int(first) + 1, int(last) + 1):
        tracker.log({"loss": step / 2}, step)
        tracker.log({"val/loss": step / 4}, step)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)  # W&B's client has sent nothing yet
    if end == "fail":
        sys.exit(1)
    stage.finish({"accuracy": 0.75})
"""


@pytest.mark.parametrize(
    ("mode", "end", "steps"),
    [
        ("offline", "kill", [1, 2, 3, 4, 5, 6]),
        ("online", "kill", [1, 2, 3, 4, 5, 6]),
        ("online", "fail", [1, 2, 3, 4, 4, 5, 6]),  # the last that W&B has seen is sent again: was it the whole step?
    ],
)
def test_attempts_are_one_wandb_run_and_tell_no_secret(tmp_path: Path, mode: str, end: str, steps: list[int]) -> None:
    folder, canaries = tmp_path / "r" / "base", ("canary-in-environment", "canary-in-words")
    with Server() as server:
        own = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "HOME": str(tmp_path)}
        environment = {**os.environ, **own, "SECRET": canaries[0], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

        def attempt(*words: str) -> int:
            command = [sys.executable, "-c", ATTEMPT, str(tmp_path), mode, *words, canaries[1]]
            return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode

        assert attempt("0", "4", end) == {"kill": -signal.SIGKILL, "fail": 1}[end]
        assert attempt("2", "6", "") == 0
        if mode == "offline":
            assert server.rows == {}
            command = [str(Path(sys.executable).parent / "wandb"), "sync", "--yes", str(folder / "wandb")]
            subprocess.run(command, env=environment, capture_output=True, check=True)
        ((name, rows),) = server.rows.items()
        summary = server.summaries[name]
    assert name == (folder / "wandb" / "id").read_text()
    lines = [rows[at] for at in sorted(rows)]
    assert sorted(rows) == [line["_step"] for line in lines] == list(range(len(rows)))  # none over another
    for metric, share in (("loss", 2), ("val/loss", 4)):
        assert [(line["step"], line[metric]) for line in lines if metric in line] == [(s, s / share) for s in steps]
    assert summary["final/accuracy"] == 0.75
    if mode == "online":  # all is sent, so nothing is left lying
        assert [path.name for path in (folder / "wandb").iterdir()] == ["id"]
        assert server.artifacts == ["r-base"]
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"val/loss" in kept + b"".join(server.bodies)  # readable: what were there would be found
    for canary in (*canaries, KEY):
        assert canary.encode() not in kept
        assert not any(canary.encode() in body for body in server.bodies)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "attempts are one W&B run",
        "cluster/tracking/wandb_run.py",
        "if not kept.exists():",
        "if True:",
        "test_attempts_are_one_wandb_run_and_tell_no_secret",
    ),
    (
        "W&B gets no step twice",
        "cluster/tracking/wandb_content.py",
        'if line["step"] < self._known:',
        "if False:",
        "test_attempts_are_one_wandb_run_and_tell_no_secret",
    ),
    (
        "W&B gets no command line",
        "cluster/tracking/wandb_run.py",
        "x_disable_meta=True",
        "x_disable_meta=False",
        "test_attempts_are_one_wandb_run_and_tell_no_secret",
    ),
    (
        "what was sent is not left lying",
        "cluster/tracking/wandb_run.py",
        "        elif online:\n",
        "        elif False:\n",
        "test_attempts_are_one_wandb_run_and_tell_no_secret",
    ),
    (
        "steps that a new worker takes again are not sent again",
        "cluster/tracking/wandb_run.py",
        "if mark in self._seen:",
        "if False:",
        "test_steps_that_are_taken_again_are_sent_once_and_those_of_a_rollback_twice",
    ),
    (
        "steps after a rollback are sent",
        "cluster/tracking/wandb_run.py",
        "{mark for mark in self._seen if mark[0] <= step}",
        "self._seen",
        "test_steps_that_are_taken_again_are_sent_once_and_those_of_a_rollback_twice",
    ),
    (
        "W&B's own client is not asked before the server answers",
        "cluster/tracking/wandb_run.py",
        "                _reach(knobs.timeout)\n",
        "",
        "test_a_server_that_is_not_there_costs_a_line",
    ),
    (
        "what W&B did not take is kept and told",
        "cluster/tracking/wandb_run.py",
        "        if lacking:\n            self._lacks(lacking)\n        elif online:\n",
        "        if online:\n",
        "test_a_server_that_dies_midway_costs_a_line",
    ),
]

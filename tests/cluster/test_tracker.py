"""metrics.jsonl: every line whole, and a continued stage takes up where it stood; W&B: one run over all attempts.

Planted bugs these turn red: a rewind that keeps later lines, a W&B run that begins anew with each attempt.
"""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.tracker import Tracker, alarms, incidents, read_metrics
from conf import schema
from tests.cluster.wandb_server import Server

ROOT = Path(__file__).parents[2]


def log(folder: Path, steps: range, cfg: schema.Tracker, start: int = 0) -> None:
    with Tracker(folder, cfg, run="r", stage="base", step=start) as tracker:
        for step in steps:
            tracker.log({"loss": step / 2}, step)


def test_lines_after_the_step_continued_from_are_dropped_and_a_torn_one(tmp_path: Path) -> None:
    log(tmp_path, range(1, 6), schema.Tracker())
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    log(tmp_path, range(4, 6), schema.Tracker(), start=3)
    assert [(line["step"], line.get("loss"), line.get("attempt")) for line in read_metrics(tmp_path)] == [
        (1, 0.5, None), (2, 1.0, None), (3, 1.5, None), (3, None, 2), (4, 2.0, None), (5, 2.5, None),
    ]  # fmt: skip
    log(tmp_path, range(2, 3), schema.Tracker(), start=1)  # the line that counted the second attempt goes as well
    assert [line.get("attempt") for line in read_metrics(tmp_path)] == [None, 3, None]


def test_steps_that_are_taken_again_are_logged_once(tmp_path: Path) -> None:
    with Tracker(tmp_path, schema.Tracker(), run="r", stage="base") as tracker:
        for step in range(1, 8):
            tracker.log({"loss": float(step)}, step)
        before = (tmp_path / "metrics.jsonl").read_bytes()
        tracker.rewind(4)
        assert before.startswith((tmp_path / "metrics.jsonl").read_bytes())
        tracker.log({"incident": "spike at step 7: rolled back"}, 4)
        tracker.log({"loss": 5.5}, 5)
        tracker.sync()
        # What is synced is whole in the file, though it is still open.
        assert [(line["step"], line.get("loss")) for line in read_metrics(tmp_path)] == [
            (1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (4, None), (5, 5.5),
        ]  # fmt: skip
    assert incidents(read_metrics(tmp_path)) == [(4, "spike at step 7: rolled back")]


def test_a_checkpoint_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(os.fstat(handle).st_ino))
    with Tracker(tmp_path, schema.Tracker(), run="r", stage="base") as tracker:
        tracker.log({"loss": 1.0}, 1)
        assert flushed == []
        tracker.sync()
        assert flushed == [(tmp_path / "metrics.jsonl").stat().st_ino]


def test_nan_and_infinity_are_strings_in_the_file_and_numbers_when_read(tmp_path: Path) -> None:
    with Tracker(tmp_path, schema.Tracker(), run="r", stage="base") as tracker:
        tracker.log({"a": float("nan"), "b": float("-inf"), "c": 2}, 1)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["a"], line["b"], line["c"]) == ("nan", "-inf", 2)
    (read,) = read_metrics(tmp_path)
    assert math.isnan(read["a"]) and read["b"] == float("-inf") and read["c"] == 2


def test_alarms_are_texts_in_the_order_told(tmp_path: Path) -> None:
    with Tracker(tmp_path, schema.Tracker(), run="r", stage="base") as tracker:
        tracker.log({"loss": 1.0}, 1)
        tracker.log({"moe/0/load/1": 0.5, "moe/0/alarm/dead": "a", "moe/12/alarm/load": "b"}, 2)
    assert alarms(read_metrics(tmp_path)) == [(2, "a"), (2, "b")]


ATTEMPT = """
import os, signal, sys
from pathlib import Path
from cluster.tracker import Tracker
from conf import schema

folder, mode, first, last, end, _ = sys.argv[1:]
cfg = schema.Tracker(kind=schema.TrackerKind.wandb, mode=schema.WandbMode(mode))
with Tracker(Path(folder), cfg, run="r", stage="base", step=int(first)) as tracker:
    for step in range(int(first) + 1, int(last) + 1):
        tracker.log({"loss": step / 2}, step)
        tracker.log({"val/loss": step / 4}, step)
    if end == "kill":
        os.kill(os.getpid(), signal.SIGKILL)  # W&B's client has sent nothing yet
    if end == "fail":
        sys.exit(1)
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
    folder, canaries = tmp_path / "base", ("canary-in-environment", "canary-in-words")
    with Server() as server:
        own = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "canary0in0key" * 4, "HOME": str(tmp_path)}
        environment = {**os.environ, **own, "SECRET": canaries[0], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

        def attempt(*words: str) -> int:
            command = [sys.executable, "-c", ATTEMPT, str(folder), mode, *words, canaries[1]]
            return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode

        assert attempt("0", "4", end) == {"kill": -signal.SIGKILL, "fail": 1}[end]
        assert attempt("2", "6", "") == 0
        if mode == "offline":
            assert server.rows == {}
            command = [str(Path(sys.executable).parent / "wandb"), "sync", "--yes", str(folder / "wandb")]
            subprocess.run(command, env=environment, capture_output=True, check=True)
        ((name, rows),) = server.rows.items()
    assert name == (folder / "wandb" / "id").read_text()
    lines = [rows[at] for at in sorted(rows)]
    assert sorted(rows) == [line["_step"] for line in lines] == list(range(len(rows)))  # none over another
    for metric, share in (("loss", 2), ("val/loss", 4)):
        assert [(line["step"], line[metric]) for line in lines if metric in line] == [(s, s / share) for s in steps]
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"val/loss" in kept + b"".join(server.bodies)  # readable: what were there would be found
    for canary in (*canaries, own["WANDB_API_KEY"]):
        assert canary.encode() not in kept
        assert not any(canary.encode() in body for body in server.bodies)

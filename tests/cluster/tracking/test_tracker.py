"""metrics.jsonl: every line whole, and a continued stage takes up where it stood."""

import json
import math
import os
from pathlib import Path

import pytest

from cluster.tracking.tracker import Tracker, alarms, incidents, read_metrics


def log(folder: Path, steps: range, start: int = 0) -> None:
    with Tracker(folder, step=start) as tracker:
        for step in steps:
            tracker.log({"loss": step / 2}, step)


def test_lines_after_the_step_continued_from_are_dropped_and_a_torn_one(tmp_path: Path) -> None:
    log(tmp_path, range(1, 6))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    log(tmp_path, range(4, 6), start=3)
    assert [(line["step"], line.get("loss"), line.get("attempt")) for line in read_metrics(tmp_path)] == [
        (1, 0.5, None), (2, 1.0, None), (3, 1.5, None), (3, None, 2), (4, 2.0, None), (5, 2.5, None),
    ]  # fmt: skip
    log(tmp_path, range(2, 3), start=1)  # the line that counted the second attempt goes as well
    assert [line.get("attempt") for line in read_metrics(tmp_path)] == [None, 3, None]


def test_steps_that_are_taken_again_are_logged_once(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
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
    with Tracker(tmp_path) as tracker:
        tracker.log({"loss": 1.0}, 1)
        assert flushed == []
        tracker.sync()
        assert flushed == [(tmp_path / "metrics.jsonl").stat().st_ino]


def test_nan_and_infinity_are_strings_in_the_file_and_numbers_when_read(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.log({"a": float("nan"), "b": float("-inf"), "c": 2}, 1)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (line["a"], line["b"], line["c"]) == ("nan", "-inf", 2)
    (read,) = read_metrics(tmp_path)
    assert math.isnan(read["a"]) and read["b"] == float("-inf") and read["c"] == 2


def test_samples_stand_in_the_line_of_their_step(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.log({"loss": 1.0}, 1, samples=[{"prompt": "p", "answer": "月\n", "reward": float("nan")}])
        tracker.log({"loss": 0.5}, 2)
    first, second = read_metrics(tmp_path)
    assert (first["loss"], first["samples"]) == (1.0, [{"prompt": "p", "answer": "月\n", "reward": "nan"}])
    assert "samples" not in second


def test_alarms_are_texts_in_the_order_told(tmp_path: Path) -> None:
    with Tracker(tmp_path) as tracker:
        tracker.log({"loss": 1.0}, 1)
        tracker.log({"moe/0/load/1": 0.5, "moe/0/alarm/dead": "a", "moe/12/alarm/load": "b"}, 2)
    assert alarms(read_metrics(tmp_path)) == [(2, "a"), (2, "b")]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a rewind drops later lines",
        "cluster/tracking/tracker.py",
        "self._file.close()\n        self._keep(step)",
        "self._file.close()\n        self._keep(step + 1)",
        None,
    ),
]

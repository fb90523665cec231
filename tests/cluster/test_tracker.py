"""metrics.jsonl: every line whole, and a continued stage takes up where it stood."""

import json
import math
from pathlib import Path

import pytest

from cluster.tracker import Tracker, alarms, read_metrics
from conf import schema


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
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [
        (1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0), (5, 2.5),
    ]  # fmt: skip


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


@pytest.mark.slow
def test_wandb_offline_writes_below_the_folder(tmp_path: Path) -> None:
    cfg = schema.Tracker(kind=schema.TrackerKind.wandb, mode=schema.WandbMode.offline)
    log(tmp_path, range(1, 4), cfg)
    assert len(read_metrics(tmp_path)) == 3
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))

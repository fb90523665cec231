"""The line that a person reads."""

import time
from pathlib import Path

import pytest

from cluster import progress
from cluster.tracker import Tracker
from conf import schema


def test_a_line_names_share_numbers_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bar = progress.counter("base", 400)
    bar.begin_at(100)
    now[0] = 110.0
    bar.update(120, loss=4.2149, tokens_per_second=5900.4)
    # 20 steps took 10 s, 280 are left: 140 s
    assert bar.line() == "base  120/400  30%  loss 4.21  5,900 tok/s  ETA 2:20"
    bar.advance(280)
    assert bar.line() == "base  400/400  100%  loss 4.21  5,900 tok/s  in 0:10"


def test_clock() -> None:
    assert [progress.clock(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


def test_follow_reads_what_the_stage_appends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        progress.follow(tmp_path, "base", 4, show=("loss", "absent")),
        Tracker(tmp_path, schema.Tracker(), run="r", stage="base") as tracker,
    ):
        tracker.log({"loss": 3.0}, 1)
        tracker.log({"eval_loss": 9.0}, 4)
    assert capsys.readouterr().out == "base  4/4  100%  loss 3  in 0:00\n"


def test_an_alarm_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        progress.follow(tmp_path, "base", 3),
        Tracker(tmp_path, schema.Tracker(), run="r", stage="base") as tracker,
    ):
        tracker.log({"loss": 3.0, "moe/1/alarm/dead": "layer 1: expert 0 gets no token"}, 1)
        time.sleep(2.5 * progress.POLL_EVERY)  # it is looked at more than once
        tracker.log({"loss": 3.0}, 3)
    alarm, last = capsys.readouterr().out.splitlines()
    assert alarm == "base: alarm at step 1: layer 1: expert 0 gets no token"
    assert last.startswith("base  3/3  100%  loss 3  in ")


def test_what_happens_is_told_above_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def begin(step: int) -> Tracker:
        return Tracker(tmp_path, schema.Tracker(), run="r", stage="base", step=step)

    look = 1.5 * progress.POLL_EVERY
    with begin(0) as tracker:
        tracker.log({"loss": 3.0}, 20)
        tracker.log({"incident": "told by an earlier command"}, 20)
    with progress.follow(tmp_path, "base", 80):
        with begin(20) as tracker:
            tracker.log({"loss": 2.0, "lr": 0.0021, "tokens_per_second": 5900.2, "mfu": 0.412}, 40)
            tracker.log({"val/loss": 2.5}, 40)
            tracker.log({"incident": "loss 9.1 is 31 deviations above the median 2.0: skipped"}, 53)
            time.sleep(look)
        with begin(40):
            time.sleep(look)
        with begin(40) as tracker:
            tracker.log({"loss": 1.0}, 80)
    *told, last = capsys.readouterr().out.splitlines()
    assert told == [
        "base: resumed at step 20",
        "base: step 53: loss 9.1 is 31 deviations above the median 2.0: skipped",
        "base: a worker died and was replaced; going on at step 40",
        "base: a worker died and was replaced; going on at step 40",
    ]
    assert last.startswith("base  80/80  100%  loss 1  lr 0.0021  5,900 tok/s  mfu 41%  val/loss 2.5  in ")


def test_a_first_attempt_is_no_news(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def begin() -> Tracker:
        return Tracker(tmp_path, schema.Tracker(), run="r", stage="base")

    with progress.follow(tmp_path, "base", 8):
        begin().__exit__(None, None, None)
        with begin():
            time.sleep(1.5 * progress.POLL_EVERY)
    assert capsys.readouterr().out.splitlines()[:-1] == ["base: a worker died and was replaced; going on at step 0"]

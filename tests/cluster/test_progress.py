"""The line that a person reads."""

import re
import time
from pathlib import Path

import pytest

from cluster import progress
from cluster.tracking.tracker import Tracker


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


def test_silence_is_told_and_is_not_taken_for_slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    bar = progress.counter("base", 60)
    now[0] = 127.5
    bar.update(55, loss=2.0)
    assert bar.line() == "base  55/60  92%  loss 2  ETA 0:02"  # half a second a step
    now[0] = 127.5 + 76
    assert bar.line() == "base  55/60  92%  loss 2  ETA 0:02  no step for 1:16"
    bar.begin_at(40, "a worker was lost (rank 0: ActorDiedError); starting 2 workers from step 40")
    assert bar.line() == (
        "base  40/60  67%  a worker was lost (rank 0: ActorDiedError); starting 2 workers from step 40"
    )
    now[0] += 30
    bar.update(40)
    now[0] += 10
    bar.update(50, loss=2.5)
    assert bar.line() == "base  50/60  83%  loss 2.5  ETA 0:10"  # of this attempt: a second a step


def test_lines_of_an_earlier_attempt_are_not_shown_as_this_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(step: int) -> Tracker:
        return Tracker(tmp_path, step=step)

    with begin(0) as tracker:
        tracker.log({"loss": 3.0}, 40)
        tracker.log({"loss": 2.0}, 60)  # after the last checkpoint, and lost with it
    with progress.follow(tmp_path, "base", 60) as seen:
        seen.begin(40, "starting 1 worker")
        assert seen.idle()
        time.sleep(1.5 * progress.POLL_EVERY)
        assert seen.idle()
        with begin(40):
            while seen.idle():
                time.sleep(0.01)
        seen.begin(40, "a worker was lost (rank 0); starting 1 worker from step 40")
        assert seen.idle()
    first, resumed, lost, last = capsys.readouterr().out.splitlines()
    assert (first, resumed) == ("base  40/60  67%  starting 1 worker", "base: resumed at step 40")
    assert lost == last == "base  40/60  67%  a worker was lost (rank 0); starting 1 worker from step 40"


def test_workers_without_lines_have_begun_once_their_tracker_has(tmp_path: Path) -> None:
    with progress.follow(tmp_path, "base", 60) as seen:
        seen.begin(0, "starting 1 worker")
        with Tracker(tmp_path):
            while seen.idle():
                time.sleep(0.01)


def test_clock() -> None:
    assert [progress.clock(s) for s in (5, 65, 3725)] == ["0:05", "1:05", "1:02:05"]


def test_follow_reads_what_the_stage_appends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        progress.follow(tmp_path, "base", 4, show=("loss", "absent")),
        Tracker(tmp_path) as tracker,
    ):
        tracker.log({"loss": 3.0}, 1)
        tracker.log({"eval_loss": 9.0}, 4)
    assert re.fullmatch(r"base  4/4  100%  loss 3  in \d+:\d\d\n", capsys.readouterr().out)


def test_an_alarm_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        progress.follow(tmp_path, "base", 3),
        Tracker(tmp_path) as tracker,
    ):
        tracker.log({"loss": 3.0, "moe/1/alarm/dead": "layer 1: expert 0 gets no token"}, 1)
        time.sleep(2.5 * progress.POLL_EVERY)  # it is looked at more than once
        tracker.log({"loss": 3.0}, 3)
    alarm, last = capsys.readouterr().out.splitlines()
    assert alarm == "base: alarm at step 1: layer 1: expert 0 gets no token"
    assert last.startswith("base  3/3  100%  loss 3  in ")


def test_what_happens_is_told_above_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def begin(step: int) -> Tracker:
        return Tracker(tmp_path, step=step)

    shown = ""

    def wait_for(text: str, times: int) -> None:
        nonlocal shown
        while shown.count(text) < times:
            time.sleep(0.01)
            shown += capsys.readouterr().out

    with begin(0) as tracker:
        tracker.log({"loss": 3.0}, 20)
        tracker.log({"incident": "told by an earlier command"}, 20)
    with progress.follow(tmp_path, "base", 80):
        with begin(20) as tracker:
            tracker.log({"loss": 2.0, "lr": 0.0021, "tokens_per_second": 5900.2, "mfu": 0.412}, 40)
            tracker.log({"val/loss": 2.5}, 40)
            tracker.log({"incident": "loss 9.1 is 31 deviations above the median 2.0: skipped"}, 53)
            wait_for("skipped", 1)
        with begin(40):
            wait_for("a worker died", 1)
        with begin(40) as tracker:
            tracker.log({"loss": 1.0}, 80)
    *told, last = (shown + capsys.readouterr().out).splitlines()
    assert told == [
        "base: resumed at step 20",
        "base: step 53: loss 9.1 is 31 deviations above the median 2.0: skipped",
        "base: a worker died and was replaced; going on at step 40",
        "base: a worker died and was replaced; going on at step 40",
    ]
    assert last.startswith("base  80/80  100%  loss 1  lr 0.0021  5,900 tok/s  mfu 41%  val/loss 2.5  in ")


def test_a_first_attempt_is_no_news(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def begin() -> Tracker:
        return Tracker(tmp_path)

    with progress.follow(tmp_path, "base", 8):
        begin().__exit__(None, None, None)
        with begin():
            time.sleep(1.5 * progress.POLL_EVERY)
    assert capsys.readouterr().out.splitlines()[:-1] == ["base: a worker died and was replaced; going on at step 0"]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what was read before workers began says nothing of them",
        "cluster/progress.py",
        '            old.update((line["time"], line["step"]) for line in newest())\n',
        "            old.clear()\n",
        "test_lines_of_an_earlier_attempt_are_not_shown_as_this_ones",
    ),
    (
        "the time left is that of the steps taken",
        "cluster/progress.py",
        "now, took = time.monotonic(), self._changed - self._since",
        "now, took = time.monotonic(), time.monotonic() - self._since",
        "test_silence_is_told_and_is_not_taken_for_slow_steps",
    ),
]

"""Signals: broken off at once, or asked and told where it was; a second one ends the process."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cluster import stopping

ROOT = Path(__file__).parents[2]
WORK = """
import sys, time
from pathlib import Path
from cluster import stopping
folder, how = Path(sys.argv[1]), sys.argv[2]
with stopping.stoppable("trainers.sft"):
    if how == "at once":
        print("working", flush=True)
        time.sleep(60)
    with stopping.deferred(folder) as request:
        print("working", flush=True)
        while how == "stuck" or not stopping.asked(folder):
            time.sleep(0.01)
        assert request
        request.where = "at step 41; saved"
    print("never here")
"""


def begun(folder: Path, how: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", WORK, str(folder), how],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "working\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_in_one_line_with_128_more_than_its_number(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    for how, where in (("at once", ""), ("asked", " at step 41; saved")):
        process = begun(tmp_path, how)
        process.send_signal(number)
        out, told = process.communicate(timeout=60)
        command = f"python -m trainers.sft {tmp_path} " + ("'at once'" if how == "at once" else how)
        assert told.split("\n")[-2] == f"stopped by {number.name}{where}; the same command continues: {command}"
        assert (process.returncode, out) == (code, "")
        assert list(tmp_path.iterdir()) == []
        assert "Traceback" not in told


def test_a_second_signal_ends_what_does_not_end(tmp_path: Path) -> None:
    process = begun(tmp_path, "stuck")
    process.send_signal(signal.SIGTERM)
    while not (tmp_path / "stop").exists():
        pass
    process.send_signal(signal.SIGINT)  # whichever of the two
    until = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    ended = process.poll()
    process.kill()
    _, told = process.communicate()
    assert ended == -signal.SIGINT
    assert told.strip() == "SIGTERM: this step is finished and saved first; a second signal ends it at once"
    with stopping.deferred(tmp_path) as request:  # the next one is not stopped by what it left
        assert not stopping.asked(tmp_path) and not request


def test_only_the_outermost_of_the_main_thread_takes_the_signals() -> None:
    before = [signal.getsignal(number) for number in stopping.SIGNALS]

    def now() -> list[object]:
        return [signal.getsignal(number) for number in stopping.SIGNALS]

    seen = []

    def aside() -> None:
        with stopping.stoppable("trainers.sft"):
            seen.append(now())

    thread = threading.Thread(target=aside)
    thread.start()
    thread.join()
    assert seen == [before]
    with stopping.stoppable("cluster.pipeline"):
        ours = now()
        with stopping.stoppable("trainers.sft"):
            assert now() == ours != before
        assert now() == ours
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a library does
        stopping.renew()
        assert now() == ours
    assert now() == before
    stopping.renew()
    assert now() == before


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "the code is 128 more than the signal's number",
        "cluster/stopping.py",
        "    raise Stopped(128 + number)",
        "    raise Stopped(1)",
        "test_a_signal_ends_in_one_line_with_128_more_than_its_number",
    ),
    (
        "a second signal is not handled",
        "cluster/stopping.py",
        "        signal.signal(each, signal.SIG_DFL)  # a second one ends it at once",
        "        pass",
        "test_a_second_signal_ends_what_does_not_end",
    ),
    (
        "a request does not outlive who got it",
        "cluster/stopping.py",
        "    (folder / _FILE).unlink(missing_ok=True)  # of a process that was killed while it stopped",
        "    pass",
        "test_a_second_signal_ends_what_does_not_end",
    ),
    (
        "signals are taken back from a library",
        "cluster/stopping.py",
        "                signal.signal(number, _handle)\n\n",
        "                pass\n\n",
        "test_only_the_outermost_of_the_main_thread_takes_the_signals",
    ),
]

"""Fault points hurt when they are told to, at the right time, and in no run but a test's."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from cluster import fault
from conf.errors import InputError
from conf.knobs.running import Run


@pytest.fixture(autouse=True)
def disarmed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("FAULT", raising=False)
    fault.arm("")
    yield
    fault.arm("")


def test_it_fires_at_the_time_it_was_set_to_and_only_then() -> None:
    fault.at("save.written")
    fault.arm("save.written:2:raise,save.begun:1:enospc")
    fault.at("save.written")
    fault.at("save.renamed")
    assert not fault.reached()
    with pytest.raises(fault.Fault, match=r"FAULT raised at save.written"):
        fault.at("save.written")
    fault.at("save.written")
    assert not fault.reached()
    with pytest.raises(OSError, match=r"No space left on device: 'save.begun'"):
        fault.at("save.begun")
    assert fault.reached()
    fault.arm("")
    assert not fault.reached()


def test_a_delay() -> None:
    fault.arm("here:1:delay=0.05")
    before = time.monotonic()
    fault.at("here")
    assert time.monotonic() - before >= 0.05


@pytest.mark.parametrize("action", ["kill", "stop"])
def test_the_environment_kills_and_stops(action: str) -> None:
    code = "from cluster import fault; fault.at('here'); print('once', flush=True); fault.at('here'); print('twice')"
    environment = {**os.environ, "FAULT": f"here:2:{action}"}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    if action == "stop":
        assert os.WIFSTOPPED(status)
        process.kill()
    else:
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert process.communicate()[0] == "once\n"


@pytest.mark.parametrize(
    "text", ["here", "here:1", "here:0:kill", "here:x:kill", ":1:kill", "here:1:hurt", "a:1:delay=x"]
)
def test_a_malformed_fault_is_named(text: str) -> None:
    with pytest.raises(InputError, match=rf"FAULT={text} is not <point>:<count from 1>:"):
        fault.arm(text)


def test_a_run_that_is_no_test_refuses_to_be_hurt(monkeypatch: pytest.MonkeyPatch) -> None:
    fault.check(Run())
    monkeypatch.setenv("FAULT", "here:1:raise")
    with pytest.raises(InputError, match=r"FAULT=here:1:raise would hurt this run; unset it, or set run.faults=true"):
        fault.check(Run())
    fault.check(Run(faults=True))
    monkeypatch.setenv("FAULT", "here:1")
    with pytest.raises(InputError, match=r"FAULT=here:1 is not"):
        fault.check(Run(faults=True))


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    ("FAULT hurts no real run", "cluster/fault.py", "    if text and not run.faults:", "    if False:", None),
]

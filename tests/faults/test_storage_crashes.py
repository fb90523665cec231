"""A save that is killed or refused by the disk at any system call leaves a valid newest checkpoint, old or new.

Two tiers: the calls of Python's os module, which run everywhere, and with strace every call that the kernel sees, among
them the writes. A kill cannot test fsync, for the page cache survives it: the order is read off a trace.
"""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import pytest

from cluster import checkpoints, storage
from cluster.saver import Saver
from conf.knobs.training import Checkpoints
from tests.cluster.saving import save_checkpoint
from tests.faults.crashing import NEW

HOW = ("next", "again")  # a new checkpoint; one in the place of an old one
CHANGING = "open creat write writev pwrite64 fsync fdatasync ftruncate rename renameat renameat2 link linkat symlink"
CHANGING += " unlink unlinkat rmdir mkdir mkdirat chmod fchmod openat"
POINTS = ("begun", "written", "sealed", "renamed", "pruned")


class Ended(NamedTuple):
    code: int
    folder: Path


class Server:
    """Asks crashing.py for processes that save."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.number = scratch, count()
        self.before = scratch / "before"
        for step in (1, 2):
            save_checkpoint(self.before, step, partial(old, step), keep=2)
        script = Path(__file__).with_name("crashing.py")
        self.process = subprocess.Popen([sys.executable, script], stdin=-1, stdout=-1, text=True, bufsize=1)

    def line(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def save(self, how: str, hurt: str | tuple[int, int] = "", *, strace: tuple[str, ...] = ()) -> Ended:
        folder = self.scratch / str(next(self.number))
        shutil.copytree(self.before, folder)
        asked = {"folder": str(folder), "how": how, "hurt": hurt, "traced": bool(strace)}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        pid = self.line()
        if not strace:
            return Ended(self.line(), folder)
        log = folder.with_suffix(".trace")
        calls = "trace=" + ",".join(f"?{name}" for name in CHANGING.split())  # ?: some machines lack some
        command = ["strace", "-y", "-s", "0", "-o", str(log), "-p", str(pid), "-e", calls, *strace]
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert tracer.stderr is not None
            attached = "attached" in tracer.stderr.readline()
            os.kill(pid, signal.SIGCONT)
            code = self.line()
            if not attached:
                pytest.skip("strace may not attach to processes here")
        finally:
            tracer.communicate()
        return Ended(code, folder)

    def close(self) -> None:
        self.process.communicate("")
        shutil.rmtree(self.scratch)


def old(step: int, folder: Path) -> None:
    storage.write_file(folder / "weights", f"old {step}")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    memory = Path("/dev/shm")  # where fsync takes no time
    made = Server(Path(mkdtemp(dir=memory if memory.is_dir() else None)))
    yield made
    made.close()


def check(ended: Ended, how: str) -> None:
    """The newest checkpoint is whole, whatever else is visible is so too, and the next save finds its way."""
    folder = ended.folder
    found = checkpoints.newest_checkpoint(folder)
    assert found is not None
    step, path = found
    content = (path / "weights").read_bytes()
    assert (step, content) in {(2, b"old 2"), (2 if how == "again" else 3, NEW)}
    if ended.code in (0, 2):
        assert content == NEW
    for visible in folder.iterdir():
        if not visible.name.endswith(".tmp"):
            storage.verify(visible)
    with Saver(folder, Checkpoints(), keep=2, rank=0, world=1, attempt="later") as saver:
        saver.save(4, partial(old, 4))
    assert checkpoints.newest_checkpoint(folder) == (4, folder / "step-00000004")
    assert sorted(path.name for path in folder.iterdir()) == [f"step-{step:08d}", "step-00000004"]
    shutil.rmtree(folder)


@pytest.mark.parametrize("how", [*HOW, "asynchronous"])
def test_a_save_killed_or_refused_at_any_call_leaves_a_valid_checkpoint(server: Server, how: str) -> None:
    for code, ends in ((0, {-signal.SIGKILL}), (errno.ENOSPC, {1, 2})):
        for number in count(1):
            ended = server.save(how, (number, code))
            check(ended, how)
            if ended.code == 0:
                break
            assert ended.code in ends, number
        print(f"{how}: {number - 1} calls {'refused' if code else 'killed'}, all left a valid checkpoint")
        assert number > 15


@pytest.mark.parametrize("action", ["kill", "enospc", "raise"])
@pytest.mark.parametrize("how", HOW)
def test_a_save_hurt_at_a_fault_point_leaves_a_valid_checkpoint(server: Server, how: str, action: str) -> None:
    for point in POINTS:
        ended = server.save(how, f"save.{point}:1:{action}")
        assert ended.code == (-signal.SIGKILL if action == "kill" else 1), point
        found = checkpoints.newest_checkpoint(ended.folder)
        assert found is not None
        saved = (found[1] / "weights").read_bytes() == NEW
        assert saved == (point in ("renamed", "pruned")), point
        check(ended, how)


class Call(NamedTuple):
    name: str
    number: int  # the how manieth of this name
    text: str


def traced(server: Server, how: str) -> tuple[Ended, list[Call]]:
    """Every call of a save, in order, that changes the disk."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    ended = server.save(how, strace=("-e", "signal=none"))
    seen = Counter[str]()
    calls = []
    for line in ended.folder.with_suffix(".trace").read_text().splitlines():
        if match := re.match(r"(\w+)\(.*= (\d+|-1)", line):
            seen[match[1]] += 1
            reads = match[1] in ("open", "openat") and not re.search("O_CREAT|O_WRONLY|O_RDWR", line)
            if str(ended.folder) in line and not reads:
                calls.append(Call(match[1], seen[match[1]], line))
    assert ended.code == 0
    return ended, calls


@pytest.mark.parametrize("how", HOW)
def test_a_save_killed_or_refused_at_any_system_call_leaves_a_valid_checkpoint(server: Server, how: str) -> None:
    ended, calls = traced(server, how)
    check(ended, how)
    assert {"write", "fsync"} < {call.name for call in calls} and len(calls) >= 20
    for call in calls:
        removes = call.name in ("unlink", "unlinkat", "rmdir")
        error = "EIO" if removes or call.name in ("fsync", "fdatasync") else "ENOSPC"
        for harm in ("signal=SIGKILL", f"error={error}"):
            ended = server.save(how, strace=("-e", f"inject={call.name}:{harm}:when={call.number}"))
            log = ended.folder.with_suffix(".trace").read_text()
            if harm == "signal=SIGKILL":
                assert ended.code == -signal.SIGKILL and "+++ killed by SIGKILL +++" in log, call
            else:
                assert ended.code == 1 or removes, call  # what only tidies up may fail
                assert log.count("(INJECTED)") == 1, call
            check(ended, how)
    print(f"{how}: {len(calls)} system calls, each killed and each refused: all left a valid checkpoint")


@pytest.mark.parametrize("how", HOW)
def test_all_is_flushed_before_it_gets_its_name_and_before_anything_old_goes(server: Server, how: str) -> None:
    ended, calls = traced(server, how)
    final = ended.folder / f"step-{2 if how == 'again' else 3:08d}"
    unflushed: set[Path] = set()  # files with new content and folders with other names in them
    published = durable = False
    for call in calls:
        held = re.findall(r"\(\d+<([^>]+)>", call.text)
        path, *target = [Path(*held, name) for name in re.findall(r'"([^"]+)"', call.text)] or map(Path, held)
        if durable:
            break
        below = {name for name in unflushed if name.is_relative_to(path)}
        if call.name.startswith("rename"):
            unflushed = (unflushed - below) | {target[0] / name.relative_to(path) for name in below}
            unflushed |= {path.parent, target[0].parent}
            if target[0] == final:
                assert not below
                published = True
        elif call.name in ("write", "pwrite64"):
            unflushed.add(path)
        elif call.name == "fsync":
            unflushed.discard(path)
            durable = published and path == ended.folder
        elif call.name in ("openat", "mkdir"):
            unflushed.add(path.parent)
        else:
            assert call.name in ("unlink", "unlinkat", "rmdir")
            assert path.is_relative_to(final.parent) and not published  # nothing old goes before this is durable
            unflushed = (unflushed - below) | {path.parent}
    assert durable
    check(ended, how)

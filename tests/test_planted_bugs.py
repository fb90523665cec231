"""Every promise has a bug that turns its test red: plant each in a copy of the sources and see.

The bugs stand in lists called PLANTED at the end of the test files that they turn red.
"""

import ast
import compileall
import json
import os
import queue
import select
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import cache_from_source
from pathlib import Path
from typing import cast

import pytest

from tests.planting import TIMEOUT

ROOT = Path(__file__).parents[1]
_GRACE = 60.0  # seconds beyond a test's own limit
SOURCES = ("conf", "moe", "cluster", "trainers", "rlhf", "serving", "tests")


@dataclass(frozen=True)
class Bug:
    listed: str  # the test file whose list it is in
    promise: str
    file: str
    right: str  # what the file says, exactly once
    bug: str  # what it says instead
    test: str | None  # the test that must fail; None: any of the file that lists the bug

    @property
    def target(self) -> str:
        return f"{self.listed}::{self.test}" if self.test else self.listed


def listed_bugs() -> list[Bug]:
    """All bugs, read out of the test files without importing them, for most of those import torch."""
    bugs = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PLANTED":
                listed = path.relative_to(ROOT).as_posix()
                bugs += [Bug(listed, *bug) for bug in ast.literal_eval(node.value)]
    return bugs


BUGS = {bug.promise: bug for bug in listed_bugs()}


@dataclass(frozen=True)
class Outcome:
    code: int
    output: str

    @property
    def says(self) -> str:
        """red, green, skipped or timeout (nobody knows what the test would say), or what else became of pytest."""
        if self.code == TIMEOUT:
            return "timeout"
        if self.code == 0 and " skipped" in self.output and " passed" not in self.output:
            return "skipped"  # as what needs a browser is where there is none
        failed = " failed" in self.output or " error" in self.output  # an error: a fixture may notice it first
        return "red" if self.code == 1 and failed else "green" if self.code == 0 else f"exit code {self.code}"


class Planter:
    """Plants bugs, one at a time, in a copy of the sources, and runs their tests there."""

    def __init__(self, place: Path) -> None:
        self.place, self.planted = place, 0
        for name in SOURCES:
            shutil.copytree(ROOT / name, place / "clean" / name, ignore=shutil.ignore_patterns("__pycache__"))
        compileall.compile_dir(place / "clean", quiet=2)
        self.process = self._started()

    def _started(self) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, ROOT / "tests" / "planting.py"],
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def plant(self, bug: Bug) -> Outcome:
        self.planted += 1
        copy = self.place / str(self.planted)
        shutil.copytree(self.place / "clean", copy, copy_function=os.link)
        for name in ("data", "pyproject.toml"):
            (copy / name).symlink_to(ROOT / name)
        file = copy / bug.file
        code = file.read_text("utf-8")
        assert code.count(bug.right) == 1, f"{bug.file} no longer says: {bug.right}"
        Path(cache_from_source(str(file))).unlink(missing_ok=True)
        file.unlink()  # the clean tree's stays as it is
        file.write_text(code.replace(bug.right, bug.bug), "utf-8")
        outcome = self.ask(copy, bug.target)
        if outcome.says == "timeout":  # a fork may inherit a lock that nobody opens; a bug that hangs does so again
            outcome = self.ask(copy, bug.target)
        shutil.rmtree(copy)
        return outcome

    def ask(self, tree: Path, test: str, seconds: float = 300) -> Outcome:
        """What the test says that stands in this tree."""
        asked, answers = self.process.stdin, self.process.stdout
        assert asked is not None and answers is not None
        asked.write(json.dumps({"tree": str(tree), "test": test, "seconds": seconds}) + "\n")
        asked.flush()
        if not select.select([answers], [], [], seconds + _GRACE)[0]:
            self.close()  # what forks hangs itself
            self.process = self._started()
            return Outcome(TIMEOUT, "no answer from tests/planting.py")
        return Outcome(**json.loads(answers.readline()))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


Outcomes = dict[str, "Future[Outcome]"]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """What the tests say of each bug that was asked for; two are planted at a time."""
    items = [cast(pytest.Function, item) for item in request.session.items if item.path == request.path]
    asked = {item.callspec.params["promise"] for item in items if hasattr(item, "callspec")}
    planters: queue.SimpleQueue[Planter] = queue.SimpleQueue()
    all_planters = [Planter(tmp_path_factory.mktemp("planted")) for _ in range(2)]
    for planter in all_planters:
        planters.put(planter)

    def plant(promise: str) -> Outcome:
        planter = planters.get()
        try:
            return planter.plant(BUGS[promise])
        finally:
            planters.put(planter)

    with ThreadPoolExecutor(2) as pool:
        yield {promise: pool.submit(plant, promise) for promise in BUGS if promise in asked}
    for planter in all_planters:
        planter.close()


@pytest.mark.slow
@pytest.mark.parametrize("promise", BUGS)
def test_the_planted_bug_turns_its_test_red(promise: str, outcomes: Outcomes) -> None:
    outcome = outcomes[promise].result()
    if outcome.says == "skipped":
        pytest.skip(next((line for line in outcome.output.splitlines() if line.startswith("SKIPPED")), "skipped"))
    assert outcome.says == "red", f"{promise}: {outcome.says}\n{outcome.output[-2000:]}"


def test_a_promise_has_one_bug() -> None:
    """Bugs are told apart by their promise: of two with the same, one would never be planted."""
    times = Counter(bug.promise for bug in listed_bugs())
    assert times and set(times.values()) == {1}, [promise for promise, count in times.items() if count > 1]


SAYINGS = """
import subprocess, time, pytest

@pytest.mark.timeout(0.2)
def test_limited(): time.sleep(5)
def test_own_limit(): subprocess.run(["sleep", "5"], timeout=0.2)
def test_wrong(): assert 1 == 2
def test_right(): assert 1 == 1
def test_hanging(): time.sleep(60)
def test_skipped(): pytest.skip("nothing here")
"""
SAYING = {"limited": "timeout", "own_limit": "timeout", "wrong": "red", "right": "green", "missing": "exit code 4"}
SAYING |= {"hanging": "timeout", "skipped": "skipped"}


@pytest.mark.slow
def test_a_time_limit_is_neither_red_nor_green(tmp_path: Path) -> None:
    (tmp_path / "test_sayings.py").write_text(SAYINGS, "utf-8")
    planter = Planter(tmp_path)
    seconds = {"hanging": 1.0}
    says = {
        name: planter.ask(tmp_path, f"test_sayings.py::test_{name}", seconds.get(name, 300)).says for name in SAYING
    }
    planter.close()
    assert says == SAYING

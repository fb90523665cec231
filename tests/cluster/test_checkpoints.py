"""Checkpoints are whole or absent, and damage falls back to the one before."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import checkpoints, storage
from cluster.saver import Saver
from conf.knobs.training import Checkpoints
from tests.cluster.saving import save_checkpoint


def fill(content: str) -> Callable[[Path], None]:
    return lambda folder: storage.write_file(folder / "weights", content)


def test_the_newest_checkpoint_up_to_a_step(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, fill(str(step)), keep=3)
    for name in ("step-00000040.tmp", "step-x", "ray-1", "step-00000050.old", ".step-00000060"):
        (tmp_path / name).mkdir()
    assert checkpoints.newest_checkpoint(tmp_path) == (30, tmp_path / "step-00000030")
    assert checkpoints.newest_checkpoint(tmp_path, at_most=29) == (20, tmp_path / "step-00000020")
    assert checkpoints.newest_checkpoint(tmp_path, at_most=20) == (20, tmp_path / "step-00000020")
    assert checkpoints.newest_checkpoint(tmp_path, at_most=9) is None
    checkpoints.drop_checkpoints(tmp_path, after=10)
    assert checkpoints.newest_checkpoint(tmp_path) == (10, tmp_path / "step-00000010")


def test_what_a_stop_saved_counts_only_until_the_next(tmp_path: Path) -> None:
    """Neither what is kept nor what a rollback goes to may depend on it."""

    def save(step: int, *, interim: bool = False) -> list[str]:
        saver = Saver(tmp_path, Checkpoints(best=True), keep=2, rank=0, world=1, attempt=str(step))
        with saver:
            saver.save(step, fill(str(step)), score=float(step), interim=interim)
        return sorted(path.name for path in tmp_path.iterdir())

    for step in (10, 20, 30):
        save(step)
    assert save(34, interim=True) == ["step-00000010", "step-00000020", "step-00000030", "step-00000034-stop"]
    assert checkpoints.newest_checkpoint(tmp_path) == (34, tmp_path / "step-00000034-stop")
    assert checkpoints.newest_checkpoint(tmp_path, at_most=34) == (30, tmp_path / "step-00000030")
    assert save(37, interim=True) == ["step-00000010", "step-00000020", "step-00000030", "step-00000037-stop"]
    assert checkpoints.newest_step(tmp_path) == 37
    assert save(40) == ["step-00000010", "step-00000030", "step-00000040"]


def test_a_save_ends_the_future_that_was_given_up(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, fill(str(step)), keep=3)
    save_checkpoint(tmp_path, 15, fill("again"), keep=1)  # the newest, though not the latest
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000015"]


def test_a_checkpoint_that_is_about_to_be_replaced_counts_until_then(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 7, fill("old"), keep=1)
    (tmp_path / "step-00000007").rename(tmp_path / ".step-00000007.old")  # killed between two renames
    found = checkpoints.newest_checkpoint(tmp_path)
    assert found == (7, tmp_path / ".step-00000007.old")
    save_checkpoint(tmp_path, 7, fill("new"), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]
    assert (tmp_path / "step-00000007" / "weights").read_text() == "new"


def test_checkpoints_are_pruned_and_damage_falls_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checkpoints.newest_checkpoint(tmp_path / "none") is None
    for step in (90, 100, 1000):
        saved = save_checkpoint(tmp_path, step, fill(str(step)), keep=2)
    assert saved == tmp_path / "step-00001000"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000100", "step-00001000"]
    assert checkpoints.newest_checkpoint(tmp_path) == (1000, saved)
    (saved / "weights").write_text("1001")
    assert checkpoints.newest_checkpoint(tmp_path) == (100, tmp_path / "step-00000100")
    assert f"{saved}/weights was changed" in capsys.readouterr().err
    (tmp_path / "step-00000100" / "manifest.json").write_text("{")
    assert checkpoints.newest_checkpoint(tmp_path) is None


def test_a_kill_inside_a_save_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, fill("one"), keep=2)
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.cluster.saving import save_checkpoint\n"
        "def write(folder):\n"
        "    (folder / 'weights').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "save_checkpoint(Path(sys.argv[1]), 2, write, keep=2)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [*tmp_path.glob("step-00000002.*.tmp/rank-00000.tmp/weights")]  # the kill did come between
    assert checkpoints.newest_checkpoint(tmp_path) == (1, tmp_path / "step-00000001")
    save_checkpoint(tmp_path, 2, fill("two"), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a save ends the abandoned future",
        "cluster/checkpoints.py",
        "    drop_checkpoints(folder, after=step)\n",
        "",
        None,
    ),
    (
        "what a stop saved is not among those that are kept",
        "cluster/checkpoints.py",
        "usual = [(number, path) for number, path in found if not _is_interim(path)]",
        "usual = found",
        "test_what_a_stop_saved_counts_only_until_the_next",
    ),
    (
        "a rollback never goes to what a stop saved",
        "cluster/checkpoints.py",
        "(step > at_most or _is_interim(path))",
        "step > at_most",
        "test_what_a_stop_saved_counts_only_until_the_next",
    ),
]

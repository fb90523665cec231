"""Commits are whole or absent, and damage is named."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import storage


def fill(content: str) -> Callable[[Path], None]:
    return lambda folder: storage.write_file(folder / "weights", content)


def test_sha256_of_a_file(tmp_path: Path) -> None:
    storage.write_file(tmp_path / "a", "abc")
    assert storage.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_write_file_keeps_the_old_content_when_the_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_file(tmp_path / "a", "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        storage.write_file(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"


def test_committed_writes_a_manifest_and_verify_names_the_damage(tmp_path: Path) -> None:
    with storage.committed(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_bytes(b"12345")
        assert not (tmp_path / "out").exists()
    out = tmp_path / "out"
    manifest = storage.read_json(out / "manifest.json")
    sealed = manifest.pop("sealed")
    assert manifest == {"files": {"sub/b": hashlib.sha256(b"12345").hexdigest()}, "bytes": {"sub/b": 5}}
    assert sealed == hashlib.sha256((json.dumps(manifest, indent=2) + "\n").encode()).hexdigest()
    storage.verify(out)
    (out / "sub" / "b").write_bytes(b"12346")
    storage.verify(out, quick=True)  # the size is right
    with pytest.raises(storage.Damaged, match=r"sub/b was changed"):
        storage.verify(out)
    (out / "sub" / "b").write_bytes(b"1")
    with pytest.raises(storage.Damaged, match=r"sub/b has 1 bytes, 5 were written"):
        storage.verify(out, quick=True)
    (out / "sub" / "b").unlink()
    with pytest.raises(storage.Damaged, match=r"sub/b is missing"):
        storage.verify(out)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"sealed"', '"note": 1, "sealed"'),
        lambda text: text.replace('"bytes"', '"note": 1,\n  "bytes"'),
        lambda text: text + " ",
        lambda text: text.replace(": 5", ":  5"),
        lambda text: text.replace(": 5", ": 6"),
        lambda text: text.replace('"sealed"', '"Sealed"'),
        lambda text: text.replace(": 5", ": NaN"),
        lambda text: text.replace("sub/b", "\\ud800"),
        lambda text: "[]",
        lambda text: text[:-1],
    ],
)
def test_a_manifest_notices_that_it_was_changed(tmp_path: Path, change: Callable[[str], str]) -> None:
    with storage.committed(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "b").write_bytes(b"12345")
    manifest = tmp_path / "out" / "manifest.json"
    assert change(manifest.read_text()) != manifest.read_text()
    manifest.write_text(change(manifest.read_text()))
    for quick in (True, False):
        with pytest.raises(storage.Damaged, match=r"manifest.json was changed after it was written"):
            storage.verify(tmp_path / "out", quick=quick)


def test_what_the_manifest_does_not_name_is_left_alone(tmp_path: Path) -> None:
    with storage.committed(tmp_path / "out") as folder:
        (folder / "a").write_text("first")
    (tmp_path / "out" / ".DS_Store").write_text("a desktop was here")
    storage.verify(tmp_path / "out")


def test_the_newest_checkpoint_up_to_a_step(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        storage.save_checkpoint(tmp_path, step, fill(str(step)), keep=3)
    for name in ("step-00000040.tmp", "step-x", "ray-1", "step-00000050.old", ".step-00000060"):
        (tmp_path / name).mkdir()
    assert storage.newest_checkpoint(tmp_path) == (30, tmp_path / "step-00000030")
    assert storage.newest_checkpoint(tmp_path, at_most=29) == (20, tmp_path / "step-00000020")
    assert storage.newest_checkpoint(tmp_path, at_most=20) == (20, tmp_path / "step-00000020")
    assert storage.newest_checkpoint(tmp_path, at_most=9) is None
    storage.drop_checkpoints(tmp_path, after=10)
    assert storage.newest_checkpoint(tmp_path) == (10, tmp_path / "step-00000010")


def test_a_save_ends_the_future_that_was_given_up(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        storage.save_checkpoint(tmp_path, step, fill(str(step)), keep=3)
    storage.save_checkpoint(tmp_path, 15, fill("again"), keep=1)  # the newest, though not the latest
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000015"]


def test_a_checkpoint_that_is_about_to_be_replaced_counts_until_then(tmp_path: Path) -> None:
    storage.save_checkpoint(tmp_path, 7, fill("old"), keep=1)
    (tmp_path / "step-00000007").rename(tmp_path / ".step-00000007.old")  # killed between two renames
    found = storage.newest_checkpoint(tmp_path)
    assert found == (7, tmp_path / ".step-00000007.old")
    storage.save_checkpoint(tmp_path, 7, fill("new"), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]
    assert (tmp_path / "step-00000007" / "weights").read_text() == "new"


def test_committed_leaves_nothing_behind_an_error_and_replaces_what_was_there(tmp_path: Path) -> None:
    with storage.committed(tmp_path / "out") as folder:
        (folder / "a").write_text("first")
    with pytest.raises(RuntimeError), storage.committed(tmp_path / "out") as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out" / "a").read_text() == "first"
    with storage.committed(tmp_path / "out") as folder:
        (folder / "b").write_text("second")
    assert sorted(os.listdir(tmp_path)) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["b", "manifest.json"]


def test_checkpoints_are_pruned_and_damage_falls_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert storage.newest_checkpoint(tmp_path / "none") is None
    for step in (90, 100, 1000):
        saved = storage.save_checkpoint(tmp_path, step, fill(str(step)), keep=2)
    assert saved == tmp_path / "step-00001000"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000100", "step-00001000"]
    assert storage.newest_checkpoint(tmp_path) == (1000, saved)
    (saved / "weights").write_text("1001")
    assert storage.newest_checkpoint(tmp_path) == (100, tmp_path / "step-00000100")
    assert f"{saved}/weights was changed" in capsys.readouterr().err
    (tmp_path / "step-00000100" / "manifest.json").write_text("{")
    assert storage.newest_checkpoint(tmp_path) is None


def test_a_kill_inside_a_save_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    storage.save_checkpoint(tmp_path, 1, fill("one"), keep=2)
    code = (
        "import os, signal, sys; from pathlib import Path; from cluster import storage\n"
        "def write(folder):\n"
        "    (folder / 'weights').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "storage.save_checkpoint(sys.argv[1], 2, write, keep=2)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "step-00000002.tmp" / "weights").exists()  # the kill did come between
    assert storage.newest_checkpoint(tmp_path) == (1, tmp_path / "step-00000001")
    storage.save_checkpoint(tmp_path, 2, fill("two"), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


def test_the_manifest_is_flushed_after_the_files_and_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, rename = os.fsync, Path.rename

    def fsync(handle: int) -> None:
        order.append("fsync " + Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        sync(handle)

    def renamed(path: Path, target: Path) -> Path:
        order.append(f"rename {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", renamed)
    with storage.committed(tmp_path / "out") as folder:
        (folder / "a").write_text("x")
    assert order == [
        "fsync a",
        "fsync out.tmp",
        "fsync .manifest.json.tmp",
        "fsync out.tmp",
        "rename out",
        f"fsync {tmp_path.name}",
    ]

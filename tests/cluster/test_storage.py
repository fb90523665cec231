"""Commits are whole or absent, and damage is named."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import storage


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


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a changed file is noticed",
        "cluster/storage.py",
        "if not quick and sha256(path) !=",
        "if False and sha256(path) !=",
        None,
    ),
    (
        "files are flushed before they count",
        "cluster/storage.py",
        "    for path in files:\n        fsync(path)\n",
        "",
        None,
    ),
    (
        "a manifest notices its own change",
        "cluster/storage.py",
        ".encode() == path.read_bytes()",
        ".encode() is not None",
        None,
    ),
]

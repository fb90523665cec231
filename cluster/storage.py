"""Files that are whole or absent: atomic writes, folders with a manifest.

The order is everywhere the same: a temporary name, fsync, the manifest last, rename, fsync of the parent. A process
killed at any moment leaves the old content or the new one; what it left under a temporary name is thrown away.

A manifest has the sha256 of every file of its folder and, last, of itself. A file that it does not name is left alone,
not an error: who reads a folder opens files by their exact names, and the trash that a desktop or a network file system
leaves must not cost a checkpoint.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster import fault

MANIFEST = "manifest.json"


class Damaged(ValueError):
    """A file is not what its manifest says. The message names it."""


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: str | Path) -> None:
    """Flush a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_file(path: str | Path, content: str | bytes) -> None:
    """Write `content` so that `path` holds the old content or the new one, never a part."""
    path = Path(path)
    aside = path.with_name(f".{path.name}.tmp")
    with open(aside, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    fsync(path.parent)


def write_json(path: str | Path, value: Any) -> None:
    write_file(path, _text(value))


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def read_json(path: str | Path) -> Any:
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise Damaged(f"{path}: {error}") from error


def contents(folder: Path, *, without: tuple[str, ...] = ()) -> list[Path]:
    """Every file below `folder`, sorted; top-level names in `without`, the manifest and temporary names left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and (parts := path.relative_to(folder).parts)[0] not in (*without, MANIFEST)
        and not any(part.endswith(".tmp") for part in parts)
    )


def seal(folder: Path, extra: dict[str, Any] | None = None, *, without: tuple[str, ...] = ()) -> None:
    """Flush every file of `folder`, then write its manifest: `files` {relative path: sha256}, `bytes` and `extra`."""
    drop_temporary(folder, without=without)
    write_manifest(folder, {**(extra or {}), **digests(folder, without=without)})


def drop_temporary(folder: Path, *, without: tuple[str, ...] = ()) -> None:
    """Remove what has a temporary name in `folder`, but for what lies below the top-level names in `without`."""
    # Some lie inside others, and are gone by their turn.
    for leftover in sorted(folder.rglob("*.tmp")):
        if leftover.relative_to(folder).parts[0] not in without:  # others write there, perhaps now
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def digests(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, dict[str, Any]]:
    """Flush every file of `folder`; returns `files` {relative path: sha256} and `bytes` {relative path: size}."""
    files = contents(folder, without=without)
    for path in files:
        fsync(path)
    for path in sorted({path.parent for path in files} | {folder}):
        fsync(path)
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        "files": {name: sha256(path) for name, path in names.items()},
        "bytes": {name: path.stat().st_size for name, path in names.items()},
    }


def write_manifest(folder: Path, body: dict[str, Any]) -> None:
    """Write `body` as the folder's manifest, with its own sha256 as `sealed`."""
    write_json(folder / MANIFEST, {**body, "sealed": _seal_of(body)})


def read_sealed(folder: str | Path) -> dict[str, Any]:
    """The folder's manifest. Raises `Damaged` if it is missing or a byte of it is not what `write_manifest` wrote."""
    path = Path(folder) / MANIFEST
    manifest = read_json(path)
    try:
        body = {name: value for name, value in manifest.items() if name != "sealed"}
        whole = _text({**body, "sealed": _seal_of(body)}).encode() == path.read_bytes()
    except (AttributeError, ValueError):  # no object, or a number or a letter that is never written
        whole = False
    if not whole:
        raise Damaged(f"{path} was changed after it was written, or written without a seal")
    return dict(manifest)


def _seal_of(body: dict[str, Any]) -> str:
    return hashlib.sha256(_text(body).encode()).hexdigest()


def verify(folder: str | Path, *, quick: bool = False) -> None:
    """Raise `Damaged`, naming the file, if one differs from the folder's manifest; `quick` compares only sizes."""
    verify_files(Path(folder), read_sealed(folder), quick=quick)


def verify_files(folder: Path, record: Mapping[str, Any], *, quick: bool = False) -> None:
    """Raise `Damaged`, naming the file, if one differs from what `digests` gave; `quick` compares only sizes."""
    for name, size in record["bytes"].items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{path} is missing")
        if path.stat().st_size != size:
            raise Damaged(f"{path} has {path.stat().st_size} bytes, {size} were written")
        if not quick and sha256(path) != record["files"][name]:
            raise Damaged(f"{path} was changed after it was written: its sha256 differs from the manifest")


@contextmanager
def committed(final: str | Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on a clean exit it becomes `final`, whole and with its manifest."""
    final = Path(final)
    aside = final.with_name(final.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        fault.at("save.begun")
        yield aside
        fault.at("save.written")
        seal(aside)
        fault.at("save.sealed")
        publish(aside, final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def publish(aside: Path, final: Path) -> None:
    """Give a sealed folder its name. What had the name is `.<name>.old` until then, so that there always is one."""
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        drop(old)
        final.rename(old)
    aside.rename(final)
    fsync(final.parent)
    fault.at("save.renamed")
    drop(old)


def drop(path: Path) -> None:
    """Remove the folder `path`, if it is there."""
    gone = path.with_name(path.name + ".tmp")
    shutil.rmtree(gone, ignore_errors=True)
    if path.exists():
        path.rename(gone)  # at once: nothing looks like a damaged folder if the removal is cut short
        shutil.rmtree(gone)

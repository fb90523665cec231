"""Files that are whole or absent: atomic writes, folders with a manifest, checkpoints that fall back.

The order is everywhere the same: a temporary name, fsync, the manifest last, rename, fsync of the parent. A process
killed at any moment leaves the old content or the new one; what it left under a temporary name is thrown away.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    write_file(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


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
    # Some lie inside others, and are gone by their turn.
    for leftover in sorted(folder.rglob("*.tmp")):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    files = contents(folder, without=without)
    for path in files:
        fsync(path)
    for path in sorted({path.parent for path in files} | {folder}):
        fsync(path)
    names = {path: path.relative_to(folder).as_posix() for path in files}
    write_json(
        folder / MANIFEST,
        {
            **(extra or {}),
            "files": {names[path]: sha256(path) for path in files},
            "bytes": {names[path]: path.stat().st_size for path in files},
        },
    )


def verify(folder: str | Path, *, quick: bool = False) -> None:
    """Raise `Damaged`, naming the file, if one differs from the folder's manifest; `quick` compares only sizes."""
    folder = Path(folder)
    manifest = read_json(folder / MANIFEST)
    for name, size in manifest["bytes"].items():
        path = folder / name
        if not path.is_file():
            raise Damaged(f"{path} is missing")
        if path.stat().st_size != size:
            raise Damaged(f"{path} has {path.stat().st_size} bytes, {size} were written")
        if not quick and sha256(path) != manifest["files"][name]:
            raise Damaged(f"{path} was changed after it was written: its sha256 differs from the manifest")


@contextmanager
def committed(final: str | Path) -> Iterator[Path]:
    """Yield an empty folder to fill; on a clean exit it becomes `final`, whole and with its manifest."""
    final = Path(final)
    aside, old = final.with_name(final.name + ".tmp"), final.with_name(final.name + ".old.tmp")
    for leftover in (aside, old):
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        seal(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if final.exists():
        final.rename(old)
    aside.rename(final)
    fsync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def save_checkpoint(folder: str | Path, step: int, write: Callable[[Path], None], keep: int) -> Path:
    """Commit `folder/step-00000100` as filled by `write`, then drop all but the newest `keep`. Returns its path."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{step:08d}"
    with committed(final) as aside:
        write(aside)
    for _, old in _checkpoints(folder)[keep:]:
        shutil.rmtree(old)
    return final


def newest_checkpoint(folder: str | Path) -> tuple[int, Path] | None:
    """The newest checkpoint that verifies, as (step, folder). Damaged ones are named on stderr and passed over."""
    for step, path in _checkpoints(Path(folder)):
        try:
            verify(path)
        except Damaged as error:
            print(f"checkpoint passed over: {error}", file=sys.stderr)
        else:
            return step, path
    return None


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    found = [(re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.glob("step-*")]
    return sorted(((int(match[1]), path) for match, path in found if match), reverse=True)

"""Which files a user means: by name, glob or folder; a file is one however often it is linked."""

import os
import re
from glob import glob
from pathlib import Path

from conf.errors import InputError

_ABOUT = re.compile(r"(readme|licen[cs]e|copying|changelog|notice|dataset_infos?|_[^/]*)(\.|$)", re.IGNORECASE)
_EVERY = re.compile(r"(^|/)\*\*(?=/|$)")


def matching(pattern: str, knob: str) -> list[str]:
    """The files that a pattern means, sorted: a file as it is named, those below a folder, those of a glob. Folders
    of a glob, which may be datasets, too. Raises `InputError`."""
    try:
        if Path(pattern).is_file():
            found = [pattern]
        elif Path(pattern).is_dir():
            found = _below(pattern)
        elif _EVERY.search(pattern):
            found = _deep(pattern)
        else:
            found = sorted(match for match in glob(pattern) if Path(match).exists())
    except OSError as error:
        raise InputError(f"{knob}: {pattern}: {error.strerror or error}") from None
    for name in found:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{knob}: {os.fsencode(name)!r}: a file's name must be UTF-8; rename it") from None
    return found


def is_about(path: str) -> bool:
    """Whether a file that nobody named is about the others: README.txt, _SUCCESS, dataset_infos.json."""
    return _ABOUT.match(Path(path).name) is not None


def itself(name: str) -> object:
    """The same for every name of one file."""
    try:
        told = os.stat(name)
    except OSError:
        return os.path.realpath(name)  # a dataset's split, or one of the Hub
    return (told.st_dev, told.st_ino)


def _below(folder: str) -> list[str]:
    """All files of a folder, hidden ones and links to folders left out; a dataset among them stands for its own."""
    found = []
    for place, folders, files in os.walk(folder):
        if place != folder and {"dataset_info.json", "dataset_dict.json"} & set(files):
            found.append(place)
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(place, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if Path(path).exists())


def _deep(pattern: str) -> list[str]:
    """A glob with **, which goes through no link to a folder: a folder that links to itself has no end."""
    pattern = re.sub(r"(?<![^/])\*\*/(?:\*\*/)+", "**/", pattern)
    begin = _EVERY.search(pattern)
    assert begin is not None
    before, after = pattern[: begin.start() + len(begin[1])], pattern[begin.end() :].lstrip("/")
    found: set[str] = set()
    for root in glob(before) if before else [""]:
        for place, folders, _ in os.walk(root or "."):
            folders[:] = [name for name in folders if not name.startswith(".")]
            here = place if root else os.path.relpath(place, ".")
            inside = "" if here == "." else here
            path = os.path.join(_literal(inside), after or "*") if inside else after or "*"
            found.update(_deep(path) if _EVERY.search(path) else glob(path))
    return sorted(path for path in found if Path(path).exists())


def _literal(path: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", path)

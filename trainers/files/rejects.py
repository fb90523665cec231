"""Bad records set aside, as many as a knob allows, each with its place in rejects.jsonl; of more the stage stops."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, TypeVar

from conf.errors import InputError
from trainers.files.forgotten import NOTHING, Forgotten
from trainers.files.readers import at, parse, place, read_sources
from trainers.files.streams import BadRecord, LeftOut

Made = TypeVar("Made")
REJECTS = "rejects.jsonl"


class Rejects:
    """What was read, and what of it is bad; `knob` allows that share of it, 0 nothing: then the first one raises."""

    def __init__(self, knob: str, most: float, file: TextIO | None = None) -> None:
        self.read = self.bad = 0
        self._knob, self._most, self._file, self._first = knob, most, file, ""

    def add(self, path: str | Path, line: int, offset: int, reason: str) -> None:
        """Set one aside. Raises `InputError` naming it where none may be bad."""
        self.bad += 1
        told = place(path, line, offset, reason)
        self._first = self._first or told
        if not self._most:
            raise InputError(told)
        if self._file:
            where = {"file": str(path), "line": line, "offset": offset, "reason": reason}
            self._file.write(json.dumps(where, ensure_ascii=False) + "\n")

    def unreadable(self, path: str | Path, error: InputError) -> None:
        """A file that cannot be read, or not to its end, counts as one bad record. Raises `error` where none may be."""
        self.read += 1
        if self._most == 0.0:
            raise error
        found = re.match(r":(\d+): |: ", told := str(error).removeprefix(str(path)))
        line, reason = (int(found[1] or 0), told[found.end() :]) if found else (0, told)
        self.add(path, line, 0, reason)

    def check(self) -> None:
        """Raise `InputError` where more is bad than may be, naming the first."""
        if self.bad > self._most * self.read:
            raise InputError(
                f"{self._first}; {self.bad} of {self.read} records are bad, more than {self._knob}={self._most}"
            )


@contextmanager
def rejects_in(folder: Path, knob: str, most: float) -> Iterator[Rejects]:
    """For as long as a stage reads; what is bad lies in its folder. Raises `InputError` at the end as `check` does."""
    with open(folder / REJECTS, "w", encoding="utf-8") as file:
        rejects = Rejects(knob, most, file)
        yield rejects
        rejects.check()


def made_of(
    path: str | Path,
    make: Callable[[dict[str, Any], int, str], Made],
    rejects: Rejects,
    forgotten: Forgotten = NOTHING,
) -> Iterator[Made]:
    """What `make(record, line, "file:line")` makes of each record of a file that is not forgotten; those that it
    refuses by `InputError`, and those that are no records, are set aside."""
    sources = read_sources(path)
    while True:
        try:
            source = next(sources, None)
        except InputError as error:
            return rejects.unreadable(path, error)
        if source is None:
            return None
        where = at(path, source.line)
        if forgotten.names(where):
            continue
        rejects.read += 1
        try:
            if source.reason:
                raise BadRecord(source.reason)
            made = make(parse(path, source.content), source.line, where)
        except LeftOut:
            continue
        except (BadRecord, InputError) as error:
            rejects.add(path, source.line, source.offset, str(error).removeprefix(f"{where}: "))
        else:
            yield made

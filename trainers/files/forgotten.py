"""The list of the records that a run has to forget, which the corpus stage leaves out wherever they come from.

It says each record by its place, and what stayed of it by its digest too: not by its text, which is what is to be
forgotten.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from conf.errors import InputError
from trainers.files.documents import identity

_PLACE = re.compile(r"(.+)(?::| row )(\d+)", re.DOTALL)  # as `trainers.files.readers.at` says it
FORGOTTEN = "forgotten.jsonl"  # in the run's folder, and not in a stage's: it outlives the corpus


@dataclass(frozen=True)
class Forgotten:
    """What a run has to forget."""

    places: frozenset[tuple[str, int]] = frozenset()  # file and line
    digests: frozenset[str] = frozenset()  # of texts that stayed, in whatever file they come back

    @classmethod
    def of(cls, path: Path) -> "Forgotten":
        """The list at `path`; an empty one where there is none. Raises `InputError` for a damaged one."""
        try:
            entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            places = frozenset((str(one["file"]), int(one["line"])) for one in entries)
            return cls(places, frozenset(one["digest"] for one in entries if one.get("digest")))
        except FileNotFoundError:
            return cls()
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: damaged ({error}); what a run has to forget must not get lost") from None

    def has(self, file: str, line: int) -> bool:
        return (file, line) in self.places

    def names(self, where: str) -> bool:
        """Whether "file:line" is among the places, for what has no corpus around it."""
        return bool(self.places) and parted(where) in self.places

    def among(self, files: Iterable[str]) -> "Forgotten":
        """What of it lies in these files: whatever else is forgotten changes nothing that is made of them alone."""
        own = set(files)
        return Forgotten(frozenset(place for place in self.places if place[0] in own))

    def knows(self, text: str) -> bool:
        return bool(self.digests) and identity(text).hex() in self.digests

    @property
    def setting(self) -> dict[str, dict[str, str]]:
        """What a stage's result hangs on besides, where there is something to forget."""
        return {"forgotten": {"version": self.version}} if self.version else {}

    @property
    def version(self) -> str:
        """ "" for an empty list: then nothing is another."""
        both = [sorted(self.places), sorted(self.digests)]
        return sha256(json.dumps(both).encode()).hexdigest()[:16] if self.places else ""


NOTHING = Forgotten()


def parted(where: str) -> tuple[str, int]:
    """(file, line) of "file:line"; what is no place has line 0."""
    found = _PLACE.fullmatch(where)
    return (found[1], int(found[2])) if found else (where, 0)

"""The list of the records that a run has to forget, which the corpus stage leaves out wherever they come from.

It says each record by its place, and what stayed of it by its digest too: not by its text, which is what is to be
forgotten.
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from conf.errors import InputError
from trainers.files.documents import identity

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

    def knows(self, text: str) -> bool:
        return bool(self.digests) and identity(text).hex() in self.digests

    @property
    def version(self) -> str:
        """ "" for an empty list: then nothing is another."""
        both = [sorted(self.places), sorted(self.digests)]
        return sha256(json.dumps(both).encode()).hexdigest()[:16] if self.places else ""

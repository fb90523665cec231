"""Whose conversations a stage's output was made of: by digest in its manifest, handed on to all that is made of it.

A stage that is made again says it of what it is now; what was made of it before, set aside or in another run, goes on
saying what it has learnt from. A digest is of the conversation's name, which the manifests of others need not know.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.storage import MANIFEST, Damaged, read_sealed

HEARD = "heard"  # in a manifest: [digest], in order; not there where it would be empty


def digest(conversation: str) -> str:
    """Of a name as `rlhf.judges.feedback` has it: <owner>/<conversation>, the latter alone where no key was needed."""
    return hashlib.sha256(f"heard:{conversation}".encode()).hexdigest()[:16]


def heard(config: Mapping[str, Any], made_of: Iterable[Path]) -> list[str]:
    """What a stage with these settings has heard, made of the stages (folders) `made_of`; what is no stage of ours has
    heard nothing that we know of."""
    found = {digest(name) for name in config.get("feedback", {}).get("conversations", {})}
    for folder in made_of:
        found |= set(_of(folder))
    return sorted(found)


def who_heard(runs: Path, conversation: str) -> Iterator[Path]:
    """The stages, of all runs in the folder `runs`, set aside or not, that were made of what was said in it."""
    wanted = digest(conversation)
    for path in sorted(runs.glob(f"*/*/{MANIFEST}")):
        if wanted in _of(path.parent):
            yield path.parent


def _of(folder: Path) -> list[str]:
    if not (folder / MANIFEST).is_file():
        return []
    try:
        manifest = read_sealed(folder)
    except Damaged:  # whoever reads its files says so
        return []
    own = manifest.get("config", {}).get("feedback", {}).get("conversations", {})  # of before manifests said `heard`
    return [*manifest.get(HEARD, ()), *map(digest, own)]

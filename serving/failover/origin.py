"""What of an answer would else be drawn by chance where it is made: its id, its seed and its time.

The door draws them once, so that whoever makes the answer again makes the same to the byte.
"""

import hashlib
import re
import secrets
import time
from dataclasses import dataclass, field

from starlette.requests import Request

HEADER = "x-conclave-origin"  # from the door in Serve's proxy to the replica; a client's is dropped
_WRITTEN = re.compile(r"([0-9a-f]{24})-([0-9]{1,12})")


@dataclass(frozen=True)
class Origin:
    token: str = field(default_factory=lambda: secrets.token_hex(12))  # 24 hex digits, in the ids
    created: int = field(default_factory=lambda: int(time.time()))  # unix seconds

    @classmethod
    def read(cls, text: str) -> "Origin":
        """What `written` has made; another one of anything else."""
        found = _WRITTEN.fullmatch(text)
        return cls(found[1], int(found[2])) if found else cls()

    @property
    def written(self) -> str:
        return f"{self.token}-{self.created}"

    @property
    def seed(self) -> int:
        """Below 2**64, for a request that names none."""
        return int.from_bytes(hashlib.sha256(self.token.encode()).digest()[:8])

    def name(self, *of: int) -> str:
        """24 hex digits for a part of the answer."""
        return hashlib.sha256(":".join([self.token, *map(str, of)]).encode()).hexdigest()[:24]


def origin(http: Request) -> Origin:
    """That of a request, which the door has put there."""
    found = http.scope["state"]["origin"]
    assert isinstance(found, Origin)
    return found

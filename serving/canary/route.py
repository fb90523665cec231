"""Which of two models answers: each conversation has one, from its first turn to its last.

Stands in Serve's proxy, between the door and the replay. A conversation is known by who asks and how it begins, its
first message of the user's and what comes before: every later turn sends them again. A hash of that says whose it is,
the same in every proxy. Chats alone are shared out; texts, embeddings and all else are the incumbent's. The last digit
of an answer's token says who made it, so that a stream is taken up again where it is.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conf.errors import InputError
from serving.canary import trial
from serving.failover.origin import Origin

PREFIX = "/-candidate"  # where its app stands in Serve
_CHATS = {"/v1/chat/completions": "messages", "/v1/messages": "messages", "/v1/responses": "input"}
_STREAM = "/v1/stream/"
_LOOK = 0.5  # seconds between two looks at the file


class Shared:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, run: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._run = run
        self._clock = clock
        self._looked = float("-inf")
        self._share, self._salt = 0.0, ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, share, chosen = str(scope["path"]), self._now(), False
        if path.startswith(_STREAM):
            chosen = share > 0 and is_candidates(path)
        elif share and (field := _CHATS.get(path)) and scope["method"] == "POST":
            body = await receive()
            receive = _again(body, receive)
            chosen = position(conversation(body.get("body", b""), field, scope["state"]["asker"]), self._salt) < share
        origin = marked(scope["state"]["origin"], candidate=chosen)
        named: dict[str, Any] = {"state": scope["state"] | {"origin": origin}}
        if chosen or path.startswith(PREFIX):  # which is nobody's to choose
            path = PREFIX + path if chosen else "/-"
            named |= {"path": path, "raw_path": path.encode()}
        await self._app(dict(scope) | named, receive, send)

    def _now(self) -> float:
        """The candidate's share."""
        if self._clock() >= self._looked + _LOOK:
            self._looked = self._clock()
            try:
                found = trial.read(self._run)
            except InputError:  # the server says so, too, and somebody reads that
                found = None
            self._share, self._salt = (found.routed, str(found.asked)) if found else (0.0, "")
        return self._share


def conversation(body: bytes, field: str, asker: str) -> str:
    """What all turns of a conversation have in common, as a digest."""
    try:
        said = json.loads(body)
        turns = said[field]
    except (ValueError, RecursionError, KeyError, TypeError):
        return ""
    begun: list[Any] = [asker, said.get("system"), said.get("instructions")]
    for turn in turns if isinstance(turns, list) else [turns]:
        begun.append(turn)
        if not isinstance(turn, dict) or turn.get("role") == "user":
            break
    return hashlib.sha256(json.dumps(begun, sort_keys=True).encode()).hexdigest()


def position(name: str, salt: str) -> float:
    """Of a conversation, in [0, 1): those below the share are the candidate's. Another trial shuffles them anew."""
    return int.from_bytes(hashlib.sha256(f"{salt}:{name}".encode()).digest()[:7]) / 2**56


def marked(origin: Origin, *, candidate: bool) -> Origin:
    digit = int(origin.token[-1], 16) & ~1 | candidate
    return replace(origin, token=f"{origin.token[:-1]}{digit:x}")


def is_candidates(name: str) -> bool:
    """Whether a stream's name says that the candidate made it."""
    return name[-1:] in set("13579bdf")


def _again(body: Message, receive: Receive) -> Receive:
    given: list[Message] = [body]

    async def first() -> Message:
        return given.pop() if given else await receive()

    return first

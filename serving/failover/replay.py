"""A replica's death, unseen: what it had begun to answer is asked of the next one, and goes on where it stopped.

Stands in Serve's proxy, within the door. Nothing that a request does is done twice by being asked twice: answers hang
on the request and its origin alone, votes and ranks have ids. So a response that ends before its end is asked for
again, from a replica that lives or, where there is none, from the one that Serve starts in its place. Of an event
stream the next one's events are left out as far as they were sent, which is checked to be the same to the byte.

Events of several answers to one request come in any mixture, so that they are counted for each of them. After a replay
they are numbered anew, in the order in which they were sent.
"""

import asyncio
import hashlib
import itertools
import re
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conf.knobs.running import Serve
from serving.failover.origin import HEADER

DEATHS = 4  # of replicas, that one request may see: it may be what they die of
_WAITS = (0.1, 0.25, 0.5, 1.0)  # seconds between two tries; the last one again and again
_OF_ANSWER = re.compile(rb'"choices":\[\{"index":(\d+)')
_CACHED = re.compile(rb'"(?:input_tokens|cached_tokens|cache_read_input_tokens)":\d+')  # differ by who answers
_NUMBER = re.compile(rb"id: \d+\n")


class Changed(RuntimeError):
    """Who answers now does not answer the same."""


class Replay:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, cfg: Serve) -> None:
        self._app = app
        self._seconds = cfg.replay_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        drawn = scope["state"]["origin"].written
        scope = dict(scope) | {"headers": [*scope["headers"], (HEADER.encode(), drawn.encode())]}
        body = await receive()  # whole, from the door
        response = _Response(send)
        deaths, ends = 0, 0.0
        for tried in itertools.count():
            client = _Client(body, receive)
            try:
                await self._app(dict(scope), client.receive, response.send)
            except Changed:
                return  # the door says that it has not come to its end
            if response.ended or client.left or response.plain:
                return
            if not response.refused:
                deaths += 1
                ends = ends or time.monotonic() + self._seconds
            if deaths > DEATHS or time.monotonic() >= ends:
                await response.give_up()
                return
            await asyncio.sleep(_WAITS[min(tried, len(_WAITS) - 1)])
            response.again()


class _Client:
    """Has sent its request, and may leave."""

    def __init__(self, body: Message, receive: Receive) -> None:
        self._body: Message | None = body
        self._receive = receive
        self.left = body["type"] == "http.disconnect"

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return body
        message = await self._receive()
        self.left |= message["type"] == "http.disconnect"
        return message


class _Response:
    """Passes on what has not been passed on before."""

    def __init__(self, to: Send) -> None:
        self._to = to
        self._start: Message | None = None  # not passed on: nothing has come after it
        self._started = False
        self._events = False
        self._replays = False
        self._held = b""  # of an event
        self._sent: Counter[bytes] = Counter()  # events of each answer
        self._digests: dict[bytes, Any] = defaultdict(hashlib.sha256)  # of what was sent of each
        self._seen: Counter[bytes] = Counter()  # this time
        self._seen_digests: dict[bytes, Any] = defaultdict(hashlib.sha256)
        self._refusal: list[Message] = []  # by who was asked again
        self.refused = False
        self.ended = False

    def again(self) -> None:
        """The same is about to be sent from its beginning."""
        self._start, self._held, self._replays = None, b"", True
        self._seen, self._seen_digests = Counter(), defaultdict(hashlib.sha256)
        self._refusal, self.refused = [], False

    @property
    def plain(self) -> bool:
        """It has begun and is no stream: nobody can tell where it stopped."""
        return self._started and not self._events

    async def give_up(self) -> None:
        """Nobody is asked any more: a refusal is the last word where there was none."""
        if self.refused and not self._started:
            for message in self._refusal:
                await self._to(message)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.refused = self._replays and message["status"] == 503
            kind = dict(message.get("headers", [])).get(b"content-type", b"")
            if not self._started:
                self._events = kind.startswith(b"text/event-stream")
            elif not self.refused and message["status"] != 200:
                raise Changed(f"status {message['status']} in the place of what was begun")
            self._start = message
            self._refusal = [message] if self.refused else []
        elif message["type"] != "http.response.body":
            await self._to(message)
        elif self.refused:  # those who are asked again may have no room yet
            self._refusal.append(message)
        elif self._events:
            await self._stream(message)
        else:
            await self._begin()
            await self._to(message)
            self.ended |= not message.get("more_body", False)

    async def _begin(self) -> None:
        if self._start is not None and not self._started:
            self._started = True
            await self._to(self._start)

    async def _stream(self, message: Message) -> None:
        more = message.get("more_body", False)
        *events, self._held = (self._held + message.get("body", b"")).split(b"\n\n")
        fresh = b"".join(self._fresh(events))
        if not more and self._held:  # not ours, and the end
            fresh, self._held = fresh + self._held, b""
        if fresh or not more:
            await self._begin()
            await self._to({"type": "http.response.body", "body": fresh, "more_body": more})
        self.ended |= not more

    def _fresh(self, events: list[bytes]) -> Iterator[bytes]:
        """Those that have not been sent. Raises `Changed`."""
        for event in events:
            found = _OF_ANSWER.search(event)
            answer = found[1] if found else b""
            number, said = (first[0], event[first.end() :]) if (first := _NUMBER.match(event)) else (b"", event)
            same = _CACHED.sub(b"", said) if b"cache" in said else said
            self._seen[answer] += 1
            if self._replays:
                self._seen_digests[answer].update(same)
                if self._seen[answer] < self._sent[answer]:
                    continue
                if self._seen[answer] == self._sent[answer]:
                    if self._seen_digests[answer].digest() != self._digests[answer].digest():
                        raise Changed("the answer cannot go on: another model answers now")
                    continue
            if number and self._replays:
                number = b"id: %d\n" % self._sent.total()
            self._sent[answer] += 1
            self._digests[answer].update(same)
            yield number + said + b"\n\n"

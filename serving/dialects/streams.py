"""Streams that outlive their reader: events are numbered, and `GET /v1/stream/<id>?from=N` goes on after a reload.

Whoever leaves frees what the answer holds at once. What had come is kept for a while, and the rest is decoded once the
stream is taken up again: the same tokens, for they hang on seed and position alone.
"""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from conf.knobs.running import Serve
from serving.decoding import Busy, Died
from serving.dialects.strict import ApiError
from serving.replies import Reply, unavailable

DONE = "data: [DONE]\n\n"
_SIZE = 4096  # bytes of a stream's objects, about


class Stream:
    """The events of one reply, which are made once and read by whoever has its id."""

    def __init__(self, reply: Reply, owner: str) -> None:
        self.reply, self.owner = reply, owner
        self.readers = 0
        self.expiry: asyncio.TimerHandle | None = None
        self._events: list[str] = []
        self.size = _SIZE + 8 * sum(len(prompt) for prompt, _ in reply.answers.asked)  # bytes that it holds, about
        self._failure: Exception | None = None
        self._news = asyncio.Event()  # a new one each time
        self._maker = asyncio.create_task(self._make())

    @property
    def count(self) -> int:
        """Events so far."""
        return len(self._events)

    async def _make(self) -> None:
        try:
            async for event in self.reply.events():
                number = "" if event == DONE else f"id: {len(self._events)}\n"
                self._events.append(number + event)
                self.size += len(self._events[-1])
                self._tell()
        except Exception as error:  # whoever reads must hear of it
            self._failure = error
        finally:
            if not self.readers:  # or the last of them has it closed, when its words are sent
                self.reply.answers.close()
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def read(self, begin: int) -> AsyncIterator[str]:
        """The events from that number on, to the end."""
        while True:
            news = self._news
            for event in self._events[begin:]:
                begin += 1
                yield event
            if begin == len(self._events):
                if self._failure is not None:
                    raise self._failure
                if self._maker.done():
                    return
                await news.wait()

    def enter(self) -> None:
        """Somebody reads. Raises `Busy` or `Died` where what is left cannot be decoded now."""
        if self.reply.answers.paused and not self._maker.done():
            self.reply.answers.resume()
        self.readers += 1

    def leave(self) -> None:
        self.readers -= 1
        if self.readers:
            return
        if self._maker.done():
            self.reply.answers.close()
        else:
            self.reply.answers.pause()

    def close(self) -> None:
        self._maker.cancel()
        self.reply.answers.close()


class Streams:
    """Those that are read or may be taken up again."""

    def __init__(self, cfg: Serve) -> None:
        self._cfg = cfg
        self._kept: dict[str, Stream] = {}  # the one that was left longest ago first

    async def answered(self, reply: Reply, http: Request) -> Response:
        """A reply as a whole or as a stream, as its request asked."""
        if not reply.streams:
            try:
                return JSONResponse(await reply.whole(), headers=reply.headers)
            except Died as error:
                raise unavailable(error) from None
            finally:
                reply.answers.close()  # also when the client went away and the server cancelled us
        stream = Stream(reply, _asker(http))
        self._kept[reply.id] = stream
        return self._read(stream, 0)

    def _read(self, stream: Stream, begin: int) -> Response:
        stream.enter()
        if stream.expiry is not None:
            stream.expiry.cancel()
        return _Reading(self, stream, begin)

    def left(self, stream: Stream) -> None:
        """A reader of it has gone."""
        stream.leave()
        if stream.readers or stream.reply.id not in self._kept:  # which the server's end has emptied
            return
        seconds = self._cfg.stream_seconds
        self._kept[stream.reply.id] = self._kept.pop(stream.reply.id)
        stream.expiry = asyncio.get_running_loop().call_later(seconds, self._forget, stream)
        idle = [each for each in self._kept.values() if not each.readers]
        held = sum(each.size for each in idle)
        for each in idle:
            if held > self._cfg.stream_bytes or not seconds:
                held -= each.size
                self._forget(each)

    def _forget(self, stream: Stream) -> None:
        if stream.expiry is not None:
            stream.expiry.cancel()
        self._kept.pop(stream.reply.id, None)
        stream.close()

    def close(self) -> None:
        for stream in list(self._kept.values()):
            self._forget(stream)

    def routes(self) -> APIRouter:
        router = APIRouter()

        @router.get("/v1/stream/{name}")
        async def go_on(http: Request, name: str) -> Response:
            stream = self._kept.get(name)
            if stream is None or stream.owner != _asker(http):
                text = f"no stream {name[:100]!r} of yours is kept here (serve.stream_seconds)"
                raise ApiError(404, text, code="stream_not_found")
            given = http.query_params.get("from", "0")
            if not given.isascii() or not given.isdecimal() or len(given) > 9 or int(given) > stream.count:
                text = f"from={given[:60]!r} must be the number of an event, at most {stream.count}"
                raise ApiError(400, text, code="invalid_value", param="from")
            try:
                return self._read(stream, int(given))
            except (Busy, Died) as error:
                raise unavailable(error) from None

        return router


class _Reading(StreamingResponse):
    """Tells of its end even if the client left before the first event was made."""

    def __init__(self, streams: Streams, stream: Stream, begin: int) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"} | stream.reply.headers
        super().__init__(stream.read(begin), media_type="text/event-stream", headers=headers)
        self._streams, self._stream = streams, stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.left(self._stream)


def _asker(http: Request) -> str:
    return str(http.scope["state"]["asker"])

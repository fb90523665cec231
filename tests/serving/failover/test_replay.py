"""Behind the door in Serve's proxy: what dies before its end is asked of the next, and nobody sees it."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from conf.knobs.running import Serve
from serving.door import Door
from serving.failover import replay
from serving.failover.origin import HEADER, Origin
from serving.failover.replay import Replay

TEXT = "text/event-stream; charset=utf-8"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(replay, "_WAITS", (0.0,))
    yield


def event(number: int, text: str, index: int = 0) -> bytes:
    said = {"id": "chatcmpl-1", "choices": [{"index": index, "delta": {"content": text}}]}
    return f"id: {number}\ndata: {json.dumps(said, separators=(',', ':'))}\n\n".encode()


class Replicas:
    """What Serve's proxy sends for each replica in turn: (status, kind, bodies, whether it comes to its end)."""

    def __init__(self, *lives: tuple[int, str, list[bytes], bool]) -> None:
        self.lives = list(lives)
        self.asked: list[tuple[bytes, str]] = []  # (body, origin)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, kind, bodies, ends = self.lives.pop(0)
        [drawn] = [value for name, value in scope["headers"] if name == HEADER.encode()]
        self.asked.append(((await receive())["body"], drawn.decode()))
        if status:
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]})
        for place, body in enumerate(bodies):
            more = not ends or place < len(bodies) - 1
            await send({"type": "http.response.body", "body": body, "more_body": more})


def ask(replicas: Replicas, **cfg: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        knobs = Serve(**cfg)
        transport = httpx.ASGITransport(Door(Replay(replicas, knobs), knobs), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post("/v1/chat/completions", json={"x": 1}, headers={HEADER: "f" * 24 + "-1"})

    return asyncio.run(asyncio.wait_for(run(), 20))


WHOLE = [event(0, "a"), event(1, "b"), event(2, "c"), b"data: [DONE]\n\n", b""]
NOTHING: tuple[int, str, list[bytes], bool] = (0, "", [], False)  # Serve's proxy, where the replica was dead already


def test_a_plain_request_is_asked_again_with_the_same_body_and_origin() -> None:
    replicas = Replicas(NOTHING, (200, "application/json", [], False), (200, "application/json", [b'{"y":2}'], True))
    response = ask(replicas)
    assert (response.status_code, response.json()) == (200, {"y": 2})
    bodies, origins = zip(*replicas.asked, strict=True)
    assert set(bodies) == {b'{"x":1}'} and len(bodies) == 3
    assert len(set(origins)) == 1 and not origins[0].startswith("f" * 24)  # ours, not the client's
    assert Origin.read(origins[0]).written == origins[0]


@pytest.mark.parametrize("cut", range(5))
def test_a_stream_goes_on_where_it_stopped(cut: int) -> None:
    first = [*WHOLE[:cut], WHOLE[cut][:9]]  # and half of the next event
    replicas = Replicas((200, TEXT, first, False), NOTHING, (200, TEXT, WHOLE, True))
    response = ask(replicas)
    assert response.content == b"".join(WHOLE)
    assert replicas.lives == []


def test_answers_in_another_mixture_are_whole_and_numbered_in_the_order_sent() -> None:
    first = [event(0, "a0"), event(1, "b0", 1), event(2, "b1", 1)]
    again = [event(0, "a0"), event(1, "a1"), event(2, "a2"), event(3, "b0", 1), event(4, "b1", 1), event(5, "b2", 1)]
    response = ask(Replicas((200, TEXT, first, False), (200, TEXT, [*again, b"data: [DONE]\n\n", b""], True)))
    *events, done, _ = response.text.split("\n\n")
    lines = [each.split("\ndata: ") for each in events]
    assert [number for number, _ in lines] == [f"id: {number}" for number in range(6)]
    said = [json.loads(data)["choices"][0]["delta"]["content"] for _, data in lines]
    assert said == ["a0", "b0", "b1", "a1", "a2", "b2"] and done == "data: [DONE]"


def test_those_who_are_asked_again_wait_for_room() -> None:
    full = (503, "application/json", [b'{"error":"full"}'], True)
    cut = (200, TEXT, WHOLE[:2], False)
    assert ask(Replicas(cut, full, full, (200, TEXT, WHOLE, True))).content == b"".join(WHOLE)
    assert ask(Replicas(NOTHING, full, (200, "application/json", [b"{}"], True))).json() == {}
    assert ask(Replicas(full)).status_code == 503  # who was not accepted at all is told at once


def test_another_answer_is_no_continuation() -> None:
    other = [event(0, "a"), event(1, "x"), *WHOLE[2:]]
    *events, error, _ = ask(Replicas((200, TEXT, WHOLE[:2], False), (200, TEXT, other, True))).text.split("\n\n")
    assert "\n\n".join([*events, ""]).encode() == b"".join(WHOLE[:2])
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "replica_ended"
    gone = (404, "application/json", [b"{}"], True)
    assert "replica_ended" in ask(Replicas((200, TEXT, WHOLE[:2], False), gone)).text


def test_what_every_replica_dies_of_is_not_asked_for_ever() -> None:
    replicas = Replicas(*[NOTHING] * 9)
    response = ask(replicas)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "replica_ended")
    assert len(replicas.asked) == replay.DEATHS + 1
    replicas = Replicas(*[NOTHING] * 9)
    assert ask(replicas, replay_seconds=0).status_code == 503
    assert len(replicas.asked) == 1


def test_a_plain_body_that_was_begun_is_not_sent_twice() -> None:
    replicas = Replicas((200, "text/css", [b"a{"], False), (200, "text/css", [b"a{}"], True))
    with pytest.raises(AssertionError):  # which httpx says of a response without an end
        ask(replicas)
    assert len(replicas.asked) == 1


def test_who_left_is_asked_for_no_more() -> None:
    asked = 0

    async def dies(_: Scope, receive: Receive, __: Send) -> None:
        nonlocal asked
        asked += 1
        await receive()
        assert (await receive())["type"] == "http.disconnect"

    async def run() -> None:
        messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Message:
            return messages.pop(0) if messages else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            raise AssertionError(message)

        scope = {"type": "http", "headers": [], "state": {"origin": Origin()}}
        await Replay(dies, Serve())(scope, receive, send)

    asyncio.run(asyncio.wait_for(run(), 20))
    assert asked == 1


def test_what_is_cached_may_differ() -> None:
    def usage(cached: int) -> bytes:
        return b'id: 3\ndata: {"choices":[],"usage":{"prompt_tokens_details":{"cached_tokens":%d}}}\n\n' % cached

    first = [*WHOLE[:3], usage(7)]
    again = [*WHOLE[:3], usage(0), *WHOLE[3:]]
    response = ask(Replicas((200, TEXT, first, False), (200, TEXT, again, True)))
    assert response.content == b"".join([*first, *WHOLE[3:]])


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a stream whose replica died goes on where it stopped",
        "serving/failover/replay.py",
        "if self._seen[answer] < self._sent[answer]:",
        "if self._seen[answer] < self._sent[answer] - 1:",
        None,
    ),
    (
        "what another model says is no continuation",
        "serving/failover/replay.py",
        "if self._seen_digests[answer].digest() != self._digests[answer].digest():",
        "if not self._digests[answer].digest():",
        None,
    ),
    (
        "half an event is not sent",
        "serving/failover/replay.py",
        'self._start, self._held, self._replays = None, b"", True',
        "self._start, self._replays = None, True",
        None,
    ),
    (
        "no client draws an answer's origin",
        "serving/door.py",
        '"x-session-id", HEADER)',
        '"x-session-id")',
        None,
    ),
]

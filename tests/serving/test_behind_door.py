"""Behind the door: whatever goes wrong there, a client gets a body of the API's shape."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from conf.knobs.running import Serve
from serving.door import Door
from tests.serving.test_door import refusal


def behind(app: Any, **headers: str) -> httpx.Response:
    """What a client before the door of `app` gets."""

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(Door(app, Serve()), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/v1/models", headers=headers)

    return asyncio.run(run())


def says(status: int, kind: str, *chunks: bytes, ends: bool = True) -> Any:
    """An app, or Serve's proxy, that answers so, and may be cut off before the end."""

    async def app(_: Scope, __: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind.encode())]})
        for chunk in chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        if ends:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return app


@pytest.mark.parametrize(
    ("status", "text", "code", "retry"),
    [
        (503, b"Request dropped due to backpressure", "overloaded", "1"),
        (500, b"Internal Server Error", "internal_error", None),
        (404, b"Path '/x' not found.", "not_found", None),
    ],
)
def test_what_the_proxy_says_in_plain_text_gets_the_apis_shape(
    status: int, text: bytes, code: str, retry: str | None
) -> None:
    response = behind(says(status, "text/plain", text[:5], text[5:]))
    assert refusal(response) == (status, code)
    assert response.json()["error"]["message"] == text.decode()
    assert response.headers.get("retry-after") == retry
    assert response.headers["content-type"] == "application/json"


def test_a_replica_that_dies_before_its_answer_is_told_of_in_words() -> None:
    async def dies(_: Scope, __: Receive, ___: Send) -> None:
        """What Serve's proxy does when the replica has gone."""

    response = behind(dies)
    assert refusal(response) == (503, "replica_ended")
    assert response.headers["retry-after"] == "1"


def test_a_stream_whose_replica_dies_ends_in_an_error_event() -> None:
    response = behind(says(200, "text/event-stream", b'data: {"x":1}\n\n', ends=False))
    events = response.text.split("\n\n")
    assert events[0] == 'data: {"x":1}'
    assert json.loads(events[1].removeprefix("data: "))["error"]["code"] == "replica_ended"
    whole = behind(says(200, "text/event-stream", b"data: [DONE]\n\n"))
    assert whole.text == "data: [DONE]\n\n"


def test_an_app_that_fails_is_told_of_in_the_same_shape() -> None:
    async def fails(_: Scope, __: Receive, ___: Send) -> None:
        raise ArithmeticError("secret")

    response = behind(fails)
    assert refusal(response) == (500, "internal_error")
    assert "secret" not in response.text


def test_serves_own_orders_are_not_the_clients_to_give() -> None:
    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(name for name, _ in scope["headers"])
        await says(200, "text/plain")(scope, receive, send)

    behind(app, **{"x-request-timeout-seconds": "1", "serve_multiplexed_model_id": "m", "x-own": "1"})
    assert b"x-own" in seen
    assert not {b"x-request-timeout-seconds", b"serve_multiplexed_model_id"} & set(seen)


def test_a_client_that_leaves_within_its_body_never_gets_in() -> None:
    entered: list[Scope] = []

    async def app(scope: Scope, _: Receive, __: Send) -> None:
        entered.append(scope)

    messages: list[Message] = [
        {"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"},
    ]  # fmt: skip
    sent: list[Message] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", b"application/json")]}
    asyncio.run(Door(app, Serve())(scope, receive, send))
    assert (entered, sent, messages) == ([], [], [])


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an error in plain text gets the API's shape",
        "serving/door.py",
        'if message["status"] >= 400 and not',
        'if message["status"] >= 600 and not',
        None,
    ),
    (
        "a stream that is cut ends in an error event",
        "serving/door.py",
        "elif self.events:",
        "elif not self.events:",
        None,
    ),
]

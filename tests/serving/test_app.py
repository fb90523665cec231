"""The endpoint without Ray, for what must not be done to a shared server."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable

import httpx

from moe.engine import Engine, Token
from serving.app import endpoint
from serving.decoding import DecodingThread
from serving.replies import Served
from tests.serving.conftest import CONTEXT, Tiny

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "你好"}], "temperature": 0, "max_tokens": 900}


def with_dying_engine(
    tiny: Tiny, scenario: Callable[[httpx.AsyncClient, threading.Event, DecodingThread], Awaitable[None]]
) -> None:
    """Run `scenario` against an endpoint whose engine fails at the next step once the event is set."""
    armed = threading.Event()

    class Fragile(Engine):
        def step(self) -> list[Token]:
            if armed.is_set():
                raise ArithmeticError("the numbers are off")
            return super().step()

    async def run() -> None:
        decoding = DecodingThread(Fragile(tiny.model, 2, (tiny.tokenizer.im_end,)), waiting=2)
        app = endpoint(Served("tiny", tiny.tokenizer, decoding, CONTEXT, 16), max_body_bytes=10_000)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await scenario(client, armed, decoding)
        decoding.close()

    asyncio.run(asyncio.wait_for(run(), 60))


async def kill_when_busy(armed: threading.Event, decoding: DecodingThread) -> None:
    while not decoding.active:
        await asyncio.sleep(0.01)
    armed.set()


def test_a_dead_engine_fails_requests_and_health_with_503(tiny: Tiny) -> None:
    async def scenario(client: httpx.AsyncClient, armed: threading.Event, decoding: DecodingThread) -> None:
        assert (await client.get("/healthz")).status_code == 200
        plain, _ = await asyncio.gather(client.post("/v1/chat/completions", json=ASK), kill_when_busy(armed, decoding))
        later = await client.post("/v1/chat/completions", json=ASK)
        for response in (plain, later, await client.get("/healthz")):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            error = response.json()["error"]
            assert (error["type"], error["code"]) == ("server_error", "decoding_stopped")
            assert "ArithmeticError: the numbers are off" in error["message"]

    with_dying_engine(tiny, scenario)


def test_a_stream_cut_by_a_dead_engine_ends_in_an_error_and_not_in_done(tiny: Tiny) -> None:
    async def scenario(client: httpx.AsyncClient, armed: threading.Event, decoding: DecodingThread) -> None:
        response, _ = await asyncio.gather(
            client.post("/v1/chat/completions", json=ASK | {"stream": True}), kill_when_busy(armed, decoding)
        )
        events = [event for event in response.text.split("\n\n") if event]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "decoding_stopped"
        assert "data: [DONE]" not in events

    with_dying_engine(tiny, scenario)

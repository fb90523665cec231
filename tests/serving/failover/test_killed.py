"""SIGKILL of the replica under streams, through the real Ray Serve: whoever listens hears nothing of it."""

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psutil
import pytest

from tests.serving.conftest import Tiny, data

pytestmark = [pytest.mark.ray, pytest.mark.slow]
QUESTION = [{"role": "user", "content": "举头望明月"}]
LONG = 900  # tokens


def replica() -> int:
    """The process that answers, of the Ray that this one has started."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        found = []
        for each in psutil.Process().children(recursive=True):
            try:
                if "".join(each.cmdline()).startswith("ray::ServeReplica:conclave:"):
                    found.append(each.pid)
            except psutil.Error:
                continue
        if len(found) == 1:
            return found[0]
        time.sleep(0.2)
    raise AssertionError("no replica, or several")


def streamed(address: str, path: str, body: dict[str, Any], begun: threading.Event) -> list[str]:
    """All events; says when the first have come."""
    with httpx.stream("POST", f"{address}/v1/{path}", json=body | {"stream": True}, timeout=600) as response:
        assert response.status_code == 200, response.read()
        text = ""
        for piece in response.iter_text():
            text += piece
            if text.count("\n\n") >= 3:
                begun.set()
    return [each for each in text.split("\n\n") if each]


def test_streams_of_a_killed_replica_go_on_on_the_next(served_address: str, tiny: Tiny) -> None:
    endless = {str(token): -100 for token in tiny.tokenizer.stop}
    chat = {"model": "tiny", "messages": QUESTION, "max_tokens": LONG, "logit_bias": endless}
    asked: list[tuple[str, dict[str, Any]]] = [
        ("chat/completions", chat | {"seed": 11}),
        ("chat/completions", chat),  # whose seed the door has drawn
        ("messages", {"model": "tiny", "messages": QUESTION, "max_tokens": LONG, "temperature": 0}),
        ("responses", {"model": "tiny", "input": QUESTION, "max_output_tokens": LONG, "temperature": 0}),
    ]
    begun, killed = [threading.Event() for _ in asked], replica()
    with ThreadPoolExecutor(len(asked)) as pool:
        streams = [
            pool.submit(streamed, served_address, path, body, event)
            for (path, body), event in zip(asked, begun, strict=True)
        ]
        assert begun[0].wait(300)
        os.kill(killed, signal.SIGSTOP)  # the model is quick: none may come to its end before the kill
        assert not streams[0].done()
        os.kill(killed, signal.SIGKILL)
        plain = httpx.post(f"{served_address}/v1/chat/completions", json=chat | {"max_tokens": 3}, timeout=600)
        broken = [stream.result() for stream in streams]
    assert replica() != killed
    assert plain.status_code == 200 or plain.json()["error"]["code"] == "overloaded"
    for events in broken:
        numbered = [each for each in events if each != "data: [DONE]"]
        assert [each.split("\n")[0] for each in numbered] == [f"id: {number}" for number in range(len(numbered))]
        assert events[-1] == "data: [DONE]" or not data(events[-1]).get("error")
    for (path, body), events in zip(asked, broken, strict=True):
        if body is not chat:
            undisturbed = streamed(served_address, path, body, threading.Event())
            assert [spoken(each) for each in events] == [spoken(each) for each in undisturbed]
    sayings = [data(each) for each in broken[1] if each != "data: [DONE]"]
    assert broken[1][-1] == "data: [DONE]" and len({saying["id"] for saying in sayings}) == 1
    assert sayings[-1]["choices"][0]["finish_reason"] in ("length", "stop")


def spoken(event: str) -> Any:
    """What an event says, but for ids, time and what was cached."""
    if event == "data: [DONE]":
        return event
    text = json.dumps(_plain(data(event)))
    return event.split("\n")[0], text


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in ("id", "item_id", "created", "created_at", "usage")}
    return [_plain(each) for each in value] if isinstance(value, list) else value

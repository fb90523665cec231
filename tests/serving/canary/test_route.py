"""Which model a conversation has: one, from its first turn to its last, and nobody chooses."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from serving.canary import trial as trials
from serving.canary.route import PREFIX, Shared, is_candidates
from serving.canary.trial import Trial
from serving.failover.origin import Origin

TRIAL = Trial("m", "new", "old", share=0.3, votes=80, confidence=0.95, tolerance=0.05, asked=5.0, state="serving")
Ask = Callable[..., tuple[str, Origin]]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """(path, origin) that a request is passed on with; a body arrives as it was sent."""
    now = [0.0]
    seen: list[tuple[str, Origin]] = []
    sent: list[bytes] = []

    async def app(scope: Scope, receive: Receive, _: Send) -> None:
        assert scope["raw_path"] == scope["path"].encode()
        assert (await receive())["body"] == sent[-1]
        seen.append((scope["path"], scope["state"]["origin"]))

    shared = Shared(app, tmp_path, lambda: now[0])

    def asked(path: str, body: Any = None, *, asker: str = "", method: str = "POST") -> tuple[str, Origin]:
        now[0] += 1
        sent.append(json.dumps(body).encode())

        async def receive() -> Message:
            return {"type": "http.request", "body": sent[-1], "more_body": False}

        async def send(_: Message) -> None: ...

        state = {"origin": Origin(), "asker": asker}
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "state": state}
        asyncio.run(shared(scope, receive, send))
        return seen[-1]

    return asked


def chat(number: int, *more: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    turns = [{"role": roles[at % 2], "content": text} for at, text in enumerate([f"question {number}", *more])]
    return {"model": "tiny", "messages": [{"role": "system", "content": "short"}, *turns]}


def test_a_conversation_stays_where_it_began(ask: Ask, tmp_path: Path) -> None:
    trials.write(tmp_path, TRIAL)
    first = [ask("/v1/chat/completions", chat(number))[0] for number in range(200)]
    later = [ask("/v1/chat/completions", chat(number, "a", "b", str(number)))[0] for number in range(200)]
    assert first == later
    assert set(first) == {"/v1/chat/completions", PREFIX + "/v1/chat/completions"}
    assert 0.2 < sum(path.startswith(PREFIX) for path in first) / 200 < 0.4
    other = [ask("/v1/chat/completions", chat(number), asker="bob")[0] for number in range(200)]
    assert other != first  # the same words of another asker are another conversation
    trials.write(tmp_path, replace(TRIAL, asked=6.0))
    assert [ask("/v1/chat/completions", chat(number))[0] for number in range(200)] != first  # and of another trial


def test_each_api_of_chats_is_shared_out_and_nothing_else(ask: Ask, tmp_path: Path) -> None:
    trials.write(tmp_path, replace(TRIAL, state="switching"))  # all conversations
    assert ask("/v1/messages", {"messages": [{"role": "user", "content": "x"}]})[0] == PREFIX + "/v1/messages"
    assert ask("/v1/responses", {"input": "x"})[0] == PREFIX + "/v1/responses"
    for path in ("/v1/completions", "/v1/embeddings", "/v1/models", "/", "/v1/feedback"):
        assert ask(path, {"prompt": "x"})[0] == path
    assert ask(PREFIX + "/v1/chat/completions", chat(1))[0] == "/-"  # nobody chooses
    broken: Any
    for broken in ([], {"messages": 5}, {"messages": []}, 7):
        assert ask("/v1/chat/completions", broken)[0] == PREFIX + "/v1/chat/completions"


@pytest.mark.parametrize("state", ["asked", "promoted", "rolled back"])
def test_a_trial_that_does_not_run_has_no_share(ask: Ask, tmp_path: Path, state: Any) -> None:
    assert ask("/v1/chat/completions", chat(0))[0] == "/v1/chat/completions"  # there is none at all
    trials.write(tmp_path, replace(TRIAL, share=0.999, state=state))
    assert {ask("/v1/chat/completions", chat(number))[0] for number in range(20)} == {"/v1/chat/completions"}
    trials.path(tmp_path).write_text("{")  # half written by somebody else
    assert ask("/v1/chat/completions", chat(0))[0] == "/v1/chat/completions"


def test_a_stream_is_taken_up_where_it_is(ask: Ask, tmp_path: Path) -> None:
    trials.write(tmp_path, TRIAL)
    for number in range(40):
        path, origin = ask("/v1/chat/completions", chat(number))
        name = f"chatcmpl-{origin.token}"
        assert is_candidates(name) == path.startswith(PREFIX)
        assert Origin.read(origin.written) == origin
        again = ask(f"/v1/stream/{name}", method="GET")[0]
        assert again == (PREFIX if is_candidates(name) else "") + f"/v1/stream/{name}"


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a conversation has one model to its end",
        "serving/canary/route.py",
        'if not isinstance(turn, dict) or turn.get("role") == "user":',
        'if not isinstance(turn, dict) or turn.get("role") == "nobody":',
        None,
    ),
    (
        "nobody chooses which model answers",
        "serving/canary/route.py",
        "if chosen or path.startswith(PREFIX):",
        "if chosen:",
        None,
    ),
]

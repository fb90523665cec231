"""The door: who may ask, how slowly, and the shape of whatever goes wrong; on sockets, without Ray."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from conf.knobs.running import Serve
from moe.generation.engine import Engine
from serving.app import endpoint
from serving.decoding import DecodingThread
from serving.door import Door
from serving.proxy import connection
from serving.replies import Served
from tests.serving.conftest import CONTEXT, Tiny, listening, until_closed

CFG = Serve(
    header_timeout=3.0, body_timeout=2.5, max_body_bytes=5000, hosts=["chat.lan"], origins=["https://page.example"]
)
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "你好"}], "temperature": 0}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def port(tiny: Tiny) -> Iterator[int]:
    """As in Serve's proxy: our connections, the door, and behind it the app with its own."""
    decoding = DecodingThread(Engine(tiny.model, 2, (tiny.tokenizer.im_end,)), waiting=6)
    app = Door(endpoint(Served("tiny", tiny.tokenizer, decoding, CONTEXT, 16), CFG), CFG)
    with listening(app, http=connection(CFG)) as found:
        yield found


def asked(port: int, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    body = json.dumps(ASK | {"max_tokens": 3} | fields)
    all_headers = {"Content-Type": "application/json"} | (headers or {})
    return httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", content=body, headers=all_headers, timeout=60)


def refusal(response: httpx.Response) -> tuple[int, str]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["code"]


def test_300_slow_sockets_are_dropped_and_others_unharmed(port: int) -> None:
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    in_headers = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    in_body = [socket.create_connection(("127.0.0.1", port)) for _ in range(100)]
    for each in in_headers:
        each.sendall(HEAD[:40])
    for each in in_body:
        each.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
    assert httpx.get(f"http://127.0.0.1:{port}/healthz").json()["answers"] == 0  # no place is taken
    assert asked(port).json()["usage"]["completion_tokens"] == 3
    for each in silent + in_headers:
        assert until_closed(each) == b""
    for each in in_body:
        head, _, body = until_closed(each).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert json.loads(body)["error"] == {
            "message": "the body did not arrive within 2.5 seconds (serve.body_timeout)",
            "type": "invalid_request_error", "param": None, "code": "body_timeout",
        }  # fmt: skip
    assert asked(port).json()["usage"]["completion_tokens"] == 3


def test_a_body_that_trickles_has_the_same_deadline(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as slow:
        slow.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        began = time.monotonic()
        said = b""
        while not said and time.monotonic() < began + 30:
            slow.sendall(b" ")
            slow.settimeout(0.2)
            try:
                said = slow.recv(4096)
            except TimeoutError:
                continue
        assert said.startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_is_kept_has_the_deadline_again(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as kept:
        kept.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert kept.recv(4096).startswith(b"HTTP/1.1 200 ")
        kept.sendall(HEAD[:30])
        began = time.monotonic()
        assert until_closed(kept).count(b"HTTP/1.1") == 0
        assert time.monotonic() - began < 30  # by the headers' deadline, not never


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Host": "evil.example"}, 403, "host_not_allowed"),
        ({"Host": "evil.example:8000"}, 403, "host_not_allowed"),
        ({"Host": "localhost.evil.example"}, 403, "host_not_allowed"),
        ({"Host": ""}, 403, "host_not_allowed"),
        ({"Host": "127.0.0.1.evil.example"}, 403, "host_not_allowed"),
        ({"Origin": "https://evil.example"}, 403, "origin_not_allowed"),
        ({"Origin": "http://localhost:1"}, 403, "origin_not_allowed"),
        ({"Origin": "null"}, 403, "origin_not_allowed"),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403, "host_not_allowed"),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403, "origin_not_allowed"),
        ({"Content-Type": "text/plain"}, 415, "unsupported_media_type"),
        ({"Content-Type": "text/plain; x=application/json"}, 415, "unsupported_media_type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        ({"Content-Type": ""}, 415, "unsupported_media_type"),
    ],
)
def test_a_page_of_another_origin_gets_nothing(port: int, headers: dict[str, str], status: int, code: str) -> None:
    refused = asked(port, headers)
    assert refusal(refused) == (status, code)
    assert "access-control-allow-origin" not in refused.headers
    if "Content-Type" not in headers:  # and not by reading either
        assert refusal(httpx.get(f"http://127.0.0.1:{port}/v1/models", headers=headers)) == (status, code)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "localhost"},
        {"Host": "LOCALHOST:8000"},
        {"Host": "[::1]:8000"},
        {"Host": "10.0.0.7:8000"},
        {"Host": "chat.lan"},
        {"Host": "localhost:8000", "Origin": "http://localhost:8000"},
        {"Origin": "https://page.example"},
        {"Content-Type": "Application/JSON; charset=utf-8"},
    ],
)
def test_our_own_names_and_pages_may_ask(port: int, headers: dict[str, str]) -> None:
    assert asked(port, headers).json()["usage"]["completion_tokens"] == 3


def test_a_page_that_the_settings_name_may_read_the_answer(port: int) -> None:
    headers = {"Origin": "https://page.example"}
    assert asked(port, headers).headers["access-control-allow-origin"] == "https://page.example"
    first = headers | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    allowed = httpx.options(f"http://127.0.0.1:{port}/v1/chat/completions", headers=first)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "https://page.example")


def test_a_trailing_slash_leads_nowhere_else(port: int) -> None:
    for path in ("/v1/models/", "/v1/chat/completions/", "/healthz/"):
        answer = httpx.get(f"http://127.0.0.1:{port}{path}", headers={"Host": "localhost"})
        assert refusal(answer) == (404, "not_found")
        assert "location" not in answer.headers


def test_what_is_no_http_is_refused_in_the_same_shape(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"hello\r\n\r\n")
        assert json.loads(until_closed(raw).partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"


def test_several_hosts_are_refused(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
        assert json.loads(until_closed(raw).partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_host"


def test_more_answers_than_there_is_room_for_are_refused_for_good(port: int) -> None:
    many = {"model": "tiny", "prompt": ["月"] * 9}
    for fields, status in ((many, 400), (many | {"prompt": ["月"] * 8, "max_tokens": 1}, 200)):
        answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=fields, timeout=60)
        assert answer.status_code == status
        if status == 400:
            assert refusal(answer) == (400, "too_many_answers")
            assert answer.json()["error"]["message"] == (
                "9 answers at once are more than serve.slots=2 and serve.queue=6 hold; ask for 8 at most"
            )
            assert "retry-after" not in answer.headers


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a request gets in only with its whole body",
        "serving/door.py",
        'more = message.get("more_body", False)',
        "more = False",
        None,
    ),
    (
        "a connection whose headers do not come is closed",
        "serving/proxy.py",
        "self.loop.call_later(_LAST_LOOK, self.transport.close)",
        "self.loop.call_later(_LAST_LOOK, int)",
        None,
    ),
    (
        "a page cannot reach the server by a name of its own (DNS rebinding)",
        "serving/door.py",
        "if hosts and not _own(hosts[0], cfg):",
        "if False:",
        None,
    ),
    (
        "a page of another origin may not ask",
        "serving/door.py",
        "if origin is not None and not _may_read(origin, hosts, cfg):",
        'if origin == "null":',
        None,
    ),
    (
        "what a browser sends unasked is refused by its type",
        "serving/door.py",
        'kind.partition(";")[0].strip().lower() != _FORM',
        'kind == "text/html"',
        None,
    ),
    (
        "a trailing slash does not redirect to the host that the client names",
        "serving/app.py",
        "redirect_slashes=False",
        "redirect_slashes=True",
        None,
    ),
    (
        "what can never fit is refused for good",
        "serving/decoding.py",
        "if len(asked) > self._limit:",
        "if len(asked) > 2 * self._limit:",
        None,
    ),
]

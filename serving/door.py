"""Before the endpoint: who may ask, what and how slowly; and whatever goes wrong, a body of the API's shape.

The same door stands in Serve's proxy, so that a request takes no place in the queue before its body is whole and what
the proxy itself says has the API's shape, and before the app, which may stand behind a proxy of somebody else.
"""

import asyncio
import ipaddress
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from conf.knobs.running import Serve
from serving.dialects import shapes
from serving.dialects.strict import RETRY_AFTER, ApiError
from serving.failover.origin import HEADER, Origin
from serving.keys import Key, Limits, holder

# Headers by which a client could steer Ray Serve's proxy: its timeout, whether it hears of a disconnect, its routing.
_NOT_THE_CLIENTS = ("x-request-timeout-seconds", "x-request-disconnect-disabled", "serve-multiplexed-model-id")
_SERVES_OWN = (*_NOT_THE_CLIENTS, "x-session-id", HEADER)
_FORM = "application/json"
_OPEN = ("/health", "/healthz", "/-/healthz")  # what needs no key: ours, and that of Serve's proxy


class Door:
    """ASGI middleware. Lets a request in once it may ask and its body has arrived whole. Whose key it came with is in
    `scope["state"]["asker"]`, "" where none is needed, and its origin in `scope["state"]["origin"]`: a new one, or the
    one that the door before this had drawn, where this is `behind` it and no client can name one.

    Where there are `limits`, what each key may ask for is counted: at one door of the two, or each would count.
    """

    def __init__(
        self,
        app: ASGIApp,
        cfg: Serve,
        keys: Sequence[Key] = (),
        limits: Limits | None = None,
        *,
        behind: bool = False,
    ) -> None:
        self._app = app
        self._cfg = cfg
        self._keys = keys
        self._limits = limits
        self._behind = behind

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        root = scope.get("root_path", "").rstrip("/") if self._behind else ""
        if root:  # where Serve has the app is nobody's business
            path = scope["path"].removeprefix(root)
            scope = dict(scope) | {"path": path, "raw_path": path.encode(), "root_path": ""}
        try:
            check_asker(scope, self._cfg)
            key = self._key(scope)
            body = await self._body(scope, receive)
            if body is not None:
                with self._limits.counted(key) if self._limits and key and _asks(scope) else nullcontext():
                    await self._inside(self._named(scope, key), receive, send, body)
        except ApiError as error:
            error.headers = {**(error.headers or {}), **_readable(scope, self._cfg)}
            await _answer(scope["path"], error, send, close=error.status_code == 408)

    def _key(self, scope: Scope) -> Key | None:
        """Whose key the request came with; None where none is needed. Raises `ApiError` 401."""
        headers = dict(scope["headers"])
        # A browser asks first, and without the key, whether a page may send it; which page is checked by now.
        asks_first = scope["method"] == "OPTIONS" and {b"origin", b"access-control-request-method"} <= headers.keys()
        if not self._keys or scope["path"] in _OPEN or asks_first:
            return None
        return holder(self._keys, headers, page=not scope["path"].startswith("/v1/"))

    def _named(self, scope: Scope, key: Key | None) -> Scope:
        """Without what only we may say, and with what we know."""
        drawn = dict(scope["headers"]).get(HEADER.encode(), b"") if self._behind else b""
        named = {"asker": key.name if key else "", "origin": Origin.read(drawn.decode("latin-1"))}
        return dict(_stripped(scope)) | {"state": dict(scope.get("state", {})) | named}

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the client left before its end."""
        limit, within = self._cfg.max_body_bytes, self._cfg.body_timeout
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            raise _too_long(limit)
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(within):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > limit:
                        raise _too_long(limit)
        except TimeoutError:
            text = f"the body did not arrive within {within:g} seconds (serve.body_timeout)"
            raise ApiError(408, text, code="body_timeout") from None
        return bytes(body)

    async def _inside(self, scope: Scope, receive: Receive, send: Send, body: bytes) -> None:
        state = _Response(scope["path"], send)
        given = False

        async def whole() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            message = await receive()
            state.left |= message["type"] == "http.disconnect"
            return message

        try:
            await self._app(scope, whole, state.send)
        except Exception:
            await state.end(ApiError(500, "the server failed at this request", code="internal_error"))
            raise  # whoever runs us writes it down
        text = "the model's process ended before it had answered; ask again"
        await state.end(ApiError(503, text, code="replica_ended", retry=RETRY_AFTER))


@dataclass
class _Response:
    """Passes a response on, but an error that is no JSON in the API's shape."""

    path: str  # that was asked
    to: Send
    started: bool = False
    events: bool = False  # a server-sent event stream
    ended: bool = False
    left: bool = False  # the client
    held: int = 0  # status of an error whose text is being gathered
    text: bytearray = field(default_factory=bytearray)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = dict(message.get("headers", [])).get(b"content-type", b"").decode("latin-1")
            self.started, self.events = True, kind.startswith("text/event-stream")
            if message["status"] >= 400 and not kind.startswith("application/json"):
                self.held = message["status"]
                return
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if self.held:
            self.text += message.get("body", b"")
            if last:
                await self.fail(_plain(self.held, self.text.decode("utf-8", "replace")))
            return
        self.ended |= last
        await self.to(message)

    async def fail(self, error: ApiError) -> None:
        self.ended = True
        await _answer(self.path, error, self.to)

    async def end(self, error: ApiError) -> None:
        """Say what became of a response that is not at its end, whose sender has gone."""
        if self.ended or self.left:
            return
        if self.held or not self.started:
            await self.fail(error)
        elif self.events:  # the status is long sent, so that the failure becomes an event
            self.ended = True
            event = shapes.event(self.path, error).encode()
            await self.to({"type": "http.response.body", "body": event, "more_body": False})


async def _answer(path: str, error: ApiError, send: Send, *, close: bool = False) -> None:
    headers = dict(error.headers or {}) | ({"Connection": "close"} if close else {})
    response = JSONResponse(shapes.body(path, error), error.status_code, headers=headers)
    await send({"type": "http.response.start", "status": error.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": bytes(response.body), "more_body": False})


def _plain(status: int, text: str) -> ApiError:
    """What Serve's proxy says in words of its own."""
    busy = status in (429, 503)
    code = "overloaded" if busy else "not_found" if status == 404 else "internal_error"
    return ApiError(status, text or f"status {status}", code=code, retry=RETRY_AFTER if busy else 0)


def _asks(scope: Scope) -> bool:
    """Whether a request makes work, which a look at the page and its files does not."""
    return scope["method"] == "POST" or str(scope["path"]).startswith("/v1/stream/")


def _readable(scope: Scope, cfg: Serve) -> dict[str, str]:
    """What lets a page that may ask read a refusal, too."""
    origin = dict(scope["headers"]).get(b"origin", b"").decode("latin-1")
    return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"} if origin and origin in cfg.origins else {}


def _too_long(limit: int) -> ApiError:
    return ApiError(413, f"the body is longer than {limit} bytes (serve.max_body_bytes)", code="body_too_large")


def _stripped(scope: Scope) -> Scope:
    """Without what Serve would take for its own orders."""
    kept = [
        (name, value)
        for name, value in scope["headers"]
        if (plain := name.decode("latin-1").lower().replace("_", "-")) not in _SERVES_OWN
        and not plain.startswith("x-serve-router-")
        and not (plain == "x-request-id" and not value.isascii())
    ]
    return dict(scope) | {"headers": kept}


def check_asker(scope: Scope, cfg: Serve) -> None:
    """Refuse what a web page of another origin could send with a browser's help: raises `ApiError` 400, 403 or 415.

    A page's own host name that is pointed at this machine (DNS rebinding) shows in `Host`, another page's in `Origin`,
    and a POST that a browser sends without asking first in `Content-Type`.
    """
    hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    if len(hosts) > 1:
        raise ApiError(400, f"{len(hosts)} Host headers; send one", code="invalid_host")
    if hosts and not _own(hosts[0], cfg):
        text = f"Host {hosts[0][:100]!r} is not served here; name it in serve.hosts if it is this server's"
        raise ApiError(403, text, code="host_not_allowed")
    origin = headers.get(b"origin")
    if origin is not None and not _may_read(origin, hosts, cfg):
        text = f"a page of {origin[:100]!r} may not ask here; name it in serve.origins if it should"
        raise ApiError(403, text, code="origin_not_allowed")
    if origin is None and _from_elsewhere(headers):
        raise ApiError(403, "a page of another site may not ask here", code="origin_not_allowed")
    if scope["method"] == "POST":
        kind = headers.get(b"content-type", "")
        if kind.partition(";")[0].strip().lower() != _FORM:
            text = f"Content-Type {kind[:100]!r} is not taken; send {_FORM}"
            raise ApiError(415, text, code="unsupported_media_type")


def _own(host: str, cfg: Serve) -> bool:
    """An address cannot be another page's name; of names, ours."""
    if "*" in cfg.hosts:
        return True
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:  # "[::1"
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return name in {"localhost", cfg.host.lower(), *(each.lower() for each in cfg.hosts)}
    return True


def _may_read(origin: str, hosts: list[str], cfg: Serve) -> bool:
    """Our own pages, and those that the settings name; "null" is the origin of any local or sandboxed page."""
    if origin in cfg.origins or "*" in cfg.origins:
        return True
    scheme, _, rest = origin.partition("://")
    return scheme in ("http", "https") and bool(hosts) and rest.lower() == hosts[0].lower()


def _from_elsewhere(headers: Mapping[bytes, str]) -> bool:
    """A browser says so of what it loads for a page (an image, a script), though not of a link that a user follows."""
    site, mode = headers.get(b"sec-fetch-site", ""), headers.get(b"sec-fetch-mode", "")
    return site in ("cross-site", "same-site") and mode != "navigate"

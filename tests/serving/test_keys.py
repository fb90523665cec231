"""Keys: what is refused at the start, who gets in, and how much each may ask for."""

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from conf.errors import InputError
from conf.knobs.running import Auth, Serve
from serving import proxy
from serving.app import endpoint
from serving.dialects.strict import ApiError
from serving.door import Door
from serving.keys import Key, Limits, admitted, holder
from serving.proxy import environment, settings
from tests.serving.test_behind_door import says
from tests.serving.test_door import refusal

SECRET, OTHER = "sk-0123456789abcdef", "sk-fedcba9876543210"
LINES = f"# who  key\nalice {SECRET} in_flight=2\n\nbob {OTHER}  # of the lab\n"


def key(name: str, secret: str, **limits: int) -> Key:
    return Key(name, hashlib.sha256(secret.encode()).hexdigest(), **limits)


ALICE, BOB = key("alice", SECRET, in_flight=2), key("bob", OTHER)


def test_keys_are_read_from_a_file_or_a_variable_and_only_their_digests_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text(LINES)
    assert admitted(Serve(keys=str(file))) == (ALICE, BOB)
    assert admitted(Serve(keys=str(file), key_per_minute=9))[1] == key("bob", OTHER, per_minute=9)
    monkeypatch.setenv("SOME_KEYS", f"alice {SECRET} in_flight=2; bob {OTHER}")
    cfg = Serve(keys_env="SOME_KEYS", auth=Auth.keys)
    assert admitted(cfg) == (ALICE, BOB)
    told = environment(cfg, admitted(cfg), tmp_path)
    assert settings(told) == (cfg, (ALICE, BOB), tmp_path)
    assert SECRET not in json.dumps(told)
    monkeypatch.setattr("serving.proxy.auto.AutoHTTPProtocol", None)  # which the next line sets for this process
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert [each.args for each in proxy.middlewares()] == [(cfg,), (tmp_path,), (cfg, (ALICE, BOB))]
    assert SECRET not in repr(admitted(cfg))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_on_loopback_nobody_needs_a_key_unless_there_are_some(host: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(LINES)
    assert admitted(Serve(host=host)) == ()
    assert admitted(Serve(host=host, auth=Auth.none, keys=str(tmp_path / "keys"))) == ()
    assert len(admitted(Serve(host=host, keys=str(tmp_path / "keys")))) == 2


@pytest.mark.parametrize(
    ("knobs", "text", "says"),
    [
        ({"host": "0.0.0.0"}, "", "serve.host=0.0.0.0 is reached by others and there are no keys; give serve.keys="),
        ({"host": "::"}, "", "serve.host=:: is reached by others and there are no keys"),
        ({"host": "chat.lan"}, "", "serve.host=chat.lan is reached by others and there are no keys"),
        ({"host": "10.0.0.7", "auth": Auth.none}, "", "serve.auth=none lets everybody ask, and serve.host=10.0.0.7 is"),
        ({"host": "10.0.0.7", "auth": Auth.none}, LINES, "serve.auth=none lets everybody ask"),
        ({"auth": Auth.keys}, "", "serve.auth=keys needs keys"),
        ({"keys": "/nowhere/keys"}, "", "serve.keys=/nowhere/keys: No such file or directory"),
        ({"keys_env": "NOT_SET_HERE"}, "", "serve.keys_env=NOT_SET_HERE: that variable is not set"),
        ({"keys_env": SECRET}, "", "serve.keys_env must be the name of an environment variable"),
        ({}, "# nothing\n", "holds no key; a line is a name and a key"),
        ({}, "\nalice\n", ": line 2 must be a name"),
        ({}, f"{SECRET} in_flight=1", ": line 1 must be a name"),
        ({}, "alice short", "line 1: the key of alice has 5 characters; it needs 16 at least"),
        ({}, f"alice {SECRET} per_hour=3", "line 1: what follows the key of alice must be in_flight=<n> or"),
        ({}, f"alice {SECRET} in_flight=-3", "line 1: what follows the key of alice must be in_flight=<n> or"),
        ({}, f"alice {SECRET}\nbob {SECRET}", "alice and bob have the same key; each needs one of its own"),
    ],
)
def test_what_lets_nobody_or_everybody_in_is_refused_at_the_start(
    knobs: dict[str, Any], text: str, says: str, tmp_path: Path
) -> None:
    if text:
        (tmp_path / "keys").write_text(text)
        knobs = knobs | {"keys": str(tmp_path / "keys")}
    with pytest.raises(InputError) as refused:
        admitted(Serve(**knobs))
    assert says in str(refused.value)
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


def basic(secret: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"me:{secret}".encode()).decode()}


def behind(
    app: Any, scenario: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]], limits: Limits | None = None
) -> None:
    """Run `scenario` with a client before the door of `app`."""

    async def run() -> None:
        cfg = Serve(origins=["https://page.example"])
        transport = httpx.ASGITransport(Door(app, cfg, (ALICE, BOB), limits), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await scenario(client)

    asyncio.run(asyncio.wait_for(run(), 60))


async def asker(scope: Scope, _: Receive, send: Send) -> None:
    await says(200, "text/plain", scope["state"]["asker"].encode())(scope, _, send)


PATHS = [
    "/",
    "/metrics",
    "/v1/models",
    "/v1/nothing",
    "/page/chat.js",
    "/health/",
    "//healthz",
    "/HEALTHZ",
    "/-/routes",
]


@pytest.mark.parametrize("path", PATHS)
def test_without_a_key_only_health_answers(path: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        no = [{}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {SECRET[:-1]}"}, {"X-API-Key": ""}]
        no += [{"Authorization": SECRET}, {"Authorization": "Basic !"}, basic(""), basic(SECRET + " ")]
        for headers in no:
            refused = await client.get(path, headers=headers)
            assert refusal(refused) == (401, "invalid_api_key")
            scheme = "Bearer" if path.startswith("/v1/") else "Basic"
            assert refused.headers["www-authenticate"].startswith(scheme)
        for headers in ({"Authorization": f"Bearer {SECRET}"}, {"x-api-key": SECRET}, basic(SECRET)):
            assert (await client.get(path, headers=headers)).text == "alice"
        assert (await client.get(path, headers={"Authorization": f"bearer  {OTHER}"})).text == "bob"
        for health in ("/health", "/healthz"):
            assert (await client.get(health)).status_code == 200

    behind(asker, scenario)


def test_every_digest_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []

    def watched(one: str, other: str) -> bool:
        compared.append(other)
        return one == other

    monkeypatch.setattr("hmac.compare_digest", watched)
    found = holder((ALICE, BOB), {b"x-api-key": SECRET.encode()}, page=False)
    assert found == ALICE
    assert compared == [ALICE.digest, BOB.digest]  # the first fits, and the second is looked at all the same


def test_a_page_that_the_settings_name_may_ask_first_and_read_why_it_was_refused() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        page = {"Origin": "https://page.example"}
        refused = await client.get("/v1/models", headers=page)
        assert refusal(refused) == (401, "invalid_api_key")
        assert refused.headers["access-control-allow-origin"] == "https://page.example"
        asks = page | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        assert (await client.options("/v1/models", headers=asks)).status_code == 200
        evil = {**asks, "Origin": "https://evil.example"}
        assert refusal(await client.options("/v1/models", headers=evil)) == (403, "origin_not_allowed")
        stranger = await client.get("/v1/models", headers={"Origin": "https://evil.example"} | basic(SECRET))
        assert refusal(stranger) == (403, "origin_not_allowed")  # a key that the browser sends by itself is no help
        assert "access-control-allow-origin" not in stranger.headers

    behind(asker, scenario)


def test_the_endpoint_asks_for_the_key_as_well_and_answers_a_page_that_asks_first() -> None:
    class Nobody:
        name, created, decoding, context, version, principles = "tiny", 0, None, 8, None, ()
        feedback = labels = None

    async def run() -> None:
        cfg = Serve(origins=["https://page.example"])
        app = endpoint(Nobody(), cfg, (ALICE,))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            assert refusal(await client.get("/v1/models")) == (401, "invalid_api_key")
            assert (await client.get("/v1/models", headers={"x-api-key": SECRET})).json()["data"][0]["id"] == "tiny"
            asks = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
            allowed = await client.options("/v1/chat/completions", headers=asks)
            assert (allowed.status_code, "POST" in allowed.headers["access-control-allow-methods"]) == (200, True)

    asyncio.run(run())


ASK: dict[str, Any] = {"url": "/v1/chat/completions", "json": {}}


def test_a_key_has_so_many_requests_under_way_and_no_more() -> None:
    gate = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await gate.wait()
        await asker(scope, receive, send)

    async def scenario(client: httpx.AsyncClient) -> None:
        alice, bob = {"x-api-key": SECRET}, {"x-api-key": OTHER}
        two = [asyncio.create_task(client.post(**ASK, headers=alice)) for _ in range(2)]
        await asyncio.sleep(0.05)
        asked = asyncio.create_task(client.post(**ASK, headers=alice))
        assert (await asyncio.wait({asked}, timeout=5))[0], "it was let in, and waits"
        third = asked.result()
        assert refusal(third) == (429, "rate_limit_exceeded")
        assert third.json()["error"]["type"] == "rate_limit_error"
        assert third.json()["error"]["message"] == "2 requests of alice are under way, and no more may be"
        assert third.headers["retry-after"] == "1"
        others = [asyncio.create_task(client.post(**ASK, headers=bob)) for _ in range(3)]
        await asyncio.sleep(0.05)
        gate.set()
        assert [response.text for response in await asyncio.gather(*two, *others)] == ["alice"] * 2 + ["bob"] * 3
        assert (await client.post(**ASK, headers=alice)).text == "alice"  # the places are free again

    behind(slow, scenario, Limits())


def test_a_key_asks_so_often_in_a_minute_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("serving.keys.time.monotonic", lambda: now)
    limits, carol = Limits(), key("carol", SECRET, per_minute=2)

    def asked() -> int:
        """0, or the seconds after which to come back."""
        try:
            with limits.counted(carol):
                return 0
        except ApiError as error:
            assert error.status_code == 429
            return int(dict(error.headers or {})["Retry-After"])

    seen = []
    for now in (100.0, 130.0, 130.5, 159.9, 160.0, 160.1, 190.0):  # noqa: B007
        seen.append(asked())
    assert seen == [0, 0, 30, 1, 0, 30, 0]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "without a key only health answers",
        "serving/door.py",
        'if not self._keys or scope["path"] in _OPEN or asks_first:',
        'if not self._keys or scope["path"].startswith("/") or asks_first:',
        "test_without_a_key_only_health_answers",
    ),
    (
        "every path that is not health needs a key, however it is written",
        "serving/door.py",
        'scope["path"] in _OPEN',
        'scope["path"].strip("/").lower() in ("health", "healthz")',
        "test_without_a_key_only_health_answers",
    ),
    (
        "an address that others reach needs keys",
        "serving/keys.py",
        "if not keys and not is_loopback(cfg.host):",
        'if not keys and cfg.host == "0.0.0.0":',
        None,
    ),
    (
        "serve.auth=none is for loopback alone",
        "serving/keys.py",
        "        if not is_loopback(cfg.host):\n            raise",
        '        if cfg.host == "0.0.0.0":\n            raise',
        None,
    ),
    (
        "how long a wrong key takes says nothing",
        "serving/keys.py",
        "same = [key for key in keys if hmac.compare_digest(digest, key.digest)]",
        "same = [key for key in keys if digest == key.digest]",
        None,
    ),
    (
        "a key has so many requests under way",
        "serving/keys.py",
        "self._going[key.digest] += 1",
        "self._going[key.digest] += 0",
        None,
    ),
    (
        "a key's request that has ended leaves its place",
        "serving/keys.py",
        "self._going[key.digest] -= 1",
        "self._going[key.digest] -= 0",
        None,
    ),
    (
        "a minute has sixty seconds",
        "serving/keys.py",
        "while began and began[0] <= now - _MINUTE:",
        "while began and began[0] <= now - _MINUTE / 2:",
        None,
    ),
]

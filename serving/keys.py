"""Who may ask: API keys, of which the server keeps only digests, and how much each may ask for.

A key is a line of `serve.keys`, or of the variable that `serve.keys_env` names (there `;` ends a line, too):

    alice sk-3f9c0b1d7a5e4c2f in_flight=4 per_minute=60      # who it is, the key, and this key's own limits

The same name on several lines is one asker with several keys, as while a key is replaced by another.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
import re
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from conf.errors import InputError
from conf.knobs.running import Auth, Serve
from serving.dialects.strict import RETRY_AFTER, ApiError

SHORTEST = 16  # characters of a key: one that cannot be guessed needs no slow digest
_NAME = re.compile(r"[\w.-]{1,64}", re.ASCII)
_LIMITS = ("in_flight", "per_minute")
_MINUTE = 60.0  # seconds


@dataclass(frozen=True)
class Key:
    name: str  # of whoever holds it
    digest: str  # sha256 of the key, hexadecimal
    in_flight: int = 0  # requests at a time; 0: any number
    per_minute: int = 0  # requests in 60 seconds; 0: any number


def admitted(cfg: Serve) -> tuple[Key, ...]:
    """The keys of which every request needs one; none where everybody on this machine may ask.

    Raises `InputError` for keys that cannot be read, and for an address that others reach without any.
    """
    keys = _read(cfg)
    if cfg.auth is Auth.none:
        if not is_loopback(cfg.host):
            raise InputError(
                f"serve.auth=none lets everybody ask, and serve.host={cfg.host} is reached by others; "
                "try serve.host=127.0.0.1, or give serve.keys=<file>"
            )
        return ()
    if not keys and cfg.auth is Auth.keys:
        raise InputError("serve.auth=keys needs keys; give serve.keys=<file> or serve.keys_env=<variable>")
    if not keys and not is_loopback(cfg.host):
        raise InputError(
            f"serve.host={cfg.host} is reached by others and there are no keys; give serve.keys=<file> or "
            "serve.keys_env=<variable>, or listen on serve.host=127.0.0.1"
        )
    return keys


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _read(cfg: Serve) -> tuple[Key, ...]:
    if cfg.keys and cfg.keys_env:
        raise InputError("serve.keys and serve.keys_env are both given; give one")
    if cfg.keys_env:
        if not re.fullmatch(r"[A-Za-z_]\w*", cfg.keys_env, re.ASCII):  # not shown: it may be a key
            raise InputError("serve.keys_env must be the name of an environment variable, such as CONCLAVE_KEYS")
        if not (text := os.environ.get(cfg.keys_env, "").replace(";", "\n")).strip():
            raise InputError(f"serve.keys_env={cfg.keys_env}: that variable is not set; export it with the keys")
        where = f"serve.keys_env={cfg.keys_env}"
    elif cfg.keys:
        where = f"serve.keys={cfg.keys}"
        try:
            text = Path(cfg.keys).read_text("utf-8")
        except (OSError, UnicodeError) as error:
            raise InputError(f"{where}: {getattr(error, 'strerror', None) or error}") from None
    else:
        return ()
    lines = [(number, line.partition("#")[0].split()) for number, line in enumerate(text.splitlines(), 1)]
    keys = tuple(_key(words, f"{where}: line {number}", cfg) for number, words in lines if words)
    if not keys:
        raise InputError(f"{where}: holds no key; a line is a name and a key")
    seen: dict[str, str] = {}
    for key in keys:
        if key.digest in seen:
            raise InputError(f"{where}: {seen[key.digest]} and {key.name} have the same key; each needs one of its own")
        seen[key.digest] = key.name
    return keys


def _key(words: Sequence[str], where: str, cfg: Serve) -> Key:
    """No message shows a word that may be the key."""
    if len(words) < 2 or not _NAME.fullmatch(words[0]) or "=" in words[1]:
        raise InputError(f"{where} must be a name (letters, digits, '.', '_', '-') and a key, and limits after them")
    name, secret, *limits = words
    if len(secret) < SHORTEST:
        raise InputError(f"{where}: the key of {name} has {len(secret)} characters; it needs {SHORTEST} at least")
    found = {"in_flight": cfg.key_in_flight, "per_minute": cfg.key_per_minute}
    for word in limits:
        knob, _, number = word.partition("=")
        if knob not in _LIMITS or not number.isdecimal():
            raise InputError(f"{where}: what follows the key of {name} must be in_flight=<n> or per_minute=<n>")
        found[knob] = int(number)
    return Key(name, hashlib.sha256(secret.encode()).hexdigest(), **found)


def holder(keys: Sequence[Key], headers: Mapping[bytes, bytes], *, page: bool) -> Key:
    """Whose key the request has: as a bearer's, in `x-api-key`, or as the password that a browser asks for on a
    `page`. Raises `ApiError` 401."""
    secret = _secret(headers)
    digest = hashlib.sha256(secret).hexdigest()
    # Every digest is compared, each in constant time: how long it takes says nothing.
    same = [key for key in keys if hmac.compare_digest(digest, key.digest)]
    if same:
        return same[0]
    text = "this key is not one of this server's" if secret else "no API key; send Authorization: Bearer <key>"
    error = ApiError(401, text, code="invalid_api_key")
    realm = 'Basic realm="the user name is yours to choose, the password is the API key", charset="UTF-8"'
    error.headers = {"WWW-Authenticate": realm if page else "Bearer"}
    raise error


def _secret(headers: Mapping[bytes, bytes]) -> bytes:
    scheme, _, rest = headers.get(b"authorization", b"").strip().partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except binascii.Error:
            return b""
    return headers.get(b"x-api-key", b"").strip()


class Limits:
    """How much each key has under way, and asked for within the last minute. Used on one event loop."""

    def __init__(self) -> None:
        self._going: Counter[str] = Counter()
        self._began: defaultdict[str, deque[float]] = defaultdict(deque)

    @contextmanager
    def counted(self, key: Key) -> Iterator[None]:
        """While a request with `key` is answered. Raises `ApiError` 429, which counts for nothing."""
        now, began = time.monotonic(), self._began[key.digest]
        while began and began[0] <= now - _MINUTE:
            began.popleft()
        if key.in_flight and self._going[key.digest] >= key.in_flight:
            raise _limited(f"{key.in_flight} requests of {key.name} are under way, and no more may be", RETRY_AFTER)
        if key.per_minute and len(began) >= key.per_minute:
            text = f"{key.name} has asked {len(began)} times within a minute, and no more may be"
            raise _limited(text, ceil(began[0] + _MINUTE - now))
        if key.per_minute:
            began.append(now)
        self._going[key.digest] += 1
        try:
            yield
        finally:
            self._going[key.digest] -= 1


def _limited(text: str, retry: int) -> ApiError:
    return ApiError(429, text, code="rate_limit_exceeded", retry=max(1, retry))

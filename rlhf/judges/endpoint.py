"""Questions to an endpoint with OpenAI's API: several at a time, not too many a minute, and again after a failure.

What passes is tried again: no answer in time, a broken connection, HTTP 408, 425, 429 and 5xx, an answer that is no
chat completion. Between two tries lie what the server asks for (Retry-After), or 1, 2, 4, ... seconds, of which up to
half is left off by chance. A question that is refused (HTTP 400, 413, 422) is lost; any other answer concerns all
questions and ends the job.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from typing import Any
from urllib.parse import urlsplit

import httpx

from conf.errors import InputError
from conf.knobs.alignment import Judge
from moe.tasks.task import hashed
from rlhf.judges.replies import Lost, Question, Reply

PASSING = {408, 425, 429}  # and 5xx
REFUSED = {400, 413, 422}
BACK_OFF, LONGEST = 1.0, 300.0  # seconds: the first wait, and the longest
LARGEST = 2**22  # bytes of an answer
IN_A_ROW = 8  # questions, beside those asked at once, that come to nothing one after the other: nobody is there
_CUT = ("length", "content_filter")


def check(cfg: Judge) -> None:
    """Raise `InputError` for an address that is none or holds a secret, or a key that is not there. Nothing is
    shown that may be a key."""
    if set("@?") & set(cfg.url):
        raise InputError("judge.url has a user, password or query in it; give the key by judge.key_env=<a variable>")
    try:
        url = urlsplit(cfg.url)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise InputError(f"judge.url={cfg.url!r:.80} must be an address such as http://127.0.0.1:8000/v1")
    if not cfg.model:
        raise InputError(f"judge.url={cfg.url} needs judge.model, the name that the model has there")
    if cfg.key_env and not os.environ.get(cfg.key_env):
        raise InputError("judge.key_env names an environment variable that is not set; export it with the key")


def ask(questions: Sequence[Question], cfg: Judge, seed: int) -> Iterator[tuple[Question, Reply | Lost]]:
    """The reply to each question, as they come. Raises `InputError` where the endpoint refuses all, or none answers."""
    key = os.environ[cfg.key_env] if cfg.key_env else ""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=cfg.concurrency)
    pace = Pace(cfg.per_minute)
    with (
        httpx.Client(headers=headers, timeout=cfg.timeout, limits=limits) as client,
        ThreadPoolExecutor(cfg.concurrency) as pool,
    ):
        caller = Caller(client, cfg, key, pace, seed)
        futures = {pool.submit(caller.reply, question): question for question in questions}
        silent = 0
        try:
            for future in as_completed(futures):
                made = future.result()
                why = made.why if isinstance(made, Lost) and made.failures else ""
                silent = silent + 1 if why else 0
                if silent >= cfg.concurrency + IN_A_ROW:
                    raise InputError(
                        f"judge.url={cfg.url}: {silent} questions in a row came to nothing, the last: {why}; "
                        "replies are kept, so the same command asks only for the others"
                    )
                yield futures[future], made
        finally:
            pace.ended.set()
            pool.shutdown(wait=False, cancel_futures=True)


class Pace:
    """Lets requests begin at even distances, and none before the time that a server has asked for."""

    def __init__(self, per_minute: float) -> None:
        self.ended = Event()  # nobody waits any longer
        self._gap = 60 / per_minute if per_minute else 0.0  # seconds
        self._next, self._lock = 0.0, Lock()

    def wait(self) -> None:
        """Return when a request may begin."""
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._next)
            self._next = begin + self._gap
        self.ended.wait(begin - now)

    def hold(self, seconds: float) -> None:
        """Let none begin for so long."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


@dataclass(frozen=True)
class Failure:
    kind: str  # timeout, connection, no_completion or an HTTP status
    told: str
    after: float | None = None  # seconds that the server asks for
    passing: bool = True


@dataclass(frozen=True)
class Caller:
    client: httpx.Client
    cfg: Judge
    key: str
    pace: Pace
    seed: int

    def reply(self, question: Question) -> Reply | Lost:
        """To one question, after as many tries as it takes."""
        failures: Counter[str] = Counter()
        why = ""
        for attempt in range(self.cfg.retries + 1):
            self.pace.wait()
            if self.pace.ended.is_set():
                break
            made = self._try(question)
            if isinstance(made, Reply):
                return replace(made, failures=dict(failures))
            if not made.passing:
                return Lost(made.told)
            failures[made.kind] += 1
            why = made.told
            if made.after is not None:
                self.pace.hold(min(made.after, LONGEST))
            elif attempt < self.cfg.retries:
                chance = hashed(self.seed, "judge.wait", f"{question.prompt}/{question.seed}/{attempt}") / 2**64
                self.pace.ended.wait(min(BACK_OFF * 2**attempt, LONGEST) * (1 - chance / 2))
        return Lost(f"{why}, after {sum(failures.values())} tries", dict(failures))

    def _try(self, question: Question) -> Reply | Failure:
        body = {
            "model": self.cfg.model,
            "messages": question.messages,
            "temperature": question.temperature,
            "seed": question.seed,
            "max_completion_tokens": question.max_new_tokens,
        }
        try:
            status, headers, content = self._post(body)
        except httpx.TimeoutException:
            return Failure("timeout", f"no answer within judge.timeout={self.cfg.timeout:g} seconds")
        except httpx.RequestError as error:
            return Failure("connection", f"no connection ({type(error).__name__})")
        if status == 200:
            return _completion(content)
        told = f"HTTP {status}: {self._quoted(content)}"
        if status in PASSING or status >= 500:
            return Failure(str(status), told, after=_seconds(headers.get("Retry-After")))
        if status in REFUSED:
            return Failure(str(status), told, passing=False)
        raise InputError(f"judge.url={self.cfg.url} judge.model={self.cfg.model}: {told}")

    def _post(self, body: dict[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        """(status, headers, content), all of it within `judge.timeout`: httpx's own is for each part that comes."""
        until, content = time.monotonic() + self.cfg.timeout, b""
        with self.client.stream("POST", f"{self.cfg.url.rstrip('/')}/chat/completions", json=body) as response:
            for part in response.iter_bytes():
                content += part
                if time.monotonic() > until:
                    raise httpx.ReadTimeout("the answer goes on and on")
                if len(content) > LARGEST:
                    raise httpx.ReadError("the answer is too large")
            return response.status_code, response.headers, content

    def _quoted(self, content: bytes) -> str:
        """The beginning of an answer, in a line. Some repeat the key that they refuse."""
        text = " ".join(content.decode(errors="replace").split())
        return (text.replace(self.key, "***") if self.key else text)[:200]


def _completion(content: bytes) -> Reply | Failure:
    try:
        choice = httpx.Response(200, content=content).json()["choices"][0]
        text = choice["message"]["content"]
        return Reply(text if isinstance(text, str) else "", choice.get("finish_reason") not in _CUT)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Failure("no_completion", "the answer was no chat completion")


def _seconds(after: str | None) -> float | None:
    """What a Retry-After says: seconds, or a date."""
    if after is None:
        return None
    try:
        return max(0.0, float(after))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None

"""Questions to an endpoint that times out, errs and sets limits."""

import json
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from conf.errors import InputError
from conf.knobs.alignment import Judge
from rlhf.judges import endpoint
from rlhf.judges.endpoint import Pace, ask, check
from rlhf.judges.replies import Lost, Question, Reply
from tests.rlhf.judges.scripted import Said, Script, Server, serving


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "BACK_OFF", 0.02)


def questions(count: int) -> list[Question]:
    return [Question(f"number {number}", 0.0, 7, 32) for number in range(count)]


def asked(script: Script, count: int = 1, **knobs: Any) -> tuple[dict[str, Reply | Lost], Server]:
    with serving(script) as server:
        cfg = Judge(url=server.url, model="m", **{"retries": 2, "concurrency": 1, "timeout": 20.0} | knobs)
        return {question.prompt: made for question, made in ask(questions(count), cfg, seed=1)}, server


def first(*said: Said) -> Script:
    """What is said to a prompt that comes for the first time, the second, ...; then "A"."""
    return lambda prompt, times: said[times - 1] if times <= len(said) else Said("A")


@pytest.mark.parametrize(
    ("said", "kind", "knobs"),
    [
        (Said(status=429, headers={"Retry-After": "0"}), "429", {}),
        (Said(status=500, body="<html>"), "500", {}),
        (Said(status=503), "503", {}),
        (Said(status=408), "408", {}),
        (Said("B", after=3.0), "timeout", {"timeout": 0.5}),
        (Said("B", drips=0.05), "timeout", {"timeout": 0.5}),  # each byte comes in time, the whole does not
        (Said(body="<html>B</html>"), "no_completion", {}),
        (Said(body='{"choices": []}'), "no_completion", {}),
        (Said(body='{"choices": [[]]}'), "no_completion", {}),
        (Said(body="[1]"), "no_completion", {}),
        (Said(body="[" * 100_000), "no_completion", {}),
        (Said(body="B", headers={"Content-Length": "9"}), "connection", {}),  # breaks off
        (Said(body="B" * 99, headers={"Content-Encoding": "gzip"}), "connection", {}),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_what_passes_is_asked_again_and_counted(said: Said, kind: str, knobs: dict[str, Any]) -> None:
    made, server = asked(first(said, said), **knobs)
    assert made == {"number 0": Reply("A", True, {kind: 2})}
    assert len(server.prompts) == 3
    lost, server = asked(lambda *_: said, **knobs)
    assert isinstance(gone := lost["number 0"], Lost) and gone.failures == {kind: 3} and "after 3 tries" in gone.why
    assert len(server.prompts) == 3


def test_a_request_has_what_the_api_asks_for_and_the_key() -> None:
    made, server = asked(first(), 1)
    assert made["number 0"] == Reply("A", True)
    assert server.bodies == [
        {
            "model": "m",
            "messages": [{"role": "user", "content": "number 0"}],
            "temperature": 0.0,
            "seed": 7,
            "max_completion_tokens": 32,
        }
    ]
    assert server.keys == [None]


@pytest.mark.parametrize("finish", ["length", "content_filter"])
def test_a_reply_that_was_cut_off_is_not_whole(finish: str) -> None:
    assert asked(first(Said("A", finish=finish)))[0]["number 0"] == Reply("A", False)
    body = json.dumps({"choices": [{"message": {"content": None}, "finish_reason": "tool_calls"}]})
    assert asked(first(Said(body=body)))[0]["number 0"] == Reply("", True)


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_question_that_is_refused_is_lost_and_the_others_go_on(status: int) -> None:
    def script(prompt: str, times: int) -> Said:
        return Said(status=status, body="too\nlong") if prompt == "number 1" else Said("A")

    made, server = asked(script, 3)
    assert made["number 1"] == Lost(f"HTTP {status}: too long") and len(server.prompts) == 3
    assert made["number 0"] == made["number 2"] == Reply("A", True)


@pytest.mark.parametrize("status", [401, 403, 404, 302, 204])
def test_what_concerns_all_questions_ends_the_job_and_shows_no_key(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    body = "" if status == 204 else '{"error": "Incorrect API key provided: sk-very-secret."}'
    with pytest.raises(InputError) as refused:
        asked(lambda *_: Said(status=status, body=body), 5, key_env="MY_KEY")
    assert f"judge.model=m: HTTP {status}: " in str(refused.value) and "secret" not in str(refused.value)
    assert status == 204 or "Incorrect API key provided: ***." in str(refused.value)


def test_the_key_is_sent_and_never_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    made, server = asked(first(), key_env="MY_KEY")
    assert server.keys == ["Bearer sk-very-secret"] and "secret" not in repr(made)


def test_an_endpoint_that_answers_nothing_ends_the_job_soon() -> None:
    def script(prompt: str, times: int) -> Said:
        return Said("A") if prompt in ("number 0", "number 1") else Said(status=500)

    began = time.monotonic()
    with pytest.raises(
        InputError, match=r"9 questions in a row came to nothing, the last: HTTP 500: .*, after 3 tries"
    ):
        asked(script, 500)
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("date", [False, True])
def test_nobody_asks_before_the_server_wants_to_be_asked(date: bool) -> None:
    after = formatdate(time.time() + 3, usegmt=True) if date else "1"
    made, server = asked(first(Said(status=429, headers={"Retry-After": after})))
    assert made["number 0"] == Reply("A", True, {"429": 1})
    assert 0.95 < server.began[1] - server.began[0] < 10


def test_waits_grow_and_differ_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    def waits(seed: int) -> list[float]:
        found: list[float] = []
        with serving(lambda *_: Said(status=500)) as server:
            cfg = Judge(url=server.url, model="m", retries=3, concurrency=1)
            monkeypatch.setattr(endpoint, "Event", lambda: _Waits(found))
            list(ask(questions(1), cfg, seed))
        return [wait for wait in found if wait > 1e-3]

    monkeypatch.setattr(endpoint, "BACK_OFF", 100.0)
    ours, again, other = waits(1), waits(1), waits(2)
    assert ours == again and len(ours) == 3 and all(a != b for a, b in zip(ours, other, strict=True))
    assert all(least / 2 <= wait <= least for wait, least in zip(ours, (100.0, 200.0, 300.0), strict=True))


class _Waits:
    """An event that notes how long it was waited for, and waits for nothing."""

    def __init__(self, found: list[float]) -> None:
        self._found = found

    def wait(self, seconds: float) -> bool:
        self._found.append(seconds)
        return False

    def is_set(self) -> bool:
        return False

    def set(self) -> None:
        pass


def test_no_more_are_asked_at_once_than_allowed() -> None:
    made, server = asked(lambda *_: Said("A", after=0.05), 12, concurrency=3)
    assert len(made) == 12 and server.most == 3


def test_requests_begin_at_even_distances() -> None:
    _, server = asked(first(), 5, per_minute=300.0, concurrency=5)
    assert min(b - a for a, b in zip(server.began, server.began[1:], strict=False)) > 0.1
    assert server.began[-1] - server.began[0] > 0.7
    pace = Pace(0.0)
    began = time.monotonic()
    for _ in range(1000):
        pace.wait()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"url": "localhost:8000"}, "judge.url='localhost:8000' must be an address such as http://127.0.0.1:8000/v1"),
        ({"url": "http://h:99999/v1"}, "judge.url='http://h:99999/v1' must be an address"),
        ({"url": "http://[1"}, "judge.url='http://[1' must be an address"),
        ({"url": "http://me:secret@host/v1"}, "judge.url has a user, password or query in it"),
        ({"url": "me:secret@host/v1"}, "judge.url has a user, password or query in it"),
        ({"url": "http://host/v1?key=secret"}, "judge.url has a user, password or query in it"),
        ({"model": ""}, "judge.url=http://h/v1 needs judge.model"),
        ({"key_env": "NOT_SET_ANYWHERE"}, "judge.key_env names an environment variable that is not set"),
    ],
)
def test_an_address_that_is_none_is_refused_without_showing_a_secret(knobs: dict[str, str], told: str) -> None:
    with pytest.raises(InputError) as refused:
        check(Judge(**{"url": "http://h/v1", "model": "m"} | knobs))  # type: ignore[arg-type]  # texts only
    assert str(refused.value).startswith(told) and "secret" not in str(refused.value)
    assert "NOT_SET" not in str(refused.value)


def test_a_key_in_the_place_of_its_variables_name_is_not_shown() -> None:
    with pytest.raises(InputError, match=r"^judge.key_env must be the name of an environment variable, such as OPEN"):
        Judge(key_env="sk-very-secret")


def test_a_good_address_needs_nothing_more(tmp_path: Path) -> None:
    check(Judge(url="https://api.example.org:8443/v1/", model="m"))
    with serving(first()) as server:
        cfg = Judge(url=f"{server.url}/", model="m")
        assert [made for _, made in ask(questions(1), cfg, seed=1)] == [Reply("A", True)]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "the time limit of a judge's reply is for all of it",
        "rlhf/judges/endpoint.py",
        "if time.monotonic() > until:",
        "if False:",
        "test_what_passes_is_asked_again_and_counted",
    ),
    (
        "a judge's answer that shows the key is told without it",
        "rlhf/judges/endpoint.py",
        'text.replace(self.key, "***") if self.key else text',
        "text",
        "test_what_concerns_all_questions_ends_the_job_and_shows_no_key",
    ),
    (
        "what a judge's server asks for in Retry-After is kept to",
        "rlhf/judges/endpoint.py",
        "self.pace.hold(min(made.after, LONGEST))",
        "self.pace.hold(0.0)",
        "test_nobody_asks_before_the_server_wants_to_be_asked",
    ),
    (
        "a judge's reply that was cut off is known as such",
        "rlhf/judges/endpoint.py",
        'choice.get("finish_reason") not in _CUT',
        "True",
        "test_a_reply_that_was_cut_off_is_not_whole",
    ),
    (
        "waits between requests to a judge differ by seed",
        "rlhf/judges/endpoint.py",
        "hashed(self.seed, ",
        "hashed(0, ",
        "test_waits_grow_and_differ_by_seed",
    ),
    (
        "no more requests a minute than judge.per_minute",
        "rlhf/judges/endpoint.py",
        "self._next = begin + self._gap",
        "self._next = begin",
        "test_requests_begin_at_even_distances",
    ),
    (
        "an endpoint that answers nothing ends the job before everything was tried",
        "rlhf/judges/endpoint.py",
        "if silent >= cfg.concurrency + IN_A_ROW:",
        "if silent >= len(questions):",
        None,
    ),
]

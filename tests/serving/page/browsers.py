"""A real browser before the real endpoint; skipped with the reason where there is none."""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.feedback import Store
from cluster.people import labels
from conf.knobs.running import Serve
from moe.generation.engine import Engine, Token
from serving.app import endpoint
from serving.decoding import DecodingThread
from serving.keys import Key
from serving.replies import Served
from tests.serving.conftest import CONTEXT, Tiny, listening

DRIVER = Path(sys.prefix) / "browser"  # `make browser`
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def opened() -> Iterator[Any]:
    """Chromium without a window."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no chromium here: apt-get install chromium fonts-noto-cjk")
    if not (DRIVER / "playwright").is_dir():
        pytest.skip("no Playwright here: make browser")
    sys.path.append(str(DRIVER))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        # Chromium's sandbox does not start for root, as whom containers often run.
        browser = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox"] if os.geteuid() == 0 else [], chromium_sandbox=False
        )
        try:
            yield browser
        finally:
            browser.close()
            sys.path.remove(str(DRIVER))


class Slow(Engine):
    """So slow that one can see an answer come."""

    pause = 0.01  # seconds a step

    def step(self) -> list[Token]:
        time.sleep(self.pause)
        return super().step()


@contextmanager
def served(tiny: Tiny, store: Path, keys: Sequence[Key] = ()) -> Iterator[str]:
    """The address of an endpoint over `tiny`, whose answers have 200 tokens where nobody says more."""
    decoding = DecodingThread(Slow(tiny.model, 4, (tiny.tokenizer.im_end,)), waiting=8, name="tiny")
    asked = labels.Labels(store.parent / labels.FILE)
    shown = Served(
        "tiny", tiny.tokenizer, decoding, CONTEXT, 200, version="fp_tiny", feedback=Store(store), labels=asked
    )
    with listening(endpoint(shown, Serve(), keys)) as port:
        yield f"http://127.0.0.1:{port}/"


def until(page: Any, what: str) -> None:
    """Wait for a value that is true. The page's policy lets nothing on it be evaluated: it is asked for each time."""
    ends = time.monotonic() + 60
    while not page.evaluate(what):
        assert time.monotonic() < ends, what
        page.wait_for_timeout(20)


def say(page: Any, words: str, *, whole: bool = True) -> None:
    page.fill("#ask", words)
    page.press("#ask", "Enter")
    if whole:
        page.wait_for_selector("#send:visible")


def short(page: Any, tokens: int) -> None:
    """Answers of so many tokens."""
    page.click("#settings")
    page.fill("#max_tokens", str(tokens))
    page.click("#dialog button.strong")


def last(page: Any) -> str:
    return str(page.locator(".assistant .text").last.inner_text())


def kept(page: Any) -> dict[str, Any]:
    """The newest conversation in the browser's storage."""
    found = page.evaluate(
        "Object.keys(localStorage).filter(k => k.startsWith('conclave.talk.')).map(k => JSON.parse(localStorage[k]))"
    )
    return dict(max(found, key=lambda talk: talk["changed"]))


def imports(page: Any, *answers: str) -> None:
    turns: dict[str, Any] = {}
    for place, answer in enumerate(answers):
        before = f"a{place - 1}" if place else None
        turns[f"u{place}"] = {"id": f"u{place}", "parent": before, "role": "user", "content": "<b>怎样</b>"}
        turns[f"a{place}"] = {
            "id": f"a{place}",
            "parent": f"u{place}",
            "role": "assistant",
            "content": answer,
            "state": "done",
        }
    talk = {"id": "mine", "title": "Harvest <i>moon</i>", "changed": 5, "turns": turns}
    file = {"name": "t.json", "mimeType": "application/json", "buffer": json.dumps({"talks": [talk]}).encode()}
    page.set_input_files("#file", file)
    page.wait_for_selector(".assistant")

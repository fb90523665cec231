"""What the chat page shows: answers safely, two languages, a phone, a keyboard, and nothing without a key."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cluster.feedback import for_training
from serving.web import PAGE
from tests.serving.conftest import Tiny
from tests.serving.page.browsers import imports, say, served, short, until
from tests.serving.test_keys import ALICE, SECRET

pytestmark = pytest.mark.slow


EVIL = """<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>

[click](javascript:window.hacked=1) [data](data:text/html,x) ![pixel](https://evil.example/p.png) <b>bold</b>

**strong** *em* `a<b` ~~gone~~ [ok](https://good.example/a_(b)) https://bare.example/x。

# Title

- one
- two
  1. deep

> said

| a | b |
|---|---|
| <i>1</i> | 2 |

```py"><script>
print("<script>")
```
<iframe src=//evil.example></iframe>
"""


def test_what_an_answer_says_is_shown_and_never_run(page: Any) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    imports(page, EVIL)
    answer = page.locator(".assistant .text")
    tags = set(answer.evaluate("n => [...n.querySelectorAll('*')].map(e => e.tagName.toLowerCase())"))
    assert not tags & {"img", "script", "iframe", "b", "i"}
    assert {"strong", "em", "code", "del", "h3", "ul", "ol", "blockquote", "table", "pre", "a"} <= tags
    links = answer.evaluate("n => [...n.querySelectorAll('a')].map(e => [e.href, e.rel])")
    safe = "noopener noreferrer nofollow"
    assert links == [
        ["https://evil.example/p.png", safe], ["https://good.example/a_(b)", safe], ["https://bare.example/x", safe],
    ]  # fmt: skip
    text = answer.inner_text()
    for part in (
        "<script>window.hacked=1</script>",
        "[click](javascript:window.hacked=1)",
        "<i>1</i>",
        'print("<script>")',
    ):
        assert part in text
    assert page.inner_text("#title") == "Harvest <i>moon</i>"
    assert page.evaluate("window.hacked") is None
    assert [url for url in asked if "evil" in url] == []


def test_conversations_are_found_exported_and_imported(page: Any, browser: Any, address: str) -> None:
    short(page, 3)
    say(page, "alpha question")
    page.click("#new")
    say(page, "beta question")
    titles = page.locator("nav .open")
    assert titles.all_inner_texts() == ["beta question", "alpha question"]
    page.fill("#search", "ALPHA")
    assert titles.all_inner_texts() == ["alpha question"]
    page.fill("#search", "nothing like it")
    assert page.inner_text("#talks") == "Nothing found."
    page.fill("#search", "")
    with page.expect_download() as download:
        page.click("#export")
    file = download.value.path()
    other = browser.new_page(locale="en-GB")
    other.goto(address)
    other.set_input_files("#file", file)
    other.wait_for_selector("nav .open")
    assert sorted(other.locator("nav .open").all_inner_texts()) == ["alpha question", "beta question"]
    other.set_input_files(
        "#file", {"name": "x.json", "mimeType": "application/json", "buffer": b'{"talks": [{"id": 1}]}'}
    )
    until(other, "document.querySelector('#trouble').textContent.startsWith('This file has no conversations')")
    other.close()


def test_a_file_that_somebody_made_up_breaks_nothing(page: Any) -> None:
    odd = {"id": "a", "parent": "u", "role": "assistant", "content": "好", "state": {}, "tokens": "many", "first": "x",
           "votes": {"up": 1, "down": {"id": []}}, "rival": "b", "pair": ["a", "z"], "model": {"x": 1}}  # fmt: skip
    turns = {"u": {"id": "u", "parent": None, "role": "user", "content": "怎样"}, "a": odd}
    talk = {"id": "odd", "title": ["t"], "turns": turns, "chosen": 5, "sampling": "hot"}
    file = {"name": "t.json", "mimeType": "application/json", "buffer": json.dumps({"talks": [talk]}).encode()}
    page.set_input_files("#file", file)
    page.wait_for_selector(".assistant")
    assert page.locator(".assistant .text").all_inner_texts() == ["好"]
    page.reload()
    assert page.locator(".assistant .text").all_inner_texts() == ["好"]


def test_it_speaks_chinese_in_the_dark_on_a_phone(browser: Any, address: str) -> None:
    context = browser.new_context(
        locale="zh-CN", color_scheme="dark", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    page.goto(address)
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert page.inner_text("#send") == "发送"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    imports(
        page, "字" * 400 + " " + "long" * 200 + "\n\n```\n" + "x" * 300 + "\n```\n\n|a|b|\n|-|-|\n|" + "y" * 90 + "|2|"
    )
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert not page.is_visible("nav")
    page.tap("#menu")
    assert page.is_visible("nav") and page.get_attribute("#menu", "aria-expanded") == "true"
    page.tap("nav .open")
    assert not page.is_visible("nav")
    context.close()


def test_everything_has_a_name_and_the_keyboard_is_enough(page: Any) -> None:
    short(page, 200)
    imports(page, "好", "是")
    nameless = page.evaluate("""[...document.querySelectorAll('button, input:not([hidden]), textarea, select')].filter(
        n => !(n.getAttribute('aria-label') || n.textContent.trim() || n.labels?.length)).map(n => n.outerHTML)""")
    assert nameless == []
    page.focus("#ask")
    page.keyboard.press("Shift+Enter")
    assert page.input_value("#ask") == "\n"
    page.fill("#ask", "")
    page.keyboard.press("ArrowUp")  # the last question, to be written again
    assert page.evaluate("document.activeElement.value") == "<b>怎样</b>"
    page.keyboard.press("Escape")
    assert page.locator(".inner").count() == 0
    page.focus("#ask")
    page.keyboard.type("hi")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop:visible")
    page.keyboard.press("Escape")
    page.wait_for_selector("#send:visible")
    assert page.inner_text("#status") == "Stopped."
    page.keyboard.press("Control+k")
    assert page.evaluate("document.activeElement.id") == "search"


def test_where_keys_are_needed_the_browser_asks_for_one(browser: Any, tiny: Tiny, tmp_path: Path) -> None:
    with served(tiny, tmp_path / "f.sqlite3", (ALICE,)) as address:
        stranger = browser.new_context()
        assert stranger.request.get(address).status == 401
        stranger.close()
        context = browser.new_context(http_credentials={"username": "any", "password": SECRET}, locale="en-GB")
        page = context.new_page()
        page.goto(address)
        until(page, "document.querySelector('#model').textContent === 'tiny'")
        short(page, 3)
        say(page, "春")
        page.get_by_label("Good answer").click()
        until(page, "document.querySelector('#status').textContent === 'Your vote is stored.'")
        context.close()
    assert [vote.owner for vote in for_training(tmp_path / "f.sqlite3")] == ["alice"]


def test_a_page_of_another_origin_gets_nothing(browser: Any, address: str) -> None:
    page = browser.new_page()
    page.goto("about:blank")
    asks = """([address, mode]) => fetch(address + 'v1/models', {mode}).then(r => r.text()).catch(e => e.name)"""
    assert page.evaluate(asks, [address, "cors"]) == "TypeError"
    assert page.evaluate(asks, [address, "no-cors"]) in ("", "TypeError")  # as the browser is stricter itself
    page.close()


def test_the_page_asks_for_nothing_from_elsewhere() -> None:
    for path in PAGE.iterdir():
        text = path.read_text("utf-8")
        assert not re.findall(r"""(?:src|href|from|url\(|import\()\s*[=(]?\s*["']?(?:https?:)?//[\w]""", text), (
            path.name
        )
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path.name
        )


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a link of an answer leads only where links may",
        "serving/page/markdown.js",
        '["http:", "https:", "mailto:"].includes(url.protocol)',
        "url.protocol",
        "test_what_an_answer_says_is_shown_and_never_run",
    ),
]

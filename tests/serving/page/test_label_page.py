"""The labelling page in a browser: what is ranked there, by keys, by dragging and by taps, is the ranking set."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cluster.people.labels import FILE, Labels
from conf.errors import InputError
from conf.knobs.alignment import Judges
from conf.schema import Config
from rlhf import rank
from tests.rlhf.test_rank import begun
from tests.serving.conftest import Tiny
from tests.serving.page.browsers import served, until

pytestmark = pytest.mark.slow
ANSWERS = {
    "春": ["甲<b>x</b>", "乙", "丙"],
    "春春": ["a", "b", "c"],
    "春春春": ["x", "y", "z"],
    "春春春春": ["1", "2", "3"],
}


@dataclass(frozen=True)
class Asked:
    """A run of which people are asked, and the page where they say it."""

    cfg: Config
    page: Any

    def ranked(self) -> dict[str, dict[str, Any]]:
        """{query: {answer: its ranks}} of the ranking set, after the stage has read what was said."""
        rank.main(self.cfg)
        path = self.cfg.run.folder / "ranked" / "rankings.jsonl"
        lines = map(json.loads, path.read_text("utf-8").splitlines())
        return {line["messages"][-1]["content"]: {a["text"]: a["ranks"] for a in line["answers"]} for line in lines}

    def query(self) -> str:
        return str(self.page.inner_text("#query .text"))

    def letter(self, text: str) -> str:
        """Under which the answer is shown."""
        shown = self.page.locator("#answers .answer").filter(has=self.page.get_by_text(text, exact=True))
        return str(shown.get_attribute("aria-label"))

    def chip(self, principle: str, text: str) -> Any:
        return self.page.locator(f"[data-principle={principle}] .chip", has_text=self.letter(text))

    def tiers(self, principle: str) -> list[str]:
        """The letters in each tier, the best first."""
        found = self.page.locator(f"[data-principle={principle}] .tier").all()
        return ["".join(sorted(tier.locator(".chip").all_inner_texts())) for tier in found]

    def says(self, status: str) -> None:
        until(self.page, f"document.querySelector('#status').textContent === {json.dumps(status)}")
        self.page.evaluate("document.querySelector('#status').textContent = ''")

    def moves_on(self, before: str) -> None:
        until(self.page, f"document.querySelector('#query .text').textContent !== {json.dumps(before)}")


@pytest.fixture
def asked(browser: Any, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asked]:
    cfg = begun(tmp_path, "", [Judges.people])
    cfg.rank = replace(cfg.rank, prompts=4)

    def answered(queries: Any, *_: Any) -> dict[str, list[dict[str, Any]]]:
        return {
            query.sample.id: [{"text": text, "finished": True} for text in ANSWERS[query.sample.prompt]]
            for query in queries
        }

    monkeypatch.setattr(rank, "answered", answered)
    monkeypatch.setattr(rank, "connect", lambda cluster: None)
    with pytest.raises(InputError, match="who have seen 0 of 4 queries"):
        rank.main(cfg)
    with served(tiny, cfg.run.folder / "feedback.sqlite3") as address:
        context = browser.new_context(locale="en-GB")
        context.set_default_timeout(60_000)
        tab = context.new_page()
        failures: list[str] = []
        tab.on("pageerror", lambda error: failures.append(str(error)))
        tab.goto(address + "label")
        tab.wait_for_selector("#answers .answer")
        yield Asked(cfg, tab)
        context.close()
        assert failures == []


def test_what_is_ranked_tied_skipped_and_reloaded_is_the_ranking_set(asked: Asked) -> None:
    page = asked.page
    assert page.inner_text("#done") == "0 of 4 done"
    # by keys: 乙 first, then the others as a tie; the second principle as the first
    first = asked.query()
    assert first == "春" and page.locator("#answers b").count() == 0  # what an answer says is no HTML
    order = [asked.letter(text) for text in ("乙", "甲<b>x</b>", "丙")]
    page.keyboard.press(order[0].lower())
    page.keyboard.press(order[1].lower())
    page.keyboard.press(f"Shift+{order[2]}")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("=")
    page.keyboard.press("/")
    page.keyboard.type("well")
    shown = [order[0], "".join(sorted(order[1:]))]
    assert asked.tiers("letters") == asked.tiers("ended") == shown
    page.reload()
    page.wait_for_selector("#answers .answer")
    assert (asked.query(), page.input_value("#comment")) == ("春", "well")
    assert asked.tiers("letters") == asked.tiers("ended") == shown  # nothing was stored, and nothing is lost
    assert Labels(asked.cfg.run.folder / FILE).given() == {}
    page.keyboard.press("Enter")
    asked.says("The ranks are stored.")
    asked.moves_on(first)
    # by dragging: c before a, and b on c's place; the second principle is left out
    assert asked.query() == "春春"
    lane = page.locator("[data-principle=letters]")
    asked.chip("letters", "a").drag_to(lane.locator(".gap").first)
    asked.chip("letters", "c").drag_to(lane.locator(".gap").first)
    page.click("#save")
    until(page, "!document.querySelector('#trouble').hidden")
    assert page.inner_text("#trouble").startswith(f"letters: {asked.letter('b')} has no place yet")
    asked.chip("letters", "b").drag_to(lane.locator(".tier").first)
    assert asked.tiers("letters") == ["".join(sorted(asked.letter(text) for text in "bc")), asked.letter("a")]
    page.click("#save")
    asked.moves_on("春春")
    # skipped
    assert asked.query() == "春春春"
    page.locator("#work").focus()
    page.keyboard.press("0")
    asked.moves_on("春春春")
    assert page.inner_text("#done") == "3 of 4 done"
    with pytest.raises(InputError, match=r"who have seen 3 of 4 queries.*now with what there is: rank.labelled=0.75"):
        rank.main(asked.cfg)
    # by taps
    for text in ("2", "3", "1"):
        asked.chip("ended", text).click()
        page.locator("[data-principle=ended] .gap").last.click()
    page.click("#save")
    until(page, "document.querySelector('#trouble').textContent.startsWith('All queries are done')")
    whole = {"letters", "ended"}
    assert asked.ranked() == {
        "春": {text: dict.fromkeys(whole, place) for text, place in zip(ANSWERS["春"], (1, 0, 1), strict=True)},
        "春春": {"a": {"letters": 2}, "b": {"letters": 0}, "c": {"letters": 0}},
        "春春春": {"x": {}, "y": {}, "z": {}},
        "春春春春": {"1": {"ended": 2}, "2": {"ended": 0}, "3": {"ended": 1}},
    }
    # opened again, it has what was stored; changed, the ranking set has the newest; taken back, none
    page.reload()
    page.wait_for_selector("#answers .answer")
    while asked.query() != "春春":
        before = asked.query()
        page.keyboard.press("ArrowLeft")
        asked.moves_on(before)
    assert asked.tiers("letters")[1] == asked.letter("a")
    for key in ("Backspace", "Backspace", "Backspace", *(asked.letter(text).lower() for text in "bca")):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    asked.says("The ranks are stored.")
    assert asked.ranked()["春春"] == {"b": {"letters": 0}, "c": {"letters": 1}, "a": {"letters": 2}}
    page.click("#withdraw")
    asked.says("The ranks are taken back.")
    asked.cfg.rank = replace(asked.cfg.rank, labelled=0.5)
    assert asked.ranked()["春春"] == {"a": {}, "b": {}, "c": {}}


def test_it_speaks_chinese_and_everything_has_a_name(asked: Asked) -> None:
    page = asked.page
    page.select_option("#language", "zh")
    assert page.inner_text("h1") == "回答排序" and page.inner_text("#done") == "已完成 0 / 4"
    page.reload()
    page.wait_for_selector("#answers .answer")
    assert page.get_attribute("html", "lang") == "zh-CN"
    nameless = page.evaluate("""[...document.querySelectorAll('button, input, textarea, select')].filter(
        n => !(n.getAttribute('aria-label') || n.textContent.trim() || n.labels?.length)).map(n => n.outerHTML)""")
    assert nameless == []
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "answers that are put on one place tie",
        "serving/page/label.js",
        "if (ties && goal) goal.push(number);",
        "if (false) goal.push(number);",
        "test_what_is_ranked_tied_skipped_and_reloaded_is_the_ranking_set",
    ),
    (
        "a reload keeps ranks that are not stored yet",
        "serving/page/label.js",
        "draft = kept ?? {",
        "draft = {",
        "test_what_is_ranked_tied_skipped_and_reloaded_is_the_ranking_set",
    ),
]

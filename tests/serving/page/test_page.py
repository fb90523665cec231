"""The chat page in a browser: what one does there, what is kept, and that a vote there trains."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.feedback import for_training
from conf.knobs.alignment import Judges, Rank
from conf.knobs.running import Run
from conf.schema import Config
from moe.tasks.task import PRINCIPLES
from rlhf.judges.feedback import told
from tests.serving.page.browsers import kept, last, say, short, until

pytestmark = pytest.mark.slow


def test_an_answer_streams_is_stopped_and_goes_on(page: Any) -> None:
    say(page, "你好", whole=False)
    until(page, "document.querySelector('.assistant .text').innerText.length > 20")
    before = last(page)
    until(page, f"document.querySelector('.assistant .text').innerText.length > {len(before) + 20}")
    page.click("#stop")
    page.wait_for_selector(".note")
    assert page.inner_text(".note").startswith("Stopped.")
    stopped = kept(page)["turns"]
    (answer,) = [turn for turn in stopped.values() if turn["role"] == "assistant"]
    assert answer["state"] == "stopped"
    assert (answer["version"], answer["sampling"]["temperature"]) == ("fp_tiny", 0.8)
    page.get_by_role("button", name="Go on").click()
    page.wait_for_selector("#send:visible")
    whole = kept(page)["turns"][answer["id"]]
    assert whole["content"].startswith(answer["content"])
    assert len(whole["content"]) > len(answer["content"])
    assert re.fullmatch(r"\d+ tokens · [\d.]+ tokens/s · first after \d+\.\d\d s", page.inner_text(".rate"))


def left(page: Any) -> dict[str, Any]:
    """The answer in mid-stream, as the page was left with it."""
    say(page, "你好", whole=False)
    until(page, "document.querySelector('.assistant .text').innerText.length > 40")
    page.reload()
    (answer,) = [turn for turn in kept(page)["turns"].values() if turn["role"] == "assistant"]
    assert len(answer["content"]) > 40
    return dict(answer)


def test_a_reload_in_mid_stream_goes_on_by_itself_with_the_same_words(page: Any, address: str) -> None:
    answer = left(page)
    page.wait_for_selector(".note")  # it is as long as an answer may be
    shown = kept(page)["turns"][answer["id"]]
    body = {"model": "tiny", "messages": [{"role": "user", "content": "你好"}], **answer["sampling"]}
    whole = httpx.post(f"{address}v1/chat/completions", json=body, timeout=600).json()
    assert (shown["state"], shown["content"]) == ("done", whole["choices"][0]["message"]["content"])


def test_a_reload_keeps_what_had_come_and_offers_to_go_on_where_the_stream_is_gone(page: Any) -> None:
    page.route("**/v1/stream/*", lambda route: route.fulfill(status=404, body='{"error": {"message": "gone"}}'))
    answer = left(page)
    page.wait_for_selector(".note")
    assert page.inner_text(".note").startswith("The page was left before the answer's end")
    page.get_by_role("button", name="Go on").click()
    page.wait_for_selector("#send:visible")
    assert kept(page)["turns"][answer["id"]]["content"].startswith(answer["content"])
    assert kept(page)["turns"][answer["id"]]["state"] == "done"


def test_edits_and_retries_are_branches_and_none_is_lost(page: Any) -> None:
    short(page, 5)
    say(page, "一")
    first = last(page)
    say(page, "二")
    page.locator(".user").first.get_by_label("Edit").click()
    page.locator(".inner textarea").fill("三")
    page.get_by_role("button", name="Send as a new branch").click()
    until(page, "document.querySelector('.user .text').innerText === '三'")
    page.wait_for_selector("#send:visible")
    assert page.locator(".user .text").all_inner_texts() == ["三"]
    assert page.get_by_role("group", name="Branch 2 of 2").count() == 1
    page.locator(".user").get_by_label("Previous branch").click()
    assert page.locator(".user .text").all_inner_texts() == ["一", "二"]
    assert page.locator(".assistant .text").first.inner_text() == first
    page.locator(".assistant").first.get_by_label("Retry").click()
    page.wait_for_selector("#send:visible")
    assert page.locator(".assistant .text").count() == 1  # the second question belongs to the other answer
    page.locator(".assistant").get_by_label("Previous branch").click()
    assert page.locator(".user .text").all_inner_texts() == ["一", "二"]
    page.reload()
    assert page.locator(".user .text").all_inner_texts() == ["一", "二"]


def test_votes_are_in_the_store_and_the_next_rankings_find_them(page: Any, store: Path) -> None:
    before = {vote.id for vote in for_training(store)} if store.exists() else set()

    def fresh() -> list[Any]:
        return [vote for vote in for_training(store) if vote.id not in before] if store.exists() else []

    def stored(count: int, what: str) -> None:
        until(page, f"document.querySelector('#status').textContent === '{what}'")
        assert len(fresh()) == count
        page.evaluate("document.querySelector('#status').textContent = ''")

    short(page, 6)
    say(page, "春")
    shown = kept(page)["turns"]
    (answer,) = [turn for turn in shown.values() if turn["role"] == "assistant"]
    page.get_by_label("Good answer").click()
    stored(1, "Your vote is stored.")
    up = fresh()[0]
    assert (up.said["kind"], up.said["messages"]) == ("up", [{"role": "user", "content": "春"}])
    assert up.said["answers"] == [
        {
            "text": answer["content"],
            "finished": False,
            "model": "tiny",
            "version": "fp_tiny",
            "sampling": answer["sampling"],
        }
    ]  # cut off at six tokens
    page.locator("summary").click()
    page.locator(".reason select").select_option("clear")
    page.locator(".reason input").fill("so it is")
    page.get_by_role("button", name="Send the reason").click()
    stored(1, "Your vote is stored.")
    assert (fresh()[0].said["principle"], fresh()[0].said["comment"]) == ("clear", "so it is")
    page.get_by_label("Good answer").click()  # again: taken back
    stored(0, "Your vote is deleted.")
    page.get_by_role("button", name="Better answer…").click()
    page.locator(".inner textarea").fill("花开")
    page.get_by_role("button", name="Send this correction").click()
    stored(1, "Your vote is stored.")
    page.check("#two")
    say(page, "秋")
    assert page.locator(".duel .text").count() == 2
    page.locator(".duel select").select_option("helpful")
    page.get_by_role("button", name="This one is better").last.click()
    stored(2, "Your vote is stored.")
    pick = fresh()[1].said
    assert (pick["kind"], pick["better"], pick["principle"]) == ("better", 1, "helpful")
    assert [turn["content"] for turn in pick["messages"]] == ["春", answer["content"], "秋"]
    assert page.locator(".duel").count() == 0
    assert last(page) == pick["answers"][1]["text"].strip()
    # and the rankings of the next model have them
    lines = told(store, PRINCIPLES).rankings
    found = {line["messages"][-1]["content"]: [answer["text"] for answer in line["answers"]] for line in lines}
    assert found["春"] == ["花开", answer["content"]]
    (ranked,) = [line["answers"] for line in lines if line["messages"][-1]["content"] == "秋"]
    assert {answer["text"]: answer["ranks"] for answer in ranked} == {
        pick["answers"][1]["text"]: {"helpful": 0}, pick["answers"][0]["text"]: {"helpful": 1},
    }  # fmt: skip
    # a conversation that is deleted here is forgotten there
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("nav li.current .icon").click()
    until(page, "document.querySelectorAll('nav li').length === 0")
    assert fresh() == []


def test_whoever_wants_no_training_is_believed(page: Any, store: Path) -> None:
    page.click("#settings")
    page.uncheck("#trains")
    page.fill("#max_tokens", "3")
    page.click("#dialog button.strong")
    say(page, "冬")
    page.get_by_label("Bad answer").click()
    until(page, "document.querySelector('#status').textContent === 'Your vote is stored.'")
    assert not [vote for vote in for_training(store) if vote.said["messages"][-1]["content"] == "冬"]
    stored = page.evaluate("fetch('v1/feedback').then(r => r.json())")["data"]
    assert [vote["visible_to"] for vote in stored if vote["messages"][-1]["content"] == "冬"] == ["me"]


def test_the_votes_of_the_page_are_what_the_stage_ranks(store: Path, page: Any) -> None:
    """Down to the job itself, in a run whose store this is."""
    from rlhf import rank

    short(page, 4)
    page.check("#two")
    say(page, "夏")
    page.get_by_role("button", name="This one is better").first.click()
    until(page, "document.querySelector('#status').textContent === 'Your vote is stored.'")
    place = store.parent
    cfg = Config(run=Run(name=place.name, dir=str(place.parent)), rank=Rank(judges=[Judges.feedback]))
    assert rank.main(cfg)["pairs"] >= 1
    lines = [json.loads(line) for line in (place / "ranked" / "rankings.jsonl").read_text("utf-8").splitlines()]
    assert "夏" in {line["messages"][-1]["content"] for line in lines}


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an answer goes on by itself after a reload, and no word comes twice",
        "serving/page/main.js",
        "next: event.number + 1 }",
        "next: event.number }",
        "test_a_reload_in_mid_stream_goes_on_by_itself_with_the_same_words",
    ),
    (
        "a reload in mid-stream loses nothing that had come",
        "serving/page/main.js",
        "for (const stream of streams.values()) talks.save(stream.talk);",
        "for (const stream of streams.values()) talks.remove(stream.talk);",
        "test_a_reload_keeps_what_had_come_and_offers_to_go_on_where_the_stream_is_gone",
    ),
    (
        "a vote on the page says what was answered",
        "serving/page/view.js",
        "text: turn.content, finished:",
        'text: turn.content + ".", finished:',
        "test_votes_are_in_the_store_and_the_next_rankings_find_them",
    ),
]

"""Scores worked by hand."""

from pathlib import Path
from typing import Any

import pytest

from data.verse.judge import OPTIONS, judge, reward, score
from data.verse.rules import Copies
from moe.tasks.task import PRINCIPLES, Sample

MOON = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"
FLAT = MOON.replace("故乡", "故山")


def ask(task: str, label: str | None = None, **fields: Any) -> Sample:
    return Sample(id="q", task=task, messages=[{"role": "user", "content": "..."}], label=label, fields=fields)


QUERY = ask("compose", form="五言绝句", title="明月")
FORM = ask("form", "五言绝句")


def test_a_faultless_poem_has_every_merit() -> None:
    assert score(QUERY, MOON, True) == dict.fromkeys(PRINCIPLES, 1.0)


def test_each_fault_costs_its_principle_only() -> None:
    faults = {
        "title": (ask("compose", form="五言绝句", title="静夜"), MOON, True, None, {"helpful": 0.7}),
        "rhyme": (QUERY, FLAT, True, None, {"fluent": 0.4}),
        "unfinished": (QUERY, MOON, False, None, {"clear": 2 / 3}),
        "copied": (QUERY, MOON, True, Copies.of([MOON]), {"truthful": 0.5}),
        "harm": (QUERY, MOON.replace("疑是", "淫是"), True, None, {"harmless": 0.0}),
        "punctuation": (
            QUERY,
            MOON.replace("光，", "光。"),
            True,
            None,
            {"helpful": 0.7 * 0.95 + 0.3, "truthful": 0.5},
        ),
    }
    for name, (query, answer, finished, copies, changed) in faults.items():
        want = dict.fromkeys(PRINCIPLES, 1.0) | changed
        assert score(query, answer, finished, copies=copies) == pytest.approx(want), name


def test_nothing_is_only_harmless() -> None:
    assert score(QUERY, " \n", True) == {p: float(p == "harmless") for p in PRINCIPLES}


def test_first_line_must_open_the_poem() -> None:
    query = ask("continue", form="五言绝句", first="床前明月光")
    assert score(query, MOON, True)["helpful"] == 1.0
    assert score(ask("continue", form="五言绝句", first="低头思故乡"), MOON, True)["helpful"] == pytest.approx(0.7)


def test_label_line_and_talk() -> None:
    assert score(FORM, "五言绝句", True) == dict.fromkeys(PRINCIPLES, 1.0)
    assert score(FORM, "五言律诗", True)["truthful"] == 0.0
    line = ask("next_line", line="床前明月光")
    assert score(line, "疑是地上霜。", True)["helpful"] == 1.0
    assert score(line, "疑是地上霜，低头。", True)["helpful"] == 0.0
    assert score(ask("dialogue"), "我是Conclave。", True)["clear"] == 1.0
    assert score(QUERY, "我是Conclave。", True)["clear"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("query", "answer", "finished", "earned"),
    [
        (QUERY, MOON, True, 1.0),
        (QUERY, FLAT, True, 0.3),  # form and title
        (ask("compose", form="五言绝句", title="夜"), MOON, True, 0.8),  # form and rhyme
        (QUERY, MOON, False, 0.0),
        (QUERY, MOON[:12], True, -0.5),  # two of four lines
        (QUERY, "", True, -1.0),
        (QUERY, "床前明月光，疑是地上霜。床前明月光，低头思故乡。", True, 0.5),  # a line comes twice
        (FORM, "五言绝句。", True, 1.0),
        (FORM, "七言绝句", True, -1.0),
        (ask("dialogue"), "你好。", True, 1.0),
    ],
)
def test_reward(query: Sample, answer: str, finished: bool, earned: float) -> None:
    assert reward(query, answer, finished) == pytest.approx(earned)


def test_a_copied_poem_earns_nothing() -> None:
    assert reward(QUERY, MOON, True, copies=Copies.of([MOON])) == pytest.approx(0.0)


def test_out_of_form_never_beats_in_form() -> None:
    nearly = MOON.replace("，", "。")
    assert reward(QUERY, nearly, True) == pytest.approx(-0.05)
    assert reward(QUERY, nearly, True) < reward(ask("compose", form="五言绝句", title="夜"), FLAT, True)


def test_a_verdict_says_all_of_it_at_once(tmp_path: Path) -> None:
    Copies.of([]).save(tmp_path / "copies.npy")
    verdict = judge(tmp_path, OPTIONS)(QUERY, MOON, True)
    assert verdict.scores == dict.fromkeys(PRINCIPLES, 1.0) and verdict.reward == pytest.approx(1.0)
    assert verdict.placed == ((MOON.index("乡"), 0.7),) and verdict.reasons == () and verdict.free
    assert verdict.measures == {
        "form_ok": 1.0,
        "rhyme_ok": 1.0,
        "rhyme_share": 1.0,
        "repeats": 0.0,
        "title_share": 1.0,
        "copied": 0.0,
        "finished": 1.0,
    }
    heavier = judge(tmp_path, {**OPTIONS, "rhyme": 0.1})(QUERY, MOON, True)
    assert heavier.reward == pytest.approx(0.4)
    assert judge(tmp_path, OPTIONS)(QUERY, FLAT, False).reasons == ("does not rhyme", "did not end by itself")
    label = judge(tmp_path, OPTIONS)(FORM, "五言律诗", True)
    assert label.measures == {"form_accuracy": 0.0} and label.reasons == ("is not 五言绝句",) and not label.free


def test_an_own_task_with_the_name_of_ours_is_no_poem(tmp_path: Path) -> None:
    Copies.of([]).save(tmp_path / "copies.npy")
    verdict = judge(tmp_path, OPTIONS)(ask("compose"), "The capital of France is Paris.", True)
    assert verdict.measures == {}

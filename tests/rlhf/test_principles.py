"""Scores worked by hand."""

import pytest

from conf.schema import Principle
from moe.verse import Copies
from rlhf.principles import pairs, rank, rule_reward, score, total

MOON = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"
FLAT = MOON.replace("故乡", "故山")
QUERY = {"task": "compose", "form": "五言绝句", "title": "明月", "messages": [{"role": "user", "content": "..."}]}
FORM = {"task": "form", "label": "五言绝句"}


def test_a_faultless_poem_has_every_merit() -> None:
    assert score(QUERY, MOON, True) == dict.fromkeys(Principle, 1.0)


def test_each_fault_costs_its_principle_only() -> None:
    faults = {
        "title": (QUERY | {"title": "静夜"}, MOON, True, None, {Principle.helpful: 0.7}),
        "rhyme": (QUERY, FLAT, True, None, {Principle.fluent: 0.4}),
        "unfinished": (QUERY, MOON, False, None, {Principle.clear: 2 / 3}),
        "copied": (QUERY, MOON, True, Copies.of([MOON]), {Principle.truthful: 0.5}),
        "harm": (QUERY, MOON.replace("疑是", "淫是"), True, None, {Principle.harmless: 0.0}),
        "punctuation": (
            QUERY,
            MOON.replace("光，", "光。"),
            True,
            None,
            {Principle.helpful: 0.7 * 0.95 + 0.3, Principle.truthful: 0.5},
        ),
    }
    for name, (query, answer, finished, copies, changed) in faults.items():
        want = dict.fromkeys(Principle, 1.0) | changed
        assert score(query, answer, finished, copies=copies) == pytest.approx(want), name


def test_nothing_is_only_harmless() -> None:
    assert score(QUERY, " \n", True) == {p: float(p is Principle.harmless) for p in Principle}


def test_first_line_must_open_the_poem() -> None:
    query = {"task": "continue", "form": "五言绝句", "first": "床前明月光"}
    assert score(query, MOON, True)[Principle.helpful] == 1.0
    assert score(query | {"first": "低头思故乡"}, MOON, True)[Principle.helpful] == pytest.approx(0.7)


def test_label_line_and_talk() -> None:
    assert score(FORM, "五言绝句", True) == dict.fromkeys(Principle, 1.0)
    assert score(FORM, "五言律诗", True)[Principle.truthful] == 0.0
    line = {"task": "next_line", "line": "床前明月光"}
    assert score(line, "疑是地上霜。", True)[Principle.helpful] == 1.0
    assert score(line, "疑是地上霜，低头。", True)[Principle.helpful] == 0.0
    assert score({"task": "dialogue"}, "我是Conclave。", True)[Principle.clear] == 1.0
    assert score(QUERY, "我是Conclave。", True)[Principle.clear] == pytest.approx(2 / 3)


def test_total_is_the_mean_of_the_chosen() -> None:
    scores = score(QUERY, FLAT, False)  # fluent 0.4, clear 2/3, helpful 1
    assert total(scores, [Principle.fluent, Principle.helpful]) == pytest.approx(0.7)


def test_ranks_tie_within_the_margin() -> None:
    assert rank([0.9, 0.5, 0.88, 0.5], 0.05) == [0, 2, 0, 2]
    assert rank([0.1, 0.3], 0.05) == [1, 0]
    assert pairs([0.9, 0.5, 0.88], 0.05) == [(0, 1), (2, 1)]
    assert pairs([0.5, 0.5], 0.0) == []
    assert pairs([0.3, 0.2], 0.1) == [(0, 1)]  # 0.3 - 0.2 is a little less than 0.1 in floating point


@pytest.mark.parametrize(
    ("query", "answer", "finished", "reward"),
    [
        (QUERY, MOON, True, 1.0),
        (QUERY, FLAT, True, 0.3),  # form and title
        (QUERY | {"title": "夜"}, MOON, True, 0.8),  # form and rhyme
        (QUERY, MOON, False, 0.0),
        (QUERY, MOON[:12], True, -0.5),  # two of four lines
        (QUERY, "", True, -1.0),
        (QUERY, "床前明月光，疑是地上霜。床前明月光，低头思故乡。", True, 0.5),  # a line comes twice
        (FORM, "五言绝句。", True, 1.0),
        (FORM, "七言绝句", True, -1.0),
        ({"task": "dialogue"}, "你好。", True, 1.0),
    ],
)
def test_rule_reward(query: dict[str, str], answer: str, finished: bool, reward: float) -> None:
    assert rule_reward(query, answer, finished) == pytest.approx(reward)


def test_a_copied_poem_earns_nothing() -> None:
    assert rule_reward(QUERY, MOON, True, copies=Copies.of([MOON])) == pytest.approx(0.0)


def test_out_of_form_never_beats_in_form() -> None:
    nearly = MOON.replace("，", "。")
    assert rule_reward(QUERY, nearly, True) == pytest.approx(-0.05)
    assert rule_reward(QUERY, nearly, True) < rule_reward(QUERY | {"title": "夜"}, FLAT, True)

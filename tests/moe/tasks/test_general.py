"""The judge: right sentences above everything else, whatever the query knows."""

import math
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from conf.errors import InputError
from moe.tasks import general
from moe.tasks.task import Sample, Verdict
from tests.moe.tasks.asked import FRANCE, NO_ANSWERS, PARIS, asked, judged

FOX = "The fox lived in a hollow oak."


def total(verdict: Verdict) -> float:
    return sum(verdict.scores.values())


KNOWN: Mapping[str, Sample] = {
    "nothing": asked(FRANCE),
    "label": asked(FRANCE, "Paris"),
    "choices": asked(FRANCE, "Paris", choices=["London", "Paris"]),
    "reference": asked(FRANCE, reference=PARIS),
    "short reference": asked(FRANCE, references=["Paris", "Paris, France"]),
    "checks": asked(FRANCE, checks=[{"rule": "contains", "all": ["Paris"]}]),
}


@pytest.mark.parametrize("known", KNOWN)
def test_a_right_sentence_outranks_what_is_no_answer(known: str) -> None:
    best = judged(KNOWN[known], PARIS)
    assert best.reward == 1.0 and not best.reasons
    for answer in NO_ANSWERS:
        worse = judged(KNOWN[known], answer)
        assert worse.reward < best.reward - 0.5 and total(worse) < total(best), answer
        assert worse.reasons, answer


@pytest.mark.parametrize("known", KNOWN)
def test_a_short_answer_earns_no_more_than_a_sentence(known: str) -> None:
    for answer in ("Paris", "Paris.", "It's Paris."):
        assert judged(KNOWN[known], answer).reward <= 1.0
        assert judged(KNOWN[known], answer).reward > judged(KNOWN[known], "我不知道。").reward


@pytest.mark.parametrize("known", KNOWN)
def test_nothing_earns_nothing(known: str) -> None:
    for answer in ("", " \n", "。", "...", "the the the the", FRANCE, " ".join([PARIS] * 5)):
        assert judged(KNOWN[known], answer).reward == -1.0, answer
    assert judged(KNOWN[known], "").scores == dict.fromkeys(general.PRINCIPLES, 0.0) | {"harmless": 1.0}


def test_in_chinese_too() -> None:
    question, right = "法国的首都是哪里？", "法国的首都是巴黎。"
    for query in (asked(question), asked(question, "巴黎"), asked(question, reference=right)):
        best = judged(query, right)
        assert best.reward == 1.0
        for answer in (
            "",
            "。",
            "我不知道。",
            "对不起，我不能回答。",
            question,
            "法国法国法国法国",
            "香蕉.",
            "I don't know.",
        ):
            assert judged(query, answer).reward < 0.7 and total(judged(query, answer)) < total(best), answer


def test_length_collapse_does_not_pay_where_there_is_a_reference() -> None:
    query = asked(
        "The fox was tired.", reference="It walked back to the hollow oak, curled up and slept until the moon rose."
    )
    honest = judged(query, "It went home to the oak, lay down and slept until morning.").reward
    for answer in ("It slept.", "The oak.", "It.", "The fox was tired.", "It slept. It slept. It slept. It slept."):
        assert judged(query, answer).reward < honest, answer


def test_one_sentence_again_and_again_does_not_meet_a_count() -> None:
    query = asked("Write four sentences on foxes.", checks=[{"rule": "sentences", "at_least": 4}])
    same, honest = judged(query, " ".join([FOX] * 4)), judged(query, f"{FOX} It was red. It ate mice.")
    assert same.measures["checks_ok"] == honest.measures["checks_ok"] == 0.0 and same.reward < honest.reward
    assert judged(query, f"{FOX} It was red. It ate mice. It slept by day.").reward == 1.0


def test_copying_the_question_earns_no_label_that_stands_in_it() -> None:
    query = asked("Name the mood, positive, negative, mixed: I loved the film.", "positive")
    assert judged(query, query.prompt).measures["label_ok"] == 0.0 and judged(query, query.prompt).reward == -1.0
    assert judged(query, "positive").reward == judged(query, "It is positive.").reward == 1.0
    assert judged(asked("Say exactly: I am a fox.", reference="I am a fox."), "I am a fox.").reward == 1.0


def test_reward_is_the_weighted_mean_of_the_merits() -> None:
    wrong = judged(asked(FRANCE, "Paris"), "The capital is Rome.")  # label 0 of 4, finished 1, form 1
    assert wrong.reward == pytest.approx(2 * 2 / 6 - 1)
    one = judged(asked(FRANCE), "Paris.")  # full 1/5, language, finished and form 1
    assert one.reward == pytest.approx(2 * 3.2 / 4 - 1)
    cut = judged(asked(FRANCE), PARIS[:-1], finished=False)  # finished 0
    assert cut.reward == pytest.approx(2 * 3 / 4 - 1)
    refused = judged(asked(FRANCE), "I don't know.")  # full 3/5; a refusal takes 0.8
    assert refused.reward == pytest.approx(2 * 0.2 * 3.6 / 4 - 1)


def test_options_change_the_weights() -> None:
    strict = general.judge(Path("unused"), {"full": 0.0, "refusal": 1.0})
    assert strict(asked(FRANCE), "Paris.", True).reward == 1.0
    assert strict(asked(FRANCE), "I don't know.", True).reward == -1.0
    nothing = general.judge(Path("unused"), dict.fromkeys(general.MERITS, 0.0))
    assert nothing(asked(FRANCE), PARIS, True).reward == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lable": 1.0}, "tasks.options.lable: no such option; there are label, reference, checks,"),
        ({"label": -1.0}, "tasks.options.label=-1.0 must be a number, 0 or more"),
        ({"label": math.inf}, "tasks.options.label=inf must be a number"),
        ({"label": math.nan}, "tasks.options.label=nan must be a number"),
        ({"refusal": 1.5}, "tasks.options.refusal=1.5 must lie in [0, 1]"),
    ],
)
def test_an_option_that_cannot_be_is_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        general.judge(Path("unused"), options)


def test_each_fault_costs_its_principle() -> None:
    perfect = {"harmless": 1.0, "helpful": 1.0, "truthful": 1.0, "fluent": 1.0, "clear": 1.0}
    query = asked(FRANCE, "Paris")
    assert judged(query, PARIS).scores == perfect
    assert judged(query, "It is fucking Paris.").scores == perfect | {"harmless": 0.0}
    assert judged(query, "It is Rome.").scores == perfect | {"helpful": 0.0, "truthful": 0.0}
    assert judged(query, "It is (Paris.").scores == pytest.approx(perfect | {"fluent": 2 / 3})
    assert judged(query, PARIS, finished=False).scores == perfect | {"clear": 0.5}
    assert judged(asked(FRANCE), PARIS).scores == perfect | {"truthful": general.UNKNOWN}


def test_the_language_is_that_of_the_question_unless_it_says_otherwise() -> None:
    assert "is not in the language of the question" in judged(asked(FRANCE), "法国的首都是巴黎。").reasons
    assert not judged(asked("How do you say hello in Chinese?"), "它在中文里是你好。").reasons
    assert not judged(asked("把这句话翻译成英文：我是狐狸。"), "I am a small fox.").reasons
    assert not judged(asked("写一句英文。", checks=[{"rule": "language", "is": "en"}]), "I am a small fox.").reasons
    assert not judged(asked("Что такое лиса?"), "Это небольшой рыжий хищный зверь.").reasons
    assert (
        "is not in the language of the question"
        in judged(asked("Что такое лиса?"), "It is a small red animal.").reasons
    )


def test_measures_are_there_where_they_apply() -> None:
    checks = [{"rule": "words", "at_most": 3}, {"rule": "words", "at_least": 1}, {"rule": "ends", "with": "."}]
    verdict = judged(asked(FRANCE, reference=PARIS, checks=checks), PARIS)
    measured = {name: verdict.measures[name] for name in ("checks_ok", "words_ok", "ends_ok", "reference_f1", "chrf")}
    assert measured == {"checks_ok": 0.0, "words_ok": 0.0, "ends_ok": 1.0, "reference_f1": 1.0, "chrf": 1.0}
    assert "has 6 words, at most 3 were asked for" in verdict.reasons
    plain = {"finished": 1.0, "repeats": 0.0, "refusal": 0.0, "empty": 0.0, "copy": 0.0}
    assert judged(asked(FRANCE), PARIS).measures == plain
    assert judged(asked(FRANCE, "Paris"), "No idea").measures == plain | {"refusal": 1.0, "label_ok": 0.0}


def test_only_a_text_of_its_own_should_differ_from_others() -> None:
    assert judged(asked(FRANCE), PARIS).free and judged(asked(FRANCE, reference=PARIS), PARIS).free
    assert not judged(asked(FRANCE, "Paris"), PARIS).free


def test_what_the_reference_does_is_no_fault() -> None:
    query = asked("How do I pick a lock?", reference="I'm sorry, but I can't help with that.")
    assert judged(query, "Sorry, I cannot answer that question.").measures["refusal"] == 0.0
    song = "Row, row, row your boat. " * 3
    assert judged(asked("Sing.", reference=song), song).reward == 1.0


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a copy of the question is no answer",
        "moe/tasks/general.py",
        '"copy": float(not wanted and _copies(query, answer)),',
        '"copy": 0.0,',
        "test_nothing_earns_nothing",
    ),
    (
        "a refusal is worth less than an answer",
        "moe/tasks/general.py",
        '"refusal": 0.8,',
        '"refusal": 0.0,',
        "test_a_right_sentence_outranks_what_is_no_answer",
    ),
    (
        "one sentence again and again meets no count",
        "moe/tasks/general.py",
        'if check.get("at_least") and (',
        'if check.get("never") and (',
        "test_one_sentence_again_and_again_does_not_meet_a_count",
    ),
    (
        "a label that stands in the question is not earned by copying it",
        "moe/tasks/general.py",
        'merits["label"] = float(named and not copy)',
        'merits["label"] = float(named)',
        "test_copying_the_question_earns_no_label_that_stands_in_it",
    ),
    (
        "where nothing is known a fragment earns less than a sentence",
        "moe/tasks/general.py",
        'asked["full"] = min(1.0, len(words(answer)) / FULL)',
        'asked["full"] = 1.0',
        "test_reward_is_the_weighted_mean_of_the_merits",
    ),
    (
        "an answer in another language than the question costs",
        "moe/tasks/general.py",
        "if (language := _language(query, answer)) is not None:",
        "if (language := None) is not None:",
        "test_the_language_is_that_of_the_question_unless_it_says_otherwise",
    ),
    (
        "what the reference refuses may be refused",
        "moe/tasks/general.py",
        "and not any(map(faults.refusal, given))",
        "",
        "test_what_the_reference_does_is_no_fault",
    ),
    (
        "an option that does not exist is refused",
        "moe/tasks/general.py",
        "if name not in OPTIONS:",
        "if name in FAULTS and name not in OPTIONS:",
        "test_an_option_that_cannot_be_is_named",
    ),
]

"""What rankings teach: which answer is the best, which queries are left out, and what a chain of hindsight says."""

from dataclasses import replace
from typing import Any

import pytest

from conf.errors import InputError
from conf.knobs.alignment import Cohft, Hfft, Phrases
from moe.tasks.task import PRINCIPLES
from trainers.files.hindsight import asking, best, chains, good, language, plain, worst

ASKED = [{"role": "user", "content": "What is it?"}]


def record(
    *answers: dict[str, Any], ask: str = "What is it?", where: str = "/runs/x/rankings.jsonl:3"
) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": ask}],
        "answers": [{"text": "abcdefgh"[number]} | answer for number, answer in enumerate(answers)],
        "where": where,
    }


def said(messages: list[dict[str, str]]) -> list[str]:
    return [turn["content"] for turn in messages]


def test_the_best_has_the_first_place_then_the_highest_score_then_comes_first() -> None:
    answers = record({"rank": 1}, {"rank": 0, "total": 0.5}, {"rank": 0, "total": 0.75}, {"rank": 0, "total": 0.75})[
        "answers"
    ]
    assert (best(answers), worst(answers)) == (2, 0)
    assert best(record({}, {"total": 0.2}, {"total": 0.3})["answers"]) == 2  # of scores alone
    tied = record({"rank": 2, "total": 0.4}, {"rank": 2, "total": 0.1}, {"rank": 2, "total": 0.1})["answers"]
    assert (best(tied), worst(tied)) == (0, 1)
    under = record({"rank": 0, "ranks": {"clear": 1}}, {"rank": 1, "ranks": {"clear": 0}}, {"rank": 2})["answers"]
    assert (best(under), best(under, "clear"), best(under, "fluent")) == (0, 1, None)


def test_what_was_cut_off_or_says_nothing_is_nobodys_best() -> None:
    answers = record(
        {"rank": 0, "finished": False}, {"rank": 1, "text": " \n"}, {"rank": 2}, {"rank": 3, "finished": False}
    )
    assert best(answers["answers"]) == worst(answers["answers"]) == 2
    assert best(record({"rank": 0, "finished": False}, {})["answers"]) is None


def test_queries_whose_best_is_bad_are_left_out_and_counted() -> None:
    records = [
        record({"rank": 0, "total": 0.5}, {"rank": 1, "total": 0.1}),
        record({"rank": 0, "total": 0.49}, {"rank": 1, "total": 0.1}),
        record({"rank": 0}, {"rank": 1}),  # nobody says how good: kept
        record({"rank": 0, "total": 0.9, "finished": False}, {"rank": 1, "total": 0.2}),
        record({"rank": 0, "total": 0.9, "finished": False}, {}),
    ]
    kept, counts = good(records, 0.5)
    assert kept == [records[0], records[2]] and counts == {"below": 2.0, "no_best": 1.0}
    assert good(records, -1.0)[1] == {"below": 0.0, "no_best": 1.0}


def test_a_plain_sample_is_the_query_and_its_best_answer() -> None:
    sample = plain(record({"rank": 1}, {"rank": 0}))
    assert said(sample.messages) == ["What is it?", "b"]
    assert (sample.id, sample.task, sample.messages[-1]["role"]) == ("rankings.jsonl:3", "best", "assistant")


def test_a_chain_has_both_answers_each_after_its_phrase() -> None:
    one = record(
        {"rank": 1, "ranks": {"clear": 0}}, {"rank": 0, "ranks": {"clear": 0}}, {"rank": 2, "ranks": {"clear": 3}}
    )
    found = chains(one, ["clear", "fluent"], Cohft(), seed=0)
    assert [sample.id for sample in found] == ["rankings.jsonl:3 total", "rankings.jsonl:3 clear"]
    assert {sample.task for sample in found} == {"chain"}
    total, clear = [said(sample.messages) for sample in found]
    assert sorted(zip(total[::2], total[1::2], strict=True)) in (
        [("A worse answer:", "c"), ("What is it?\nA good answer:", "b")],
        [("A good answer:", "b"), ("What is it?\nA worse answer:", "c")],
    )
    pairs = {(phrase.split("\n")[-1], answer) for phrase, answer in zip(clear[::2], clear[1::2], strict=True)}
    assert pairs == {("A more clear answer:", "a"), ("A less clear answer:", "c")}
    assert [turn["role"] for turn in found[0].messages] == ["user", "assistant", "user", "assistant"]
    tied = record(  # within the margin: the scores differ and the places do not
        {"rank": 0, "total": 0.51, "ranks": {"clear": 0}}, {"rank": 0, "total": 0.5, "ranks": {"clear": 1}}
    )
    assert [sample.id.split()[-1] for sample in chains(tied, ["clear"], Cohft(), seed=0)] == ["clear"]


def test_the_good_answer_is_as_often_first_as_last() -> None:
    first = 0
    for number in range(400):
        (chain,) = chains(record({"rank": 0}, {"rank": 1}, ask=f"query {number}"), [], Cohft(), seed=0)
        first += chain.messages[1]["content"] == "a"
        again = chains(
            record({"rank": 0}, {"rank": 1}, ask=f"query {number}", where="/elsewhere/x:9"), [], Cohft(), seed=0
        )
        assert again[0].messages == chain.messages
    assert 160 < first < 240


def test_phrases_are_in_the_language_of_the_query_and_may_be_others() -> None:
    cfg = Cohft(zh=replace(Phrases.chinese(), good="请好好回答："), en=Phrases(names={"clear": "plain"}))
    chinese = record({"rank": 0, "ranks": {"clear": 0}}, {"rank": 1, "ranks": {"clear": 1}}, ask="春天是什么？")
    total, clear = (said(sample.messages) for sample in chains(chinese, ["clear"], cfg, seed=0))
    assert {text.split("\n")[-1] for text in total[::2]} == {"请好好回答：", "较差的回答："}
    assert {text.split("\n")[-1] for text in clear[::2]} == {"更清楚的回答：", "不够清楚的回答："}
    english = replace_ask(chinese, "What is spring 春?")
    assert {text.split("\n")[-1] for text in said(chains(english, ["clear"], cfg, seed=0)[1].messages)[::2]} == {
        "A more plain answer:",
        "A less plain answer:",
    }
    assert set(Phrases.chinese().names) == set(PRINCIPLES)
    assert language([{"role": "user", "content": "123"}], cfg) is cfg.en  # no letter at all
    talk = [*ASKED, {"role": "assistant", "content": "This."}]
    assert (
        said(asking(talk, "Better:")) == ["What is it?", "This.", "Better:"] and asking(talk, "x")[-1]["role"] == "user"
    )


def replace_ask(one: dict[str, Any], ask: str) -> dict[str, Any]:
    return one | {"messages": [{"role": "user", "content": ask}]}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hfft(at_least=float("nan")), r"^hfft.at_least=nan must be a number, in the rankings' totals$"),
        (lambda: Hfft(held_out=1.5), r"^hfft.held_out=1.5 must lie in \[0, 1\]$"),
        (lambda: Hfft(row_length=-1), r"^hfft.row_length=-1 must not be negative; 0 fits the longest$"),
        (lambda: Cohft(mask=2.0), r"^cohft.mask=2.0 must lie in \[0, 1\]$"),
        (lambda: Cohft(plain=-0.1), r"^cohft.plain=-0.1 must lie in \[0, 1\]$"),
        (lambda: Cohft(en=Phrases(good=" ")), r"^cohft.en.good=' ' must say something"),
        (
            lambda: Cohft(zh=Phrases(more="x")),
            r"^cohft.zh.more='x' must have \{principle\} where its name shall stand$",
        ),
        (
            lambda: Cohft(en=Phrases(good="A worse answer:")),
            r"^cohft.en.good='A worse answer:' must differ from cohft.en.w",
        ),
    ],
)
def test_a_knob_that_cannot_be_is_named(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "of answers with the same place the one with the highest score is the best",
        "trainers/files/hindsight.py",
        "-sign * (score if score is not None else 0.0)",
        "0.0",
        "test_the_best_has_the_first_place_then_the_highest_score_then_comes_first",
    ),
    (
        "an answer that was cut off is nobody's best",
        "trainers/files/hindsight.py",
        'answer.get("finished", True) and ',
        "",
        "test_what_was_cut_off_or_says_nothing_is_nobodys_best",
    ),
    (
        "a query whose best answer is bad is left out",
        "trainers/files/hindsight.py",
        "total is not None and total < at_least",
        "total is not None and total <= at_least",
        "test_queries_whose_best_is_bad_are_left_out_and_counted",
    ),
    (
        "a chain puts the good phrase before the good answer",
        "trainers/files/hindsight.py",
        "(answers[high], answers[low])",
        "(answers[low], answers[high])",
        "test_a_chain_has_both_answers_each_after_its_phrase",
    ),
    (
        "the good answer is not always the first of a chain",
        "trainers/files/hindsight.py",
        "            pair.reverse()",
        "            pass",
        "test_the_good_answer_is_as_often_first_as_last",
    ),
    (
        "a principle under which answers tie makes no chain",
        "trainers/files/hindsight.py",
        "ranks[high] == ranks[low]",
        "high == low",
        "test_a_chain_has_both_answers_each_after_its_phrase",
    ),
    (
        "a Chinese query has Chinese phrases",
        "trainers/files/hindsight.py",
        'return cfg.zh if main_writing(last) == "han" else cfg.en',
        "return cfg.en",
        "test_phrases_are_in_the_language_of_the_query_and_may_be_others",
    ),
]

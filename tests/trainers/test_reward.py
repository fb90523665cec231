"""Rankings as people and rules write them, and what becomes of them before training."""

import json
from pathlib import Path
from typing import Any

import pytest

from conf.errors import InputError
from conf.knobs.text import Tokenizer as Settings
from moe.tasks.task import PRINCIPLES
from moe.text.chat import prompt_ids
from moe.text.tokenizer import Tokenizer
from trainers.files.rankings import judged, read_rankings, split, telling
from trainers.reward import rankings
from trainers.rows.preferences import NO_SCORE

ASKED = [{"role": "user", "content": "abc"}]
HEAD = ("total", "helpful", "clear")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["user assistant system\n abcdefgh"] * 4, Settings(vocab_size=450))


def line(*answers: dict[str, Any], ask: str = "abc") -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": ask}],
        "answers": [{"text": "abcdefgh"[number]} | answer for number, answer in enumerate(answers)],
    }


def write(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in lines), "utf-8")
    return path


def test_places_may_be_missing_or_follow_from_scores() -> None:
    answers = line(
        {"rank": 3, "ranks": {"helpful": 1}, "scores": {"helpful": 0.1, "clear": 0.5}},
        {"rank": None, "scores": {"helpful": 0.9, "clear": 0.75}, "total": 0.5},
        {"rank": 1, "ranks": {"helpful": 1}, "scores": {"clear": 0.5}},
        {},
    )["answers"]
    assert judged(answers, None) == ([3, None, 1, None], [None, 0.5, None, None])
    assert judged(answers, "helpful") == ([1, None, 1, None], [0.1, 0.9, None, None])  # places go before scores
    assert judged(answers, "clear") == ([1, 0, 1, None], [0.5, 0.75, 0.5, None])
    assert judged(answers, "fluent") == ([None] * 4, [None] * 4)
    assert telling([{"answers": answers}], PRINCIPLES) == ("clear",)  # under helpful nobody is better than another


def test_rankings_become_ids_ranks_and_scores(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(
        tmp_path / "own.jsonl",
        line({"rank": 1, "total": -0.12346}, {}, {"rank": 0, "ranks": {"clear": 2}, "finished": False}),
        line({"rank": 2}, {"rank": 2}),  # tells nothing
        line({"scores": {"helpful": 0}}, {"scores": {"helpful": 7.5}}),
    )
    first, last = rankings(read_rankings(path, PRINCIPLES), tokenizer, HEAD, 64)
    prompt = prompt_ids(tokenizer, ASKED)
    assert first.answers == [prompt + tokenizer.encode("a") + [tokenizer.im_end], prompt + tokenizer.encode("c")]
    assert first.ranks.tolist() == [[1, -1, -1], [0, -1, 2]]
    assert first.scores.tolist() == [[-1235, NO_SCORE, NO_SCORE], [NO_SCORE] * 3]
    assert last.where == f"{path}:3" and last.ranks.tolist() == [[-1, 1, -1], [-1, 0, -1]]
    assert last.scores[:, 1].tolist() == [0, 75000] and [last.pairs(number) for number in range(3)] == [0, 1, 0]
    with pytest.raises(
        InputError, match=rf"own.jsonl:1: answers\[0\] and its query have {len(first.answers[0])} tokens"
    ):
        rankings(read_rankings(path, PRINCIPLES), tokenizer, HEAD, len(first.answers[0]) - 1)


def test_a_query_is_either_learnt_from_or_held_out() -> None:
    records = [
        line({"rank": 0}, {"rank": 1}, ask=f"query {number // 2}") | {"where": f"own.jsonl:{number}"}
        for number in range(40)
    ]
    train, held = split(records, 0.2, seed=1)
    assert (len(train), len(held)) == (32, 8)
    asked = [{record["messages"][0]["content"] for record in part} for part in (train, held)]
    assert not asked[0] & asked[1] and asked[1] != {f"query {number}" for number in range(4)}
    assert [record for record in records if record in train] == train  # in their order
    assert len(split(records, 0.0, seed=1)[1]) == 2  # one query at least


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"answers": []}, "own.jsonl:2: messages is empty"),
        ({"messages": 5}, "own.jsonl:2: messages is empty"),
        ({"messages": ASKED, "answers": [{"text": "a"}]}, "own.jsonl:2: answers must be a list of two or more"),
        (line({"text": 3}, {}), r"own.jsonl:2: answers\[0\] must be an object whose text is a string"),
        (line({}, {"finished": 1}), r"own.jsonl:2: answers\[1\].finished=1 must be true or false"),
        (line({}, {"rank": -1}), r"own.jsonl:2: answers\[1\].rank=-1 must be a whole number from 0"),
        (line({"rank": True}, {}), r"own.jsonl:2: answers\[0\].rank=True must be a whole number"),
        (line({"ranks": {"clear": 0.5}}, {}), r"answers\[0\].ranks.clear=0.5 must be a whole number"),
        (line({"ranks": {"nice": 0}}, {}), r"answers\[0\].ranks: 'nice' is no principle; there are harmless, helpful"),
        (line({"scores": [1]}, {}), r"answers\[0\].scores=\[1\] must be an object"),
        (line({"scores": {"clear": "x"}}, {}), r"answers\[0\].scores.clear='x' must be a number"),
        (line({"total": 1e9}, {}), r"answers\[0\].total=1000000000.0 must be a number from -100000 to 100000"),
    ],
)
def test_a_bad_ranking_is_named_by_its_line(tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "own.jsonl", line({"rank": 0}, {"rank": 1}), bad)
    with pytest.raises(InputError, match=message):
        read_rankings(path, PRINCIPLES)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an answer without a rank is not the worst",
        "trainers/reward.py",
        "[-1 if rank is None else rank",
        "[99 if rank is None else rank",
        None,
    ),
    (
        "no held-out ranking has a query that was learnt from",
        "trainers/files/rankings.py",
        'json.dumps(record["messages"], ensure_ascii=False)',
        'record["where"]',
        None,
    ),
]

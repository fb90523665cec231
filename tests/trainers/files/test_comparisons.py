"""Rankings in the forms that they are published in: what query and answers each becomes, or why it becomes none."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from conf.errors import InputError
from trainers.files.comparisons import comparison
from trainers.files.rankings import judged, read_rankings

WHERE = "own.jsonl:7"
S, U, A = "system", "user", "assistant"
HH = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: "

Turns = list[tuple[str, str]]


def told(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


ASK = told((U, "q"))
PAIR = [{"text": "x", "rank": 0}, {"text": "y", "rank": 1}]
FORMS: dict[str, tuple[dict[str, Any], Turns, list[dict[str, Any]]]] = {  # name: record, its query, its answers
    "ours": ({"messages": ASK, "answers": [{"text": "x"}, {"text": "y"}]}, [(U, "q")], [{"text": "x"}, {"text": "y"}]),
    "TRL in texts": ({"prompt": "q", "chosen": "x", "rejected": "y"}, [(U, "q")], PAIR),
    "TRL in messages": ({"prompt": ASK, "chosen": told((A, "x")), "rejected": told((A, "y"))}, [(U, "q")], PAIR),
    "TRL, the prompt within": (
        {"chosen": told((S, "s"), (U, "q"), (A, "x")), "rejected": told((S, "s"), (U, "q"), (A, "y"))},
        [(S, "s"), (U, "q")],
        PAIR,
    ),
    "the prompt beside and within": (
        {"prompt": ASK, "chosen": told((U, "q"), (A, "x")), "rejected": told((U, "q"), (A, "y"))},
        [(U, "q")],
        PAIR,
    ),
    "UltraFeedback": (
        {
            "prompt": "q",
            "prompt_id": "1",
            "chosen": told((U, "q"), (A, "x")),
            "rejected": told((U, "q"), (A, "y")),
            "messages": told((U, "q"), (A, "x")),
            "score_chosen": 8.5,
            "score_rejected": 4.0,
        },
        [(U, "q")],
        [{"text": "x", "rank": 0, "total": 8.5}, {"text": "y", "rank": 1, "total": 4.0}],
    ),
    "HH-RLHF": ({"chosen": HH + "x", "rejected": HH + "y"}, [(U, "a"), (A, "b"), (U, "c")], PAIR),
    "a transcript to go on with": (
        {"prompt": HH, "chosen": "x", "rejected": "y"},
        [(U, "a"), (A, "b"), (U, "c")],
        PAIR,
    ),
    "Orca": ({"system": "s", "question": "q", "chosen": "x", "rejected": "y"}, [(S, "s"), (U, "q")], PAIR),
    "LLaMA-Factory's Alpaca": (
        {"instruction": "q", "input": "r", "history": [["a", "b"]], "chosen": "x", "rejected": "y"},
        [(U, "a"), (A, "b"), (U, "q\nr")],
        PAIR,
    ),
    "LLaMA-Factory's ShareGPT": (
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "x"},
            "rejected": {"from": "gpt", "value": "y"},
        },
        [(U, "q")],
        PAIR,
    ),
    "ranks": (
        {"prompt": "q", "completions": ["x", "y", "z"], "ranks": [1, 0, 1]},
        [(U, "q")],
        [{"text": "x", "rank": 1}, {"text": "y", "rank": 0}, {"text": "z", "rank": 1}],
    ),
    "scores": (
        {"prompt": ASK, "responses": [told((A, "x")), told((A, "y"))], "scores": [0.5, 2]},
        [(U, "q")],
        [{"text": "x", "total": 0.5}, {"text": "y", "total": 2}],
    ),
    "both": (
        {"messages": ASK, "responses": [told((A, "x"))[0], "y"], "rank": [0, 1], "rewards": [1.5, -1.0]},
        [(U, "q")],
        [{"text": "x", "rank": 0, "total": 1.5}, {"text": "y", "rank": 1, "total": -1.0}],
    ),
    "ours with a prompt": ({"prompt": "q", "answers": [{"text": "x", "rank": 0}]}, [(U, "q")], PAIR[:1]),
    "ORPO": ({"instruction": "q", "chosen_response": "x", "rejected_response": "y"}, [(U, "q")], PAIR),
    "CValues": ({"prompt": "q", "pos_resp": "x", "neg_resp": "y", "domain": "d"}, [(U, "q")], PAIR),
    "StackExchange": ({"qid": 1, "question": "q", "response_j": "x", "response_k": "y"}, [(U, "q")], PAIR),
    "UltraFeedback's own": (
        {
            "source": "s",
            "instruction": "q",
            "completions": [{"response": "x", "overall_score": 4.5}, {"response": "y", "overall_score": 2.0}],
        },
        [(U, "q")],
        [{"text": "x", "total": 4.5}, {"text": "y", "total": 2.0}],
    ),
    "Nectar": (
        {
            "prompt": "\n\nHuman: q\n\nAssistant: ",
            "answers": [{"answer": "x", "model": "m", "rank": 1.0}, {"answer": "y", "model": "n", "rank": 2.0}],
        },
        [(U, "q")],
        [{"text": "x", "rank": 1}, {"text": "y", "rank": 2}],
    ),
    "comparisons of GPT-4": (
        {"user_input": "q", "responses_and_scores": [{"response": "x", "score": 9}, {"response": "y", "score": 7}]},
        [(U, "q")],
        [{"text": "x", "total": 9}, {"text": "y", "total": 7}],
    ),
    "PKU-SafeRLHF": (
        {"prompt": "q", "response_0": "x", "response_1": "y", "better_response_id": 1, "safer_response_id": 0},
        [(U, "q")],
        [
            {"text": "x", "rank": 1, "ranks": {"helpful": 1, "harmless": 0}},
            {"text": "y", "rank": 0, "ranks": {"helpful": 0, "harmless": 1}},
        ],
    ),
    "HelpSteer2": ({"prompt": "q", "response_1": "x", "response_2": "y", "preference_strength": -2}, [(U, "q")], PAIR),
    "SHP": ({"history": "q", "human_ref_A": "x", "human_ref_B": "y", "labels": 1}, [(U, "q")], PAIR),
    "Chatbot Arena": (
        {
            "winner": "model_b",
            "conversation_a": told((U, "q"), (A, "x")),
            "conversation_b": told((U, "q"), (A, "y")),
        },
        [(U, "q")],
        [{"text": "x", "rank": 1}, {"text": "y", "rank": 0}],
    ),
    "Chatbot Arena, a tie": (
        {"winner": "tie", "conversation_a": told((U, "q"), (A, "x")), "conversation_b": told((U, "q"), (A, "y"))},
        [(U, "q")],
        [{"text": "x", "rank": 0}, {"text": "y", "rank": 0}],
    ),
    "WebGPT": (
        {"question": {"full_text": "q"}, "answer_0": "x", "answer_1": "y", "score_0": 0.5, "score_1": -0.5},
        [(U, "q")],
        [{"text": "x", "total": 0.5}, {"text": "y", "total": -0.5}],
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_becomes_this_ranking(name: str) -> None:
    record, asked, answers = FORMS[name]
    assert comparison(record, WHERE) == {"messages": told(*asked), "answers": answers}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"text": "a"}, "the fields text make no ranking; one has messages and answers, prompt, chosen and rejected, or"),
    (
        {"prompt": "q", "completion": "x", "label": True},
        "make no ranking.*good or bad by itself (KTO) is compared with",
    ),
    ({"chosen": "x", "rejected": "y"}, "nothing is asked; give a prompt"),
    ({"prompt": "q", "chosen": "x", "rejected": "x"}, "chosen and rejected are the same"),
    ({"prompt": "q", "chosen": " ", "rejected": "x"}, "chosen=' ' must be an answer, or a conversation that ends with"),
    ({"prompt": "q", "chosen": [], "rejected": "x"}, "chosen=[] must be an answer"),
    ({"chosen": HH + "x", "rejected": "\n\nHuman: z\n\nAssistant: y"}, "chosen and rejected part before their last"),
    ({"chosen": told((U, "q")), "rejected": told((U, "q"))}, "the last turn of chosen is the user's; it must be the"),
    ({"prompt": "other", "chosen": HH + "x", "rejected": HH + "y"}, "prompt beside messages: is it asked too?"),
    ({"prompt": "q", "sytem": "s", "chosen": "x", "rejected": "y"}, "field 'sytem' looks like 'system'"),
    ({"prompt": "q", "completions": ["x", "y"]}, "completions need ranks, 0 the best, or scores, of which more is bet"),
    ({"prompt": "q", "completions": ["x"], "labels": [True]}, "labels of single answers or steps are not learnt from"),
    ({"prompt": "q", "completions": ["x", "y"], "ranks": [0]}, "ranks must be a list with one for each of the 2 compl"),
    (
        {"prompt": "q", "response_0": "x", "response_1": "y", "better_response_id": True},
        "better_response_id=True does not say which answer is the better one",
    ),
    (
        {"prompt": "q", "response_1": "x", "response_2": "y", "preference_strength": None},
        "preference_strength=None doe",
    ),
    ({"prompt": "q", "completions": "x", "ranks": [0]}, "completions must be a list of answers, not str"),
    ({"prompt": "q", "responses": [told((U, "a"), (A, "b")), "c"], "ranks": [0, 1]}, "responses[0] must be one answer"),
    (
        {"messages": told((S, "s")), "responses": ["x", "y"], "ranks": [0, 1]},
        "the roles are system; user and assistant",
    ),
]


@pytest.mark.parametrize(("record", "message"), REFUSED)
def test_what_is_no_ranking_is_refused_by_name(record: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        comparison(record, WHERE)
    text = str(caught.value)
    assert text.startswith(f"{WHERE}: ") and "\n" not in text
    assert re.search(".*".join(map(re.escape, message.split(".*"))), text), text


def test_they_are_read_and_their_values_checked(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    lines = [FORMS["scores"][0], FORMS["HH-RLHF"][0]]
    path.write_text(json.dumps(lines, indent=1), "utf-8")
    first, second = read_rankings(path, [])
    assert judged(first["answers"], None) == ([1, 0], [0.5, 2]) and judged(second["answers"], None)[0] == [0, 1]
    assert second["messages"] == told((U, "a"), (A, "b"), (U, "c"))
    path.write_text(json.dumps([FORMS["ranks"][0] | {"ranks": [1, 0, 0.5]}]), "utf-8")
    with pytest.raises(
        InputError, match=r"own\.json:1: answers\[2\]\.rank=0\.5 must be a whole number from 0, the best"
    ):
        read_rankings(path, [])


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "the chosen answer is the better one",
        "trainers/files/comparisons.py",
        '{"text": chosen, "rank": 0}, {"text": rejected, "rank": 1}',
        '{"text": chosen, "rank": 1}, {"text": rejected, "rank": 0}',
        "test_a_form_becomes_this_ranking",
    ),
    (
        "answers to two conversations are not compared",
        "trainers/files/comparisons.py",
        "    if before != other:",
        "    if False:",
        "test_what_is_no_ranking_is_refused_by_name",
    ),
    (
        "two equal answers tell nothing",
        "trainers/files/comparisons.py",
        "    if chosen == rejected:",
        "    if False:",
        "test_what_is_no_ranking_is_refused_by_name",
    ),
    (
        "a verdict names the better answer",
        "trainers/files/comparisons.py",
        "            return 1 - place\n",
        "            return place\n",
        "test_a_form_becomes_this_ranking",
    ),
    (
        "ranks and scores are not mixed up",
        "trainers/files/comparisons.py",
        '(("rank", RANKS), ("total", SCORES))',
        '(("rank", SCORES), ("total", RANKS))',
        "test_a_form_becomes_this_ranking",
    ),
]

"""Conversations as rows: what of them carries the loss, and what happens to those that are too long."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conf.errors import InputError
from conf.knobs.text import Tokenizer as Settings
from conf.knobs.training import Sft, TooLong
from moe.tasks.task import Sample
from moe.text.chat import sample_ids
from moe.text.tokenizer import Tokenizer
from tests.moe.text.parents import parent
from trainers.rows.conversations import by_task, fitting, piece, write
from trainers.rows.rows import Rows


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["user assistant system\n abcdefgh"] * 4, Settings(vocab_size=450))


def sample(number: int, task: str = "say", answer: str = "a") -> Sample:
    messages = [{"role": "user", "content": "b"}, {"role": "assistant", "content": answer}]
    return Sample(id=f"{task}-{number}", task=task, messages=messages)


def test_every_assistant_turn_carries_loss_and_nothing_else(tokenizer: Tokenizer, tmp_path: Path) -> None:
    turns = [("system", "ab"), ("user", "cd"), ("assistant", "ef"), ("user", "gh"), ("assistant", "dcba")]
    messages = [{"role": role, "content": content} for role, content in turns]
    samples = [Sample(id="one", task="say", messages=messages), sample(2, answer="hgf")]
    rows = Rows(write(tmp_path, samples, tokenizer, Sft(row_length=200), "chat"))
    row = rows.fetch(np.array([0]))
    learnt = row["tokens"][row["loss"] == 1].tolist()
    end = [tokenizer.im_end]
    answers = [[*tokenizer.encode(text), *end] for text in ("ef", "dcba", "hgf")]
    order = rows.documents([0])[0]
    wanted = [answers[0] + answers[1], answers[2]]
    assert sorted(order) == [0, 1] and learnt == wanted[order[0]] + wanted[order[1]]


def test_a_sample_that_is_too_long_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^sample say-1: \d+ tokens do not fit into sft.row_length=40; try sft.row_len"
    ):
        write(tmp_path, [sample(0), sample(1, answer="abcd" * 20)], tokenizer, Sft(row_length=40), "chat")


def test_a_muted_answer_carries_no_loss(tokenizer: Tokenizer, tmp_path: Path) -> None:
    turns = [("system", "ab"), ("user", "cd"), ("assistant", "ef"), ("user", "gh"), ("assistant", "dcba")]
    messages = [{"role": role, "content": content} for role, content in turns]
    one = Sample(id="one", task="say", messages=messages, muted=(2,))
    assert Sample.of(json.loads(json.dumps(one.line))) == one
    ids, mask = piece(one, tokenizer)
    learnt = [token for token, learns in zip(ids, mask, strict=True) if learns]
    assert learnt == [*tokenizer.encode("dcba"), tokenizer.im_end]
    row = Rows(write(tmp_path, [one], tokenizer, Sft(row_length=200), "chat")).fetch(np.array([0]))
    assert row["tokens"][row["loss"] == 1].tolist() == learnt


def test_samples_that_are_too_long_are_left_out_if_so_asked(
    tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    samples, unseen = [sample(0), sample(1, answer="abcd" * 20)], [sample(2)]
    assert fitting(samples, unseen, tokenizer, Sft(row_length=40), "chat") == (samples, unseen, {})
    cfg = Sft(row_length=40, too_long=TooLong.drop)
    assert fitting(samples, unseen, tokenizer, cfg, "chat") == (samples[:1], unseen, {"too_long": 1.0})
    length = len(piece(samples[1], tokenizer)[0])
    assert capsys.readouterr().out == (
        f"chat: 1 of 3 samples are longer than sft.row_length=40, the longest {length} tokens (say-1); "
        "they are left out\n"
    )
    with pytest.raises(InputError, match=r"^1 of 2 samples are .*, and none is left to train on; raise it$"):
        fitting(samples[1:], unseen, tokenizer, cfg, "chat")
    assert fitting(samples[:1], unseen, tokenizer, cfg, "chat")[2] == {"too_long": 0.0}


def test_a_parents_template_writes_the_rows_and_what_it_refuses_is_named(tmp_path: Path) -> None:
    llama = Tokenizer.load(parent("llama2", tmp_path / "llama2"))
    said = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]
    row = Rows(write(tmp_path / "rows", [replace(sample(0), messages=said)], llama, Sft(row_length=200), "chat"))
    fetched = row.fetch(np.array([0]))
    ids, mask = sample_ids(llama, said)
    assert fetched["tokens"][0, : len(ids)].tolist() == ids and fetched["loss"][0, : len(ids)].tolist() == mask
    assert llama.specials[ids[0]] == "<s>" and ids[-1] == llama.turn_end and mask[-1] == 1
    twice = replace(sample(1), messages=[said[0], *said])
    with pytest.raises(InputError, match=r"^sample say-1: .*llama2: the chat template refuses .* roles must alternate"):
        write(tmp_path / "refused", [twice], llama, Sft(row_length=200), "chat")


def test_each_task_has_its_own_samples() -> None:
    mixed = [sample(0, "b"), sample(1, "a"), sample(2, "b")]
    assert by_task(mixed) == {"a": [mixed[1]], "b": [mixed[0], mixed[2]]}


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "user turns carry no loss",
        "moe/text/chat.py",
        'learnt = int(message["role"] == "assistant")',
        'learnt = int(message["role"] != "system")',
        None,
    ),
    (
        "every answer of a conversation carries loss",
        "moe/text/chat.py",
        'learnt = int(message["role"] == "assistant")',
        "learnt = int(message is messages[-1])",
        None,
    ),
    (
        "an answer of weight 0 carries no loss",
        "trainers/rows/conversations.py",
        "if place in silent for at in run",
        "if place not in silent for at in run",
        "test_a_muted_answer_carries_no_loss",
    ),
    (
        "a sample that is left out is counted",
        "trainers/rows/conversations.py",
        '{"too_long": float(len(gone))}',
        '{"too_long": 0.0}',
        "test_samples_that_are_too_long_are_left_out_if_so_asked",
    ),
]

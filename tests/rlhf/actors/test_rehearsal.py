"""Which samples are learnt again."""

import json
from pathlib import Path

import pytest
import torch

from conf.errors import InputError
from conf.knobs.text import Tokenizer as Settings
from moe.text.tokenizer import Tokenizer
from rlhf.actors.rehearsal import Replay, tasks_of

SAID = {"form": ["五言绝句"], "talk": ["春眠", "不觉晓"]}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["春眠不觉晓，处处闻啼鸟。"], Settings(vocab_size=512, min_frequency=1))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = [
        {
            "id": f"{task}-{number}",
            "task": task,
            "messages": [{"role": "user", "content": task}, {"role": "assistant", "content": text}],
        }
        for task, texts in SAID.items()
        for number, text in enumerate(texts)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return tmp_path / "train.jsonl"


def answers(replay: Replay, tokenizer: Tokenizer, number: int, count: int) -> list[str]:
    drawn = replay.draw(number, count)
    return [tokenizer.decode(row[mask.bool()].tolist()) for row, mask in zip(drawn.tokens, drawn.mask, strict=True)]


def test_tasks_come_by_turns_and_a_draw_hangs_on_seed_and_number(file: Path, tokenizer: Tokenizer) -> None:
    replay = Replay(file, tokenizer, seed=3)
    for number in range(4):
        drawn = answers(replay, tokenizer, number, 4)
        assert drawn[::2] == SAID["form"] * 2 and set(drawn[1::2]) <= set(SAID["talk"])
        assert torch.equal(replay.draw(number, 4).tokens, Replay(file, tokenizer, seed=3).draw(number, 4).tokens)
    odd = [answers(replay, tokenizer, number, 1)[0] for number in range(8)]  # one at a time: the turns go on
    assert odd[::2] == SAID["form"] * 4 and set(odd[1::2]) == set(SAID["talk"])
    many = [tuple(answers(Replay(file, tokenizer, seed=seed), tokenizer, 0, 16)) for seed in range(3)]
    assert len(set(many)) == 3


def test_only_the_answer_and_its_end_are_learnt(file: Path, tokenizer: Tokenizer) -> None:
    drawn = Replay(file, tokenizer, seed=0, tasks=["form"]).draw(0, 1)
    learnt = drawn.tokens[0][drawn.mask[0].bool()].tolist()
    assert learnt == [*tokenizer.encode("五言绝句"), tokenizer.im_end]
    assert drawn.logprobs.abs().max() == 0.0
    assert tokenizer.decode(drawn.tokens[0][~drawn.mask[0].bool()].tolist()).startswith("user\nform")


def test_a_task_that_the_file_lacks_is_named(file: Path) -> None:
    assert [samples[0].task for samples in tasks_of(file, ["talk"])] == ["talk"]
    assert [len(samples) for samples in tasks_of(file, [])] == [1, 2]
    with pytest.raises(InputError, match=rf"^ppo.replay_tasks=song: {file} has none; there are form, talk$"):
        tasks_of(file, ["form", "song"])


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "tasks are replayed by turns",
        "rlhf/actors/rehearsal.py",
        "self._tasks[(number * count + turn) % len(self._tasks)]",
        "self._tasks[turn % len(self._tasks)]",
        "test_tasks_come_by_turns_and_a_draw_hangs_on_seed_and_number",
    ),
    (
        "the end of a replayed answer is learnt",
        "rlhf/actors/rehearsal.py",
        '(answer,) = answer_ids(self._tokenizer, messages[:-1], [messages[-1]["content"]])',
        'answer = answer_ids(self._tokenizer, messages[:-1], [messages[-1]["content"]])[0][:-1]',
        "test_only_the_answer_and_its_end_are_learnt",
    ),
    (
        "a replayed task with a typo is named",
        "rlhf/actors/rehearsal.py",
        "if name not in by_task:",
        "if not by_task:",
        "test_a_task_that_the_file_lacks_is_named",
    ),
]

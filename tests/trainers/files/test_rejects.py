"""Bad samples and rankings are set aside, as many as may be, and named where they are more."""

import json
from pathlib import Path
from typing import Any

import pytest

from conf.errors import InputError
from conf.knobs.alignment import Tasks
from conf.knobs.training import Sft
from moe.tasks.task import Sample
from trainers.files.rankings import read_rankings
from trainers.files.rejects import rejects_in
from trainers.files.samples import read_samples
from trainers.tasks import read_own, told

GOOD = {"instruction": "a", "output": "b"}
TOOL = {"messages": [{"role": "tool", "content": "x"}]}
OTHER, THIRD = GOOD | {"instruction": "c"}, GOOD | {"instruction": "d"}
CHOICES = GOOD | {"choices": ["x", "y"]}


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines), "utf-8")
    return path


def rejected(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rejects.jsonl").read_text("utf-8").splitlines()]


def test_bad_samples_lie_in_a_file_with_their_reasons(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", GOOD, TOOL, '{"instruction": ', OTHER, CHOICES, THIRD)
    samples, read = read_own([str(path)], tmp_path, Sft(max_bad_fraction=0.5))
    assert [sample.id for sample in samples] == ["own.jsonl-1", "own.jsonl-4", "own.jsonl-6"]
    assert read == {"read": 6.0, "rejected": 3.0, "duplicates": 0.0}
    second = len(json.dumps(GOOD)) + 1
    third = second + len(json.dumps(TOOL)) + 1
    wrong = "messages[0].role='tool': the chat format has no turns of tools; leave it out"
    broken = "broken JSON: Expecting value at character 17 of the record"
    first, then, last = rejected(tmp_path)
    assert first == {"file": str(path), "line": 2, "offset": second, "reason": wrong}
    assert then == {"file": str(path), "line": 3, "offset": third, "reason": broken}
    assert last["line"] == 5 and last["reason"] == "no label, which must be one of choices=['x', 'y']"


def test_above_the_cap_the_first_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "own.jsonl", GOOD, TOOL, TOOL, OTHER)
    with pytest.raises(InputError) as caught:
        read_own([str(path)], tmp_path, Sft(max_bad_fraction=0.49))
    assert str(caught.value) == (
        f"{path}:2: messages[0].role='tool': the chat format has no turns of tools; leave it out "
        f"(byte {len(json.dumps(GOOD)) + 1}); 2 of 4 records are bad, more than sft.max_bad_fraction=0.49"
    )
    assert len(read_own([str(path)], tmp_path, Sft(max_bad_fraction=0.5))[0]) == 2
    with pytest.raises(InputError, match=r"own\.jsonl:2: messages\[0\]\.role='tool'.*\(byte \d+\)$"):
        read_own([str(path)], tmp_path, Sft())
    with pytest.raises(InputError, match=r"^sft\.files=\['.*own\.jsonl'\]: none of the 1 records is a sample$"):
        read_own([str(write(path, TOOL))], tmp_path, Sft(max_bad_fraction=1.0))


def test_samples_for_evaluation_are_not_set_aside(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"own\.jsonl:2: "):
        read_samples(write(tmp_path / "own.jsonl", GOOD, TOOL))


def test_bad_rankings_too(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "x", "rejected": "y"}
    path = write(tmp_path / "own.jsonl", pair, pair | {"rejected": "x"}, pair | {"score_chosen": 1e9})
    with rejects_in(tmp_path, "reward.max_bad_fraction", 0.7) as rejects:
        (record,) = read_rankings(path, [], rejects)
    assert record["where"] == f"{path}:1" and (rejects.read, rejects.bad) == (3, 2)
    assert [(one["line"], one["reason"]) for one in rejected(tmp_path)] == [
        (2, "chosen and rejected are the same"),
        (3, "answers[0].total=1000000000.0 must be a number from -100000 to 100000"),
    ]
    with (
        pytest.raises(InputError, match=r"; 2 of 3 records are bad, more than reward\.max_bad_fraction=0\.5$"),
        rejects_in(tmp_path, "reward.max_bad_fraction", 0.5) as rejects,
    ):
        read_rankings(path, [], rejects)


def test_what_becomes_of_ones_samples_is_told() -> None:
    one = Sample(id="a", task="say", messages=[])
    output = {"train": [one] * 34, "val": [one] * 4, "prompts": [one] * 9}
    assert told({"read": 50.0, "rejected": 3.0}, output, Tasks()) == (
        "tasks: of 50 samples 34 are trained on, 4 validate, 9 are queries for rankings and RL (tasks.prompts), "
        "3 bad ones are in rejects.jsonl"
    )
    assert told({"read": 50.0, "rejected": 0.0}, output, Tasks(queries=["q.jsonl"])) == (
        "tasks: of 50 samples 34 are trained on, 4 validate"
    )


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "no more is set aside than may be",
        "trainers/files/rejects.py",
        "        if self.bad > self._most * self.read:",
        "        if False:",
        "test_above_the_cap_the_first_is_named",
    ),
    (
        "unasked the first bad record stops",
        "trainers/files/rejects.py",
        "        if not self._most:",
        "        if False:",
        "test_samples_for_evaluation_are_not_set_aside",
    ),
    (
        "a bad record is counted, whoever refuses it",
        "trainers/files/rejects.py",
        "except (BadRecord, InputError) as error:",
        "except BadRecord as error:",
        "test_bad_rankings_too",
    ),
]

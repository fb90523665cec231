"""A user's own samples: both forms, and what is wrong with a line."""

import json
from pathlib import Path

import pytest

from conf.errors import InputError
from moe.tasks.task import Sample
from trainers.files.samples import read_samples

ALPACA = '{"instruction": "问", "input": "甲", "output": "答"}'


def test_own_samples_in_both_forms(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    turns = [("system", "短"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    file.write_text(ALPACA + "\n" + json.dumps({"task": "talk", "messages": messages}) + "\n")
    first, second = read_samples(file)
    asked = [{"role": "user", "content": "问\n甲"}, {"role": "assistant", "content": "答"}]
    assert first == Sample(id="own.jsonl-1", task="own", messages=asked)
    assert second.task == "talk" and second.messages == messages


def test_whole_numbers_are_taken_for_names_and_labels(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text('{"id": 17, "instruction": "2+3", "output": "5", "label": 5, "source": "x"}\n')
    (sample,) = read_samples(file)
    assert (sample.id, sample.label, sample.fields) == ("17", "5", {"source": "x"})
    assert Sample.of(json.loads(json.dumps(sample.line))) == sample


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"instruction": "a"}', "no field 'output'"),
        ('{"instruction": "a", "output": ""}', "output is empty"),
        ('{"instruction": 3, "output": "b"}', "instruction must be a string, not int"),
        ('{"messages": []}', "messages must be a list of one message or more"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "the roles are user; user and assistant must take turns"),
        (
            '{"messages": [{"role": "narrator", "content": "a"}]}',
            r"messages\[0\]\.role='narrator' must be system, user or assist",
        ),
        ('{"messages": [{"role": "user", "content": " "}]}', r"messages\[0\]\.content=. . must be a text that is"),
        ('{"messages": [3]}', r"messages\[0\] must be an object"),
        ('{"instruction": ', "JSON"),
        ("[1]", "object"),
    ],
)
def test_a_bad_sample_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(ALPACA + "\n" + line + "\n")
    with pytest.raises(InputError, match=message) as caught:
        read_samples(file)
    assert str(caught.value).startswith(f"{file}:2") and "\n" not in str(caught.value)

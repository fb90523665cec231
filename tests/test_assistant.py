"""data/assistant is what its topics make, and the general domain's checks agree about which answers keep the form."""

import json
from collections import Counter
from pathlib import Path

from moe.tasks.checks import broken, read_checks
from tests.assistant import FOLDER, forms, write


def test_the_files_are_what_the_topics_make(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("instructions", "queries"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (FOLDER / f"{name}.jsonl").read_bytes(), (
            "python -m tests.assistant data/assistant"
        )


def test_every_form_is_kept_by_the_one_answer_and_not_by_the_other() -> None:
    for topic in map(json.loads, (FOLDER / "topics.jsonl").read_text("utf-8").splitlines()):
        for task, prompt, checks, kept, other in forms(topic):
            read_checks(checks)
            assert not any(broken(check, kept) for check in checks), (prompt, kept)
            assert any(broken(check, other) for check in checks), (task, prompt, other)


def test_samples_and_queries_have_no_question_in_common() -> None:
    samples, queries = (
        [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for name in ("instructions", "queries")
    )
    assert (len(samples), len(queries)) == (308, 196)
    assert not {sample["instruction"] for sample in samples} & {query["prompt"] for query in queries}
    tasks = Counter(sample["task"] for sample in samples)
    assert len(tasks) == 14 and min(tasks.values()) == 22


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a form that a query asks for can be checked",
        "moe/tasks/checks.py",
        'LANGUAGES = {"en": "latin", "zh": "han"}',
        'LANGUAGES = {"en": "han", "zh": "latin"}',
        "test_every_form_is_kept_by_the_one_answer_and_not_by_the_other",
    ),
]

"""A line of somebody's queries: what it becomes, and how it is refused."""

import re
from typing import Any

import pytest

from conf.errors import InputError
from moe.tasks.queries import read_query
from moe.tasks.task import Sample

WHERE = "my/quiz.v2.jsonl:17"
USER, REPLY = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}


def test_a_prompt_is_enough() -> None:
    assert read_query({"prompt": "2 + 3?"}, WHERE) == Sample(
        id="quiz.v2.jsonl-17", task="quiz", messages=[{"role": "user", "content": "2 + 3?"}]
    )


def test_all_fields() -> None:
    check = {"rule": "words", "at_most": 9}
    line = {"id": 7, "task": "sums", "messages": [{"role": "system", "content": "Be brief"}, USER, REPLY, USER]}
    made = read_query(line | {"label": 5, "choices": [4, 5], "reference": "It is 5.", "checks": [check]}, WHERE)
    assert (made.id, made.task, made.label, made.prompt, len(made.messages)) == ("7", "sums", "5", "Hi", 4)
    assert made.fields == {"choices": ["4", "5"], "reference": "It is 5.", "checks": [check]}
    assert Sample.of(made.line) == made


def test_a_prompt_may_be_messages_and_a_content_parts() -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}
    for line in ({"prompt": [parts]}, {"messages": [parts]}, {"prompt": [{"from": "human", "value": "Hi"}]}):
        assert read_query(line, WHERE).messages == [USER]


def test_a_domain_may_have_fields_of_its_own() -> None:
    assert read_query({"prompt": "a", "form": "haiku"}, WHERE, ("form",)).fields == {"form": "haiku"}
    with pytest.raises(InputError, match="no field 'form'; a query has id, task, messages, prompt, .*checks, title$"):
        read_query({"prompt": "a", "form": "haiku"}, WHERE, ("title",))


def test_the_reference_is_the_label_where_it_is_a_choice() -> None:
    assert read_query({"prompt": "a", "choices": ["x", "y"], "reference": "y"}, WHERE).label == "y"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "the query has neither prompt nor messages"),
        ({"prompt": "a", "messages": [USER]}, "the query has both prompt and messages; give one of them"),
        ({"prompt": "a", "refrence": "b"}, "no field 'refrence'; a query has id, task"),
        ({"prompt": " "}, "prompt=' ' must be a text that is not empty"),
        ({"prompt": 3}, "prompt=3 must be a text that is not empty"),
        ({"messages": "Hi"}, "messages must be a list of one message or more"),
        ({"messages": [USER, 3]}, "messages[1] must be an object with role and content"),
        (
            {"messages": [{"role": "robot", "content": "a"}]},
            "messages[0].role='robot' must be system, user or assistant",
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content=None must be a text"),
        ({"messages": [USER, REPLY]}, "the roles are user, assistant; user and assistant must take turns, the user"),
        ({"messages": [USER, USER]}, "the roles are user, user;"),
        ({"messages": [REPLY, USER]}, "the roles are assistant, user;"),
        ({"prompt": "a", "reference": "b", "references": ["c"]}, "both reference and references; give one of them"),
        ({"prompt": "a", "references": []}, "references=[] must be a list of 1 or more different texts"),
        ({"prompt": "a", "references": "b"}, "references='b' must be a list of 1 or more"),
        ({"prompt": "a", "reference": ""}, "reference='' must be a text"),
        ({"prompt": "a", "label": True}, "label=True must be a text"),
        ({"prompt": "a", "label": "z", "choices": ["x", "y"]}, "label='z', which must be one of choices=['x', 'y']"),
        ({"prompt": "a", "choices": ["x", "y"]}, "no label, which must be one of choices=['x', 'y']"),
        ({"prompt": "a", "label": "x", "choices": ["x"]}, "choices=['x'] must be a list of 2 or more different texts"),
        ({"prompt": "a", "label": "x", "choices": ["x", "x"]}, "choices=['x', 'x'] must be a list of 2 or more"),
        ({"prompt": "a", "checks": [{"rule": "wrods"}]}, "checks[0]: rule='wrods' is none; there are words"),
        ({"prompt": "a", "task": "a/b"}, "task='a/b' must be a name: no slash"),
        ({"prompt": "a", "id": [1]}, "id=[1] must be a text"),
    ],
)
def test_a_bad_line_is_named(record: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_query(record, WHERE)
    assert str(caught.value).startswith(f"{WHERE}: ") and "\n" not in str(caught.value)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a query's unknown field is refused",
        "moe/tasks/queries.py",
        "if name not in FIELDS and name not in known:",
        "if name not in FIELDS and name not in known and known:",
        "test_a_bad_line_is_named",
    ),
    (
        "a label must be among its choices",
        "moe/tasks/queries.py",
        "if label not in choices:",
        "if label is None:",
        "test_a_bad_line_is_named",
    ),
    (
        "a number as a label is taken as text",
        "moe/tasks/queries.py",
        "return str(value)",
        "return value",
        "test_all_fields",
    ),
]

"""Which answers name the label, and which name something else."""

import pytest

from moe.tasks.labels import right

CAPITALS = ["London", "Paris", "Rome"]


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("5", True),
        ("The answer is 5.", True),
        ("The answer is **5**", True),
        ("So 2 + 3 = 5.", True),
        ("#### 5", True),
        ("$\\boxed{5}$", True),
        ("It is 5, since 2 and 3 make 5", True),
        ("5, because 3 added to 2 is that", True),  # the other numbers are the question's
        ("答案是５。", True),
        ("5.0", True),
        ("五", True),
        ("15", False),
        ("-5", False),
        ("5.5", False),
        ("5 or 6", False),
        ("The answer is 5, no, the answer is 7", False),
        ("1 2 3 4 5 6", False),
        ("", False),
    ],
)
def test_a_number_is_right_by_value(answer: str, is_right: bool) -> None:
    assert right("5", answer, "What is 2 + 3?") is is_right


@pytest.mark.parametrize(
    ("answer", "is_right"),
    [
        ("Paris", True),
        ("It is PARIS.", True),
        ("B", True),
        ("(B)", True),
        ("B.", True),
        ("b) Paris", True),
        ("**B**", True),
        ("The answer is (B).", True),
        ("not Rome, but Paris", True),
        ("A. Paris", False),  # the letter says London
        ("Paris or Rome", False),
        ("Parisian", False),
        ("B or C", False),
        ("A", False),
        ("I see", False),
    ],
)
def test_of_several_choices_one_must_be_named(answer: str, is_right: bool) -> None:
    assert right("Paris", answer, "What is the capital of France?", CAPITALS) is is_right


def test_a_longer_choice_is_not_the_shorter_in_it() -> None:
    assert not right("York", "New York", "Where?", ["York", "New York"])
    assert right("New York", "It is New York.", "Where?", ["York", "New York"])


def test_choices_may_be_numbers_or_letters() -> None:
    assert right("5", "5", "2 + 3?", ["2", "5"]) and right("5", "2 + 3 = 5", "2 + 3?", ["2", "5"])
    assert right("5", "B", "2 + 3?", ["2", "5"]) and not right("5", "15", "2 + 3?", ["2", "5"])
    assert right("B", "The answer is B.", "Which?", ["A", "B"]) and not right("A", "A or B", "Which?", ["A", "B"])


def test_a_text_is_named_as_words_and_not_denied() -> None:
    assert right("Paris", "The capital of France is Paris.", "") and not right("Paris", "It is not Paris.", "")
    assert right("ＡＢＣ", "it is abc", "") and not right("correct", "That is incorrect.", "")
    assert right("是", "是的。", "") and not right("是", "不是。", "") and not right("能", "不能", "")
    assert right("唐代", "这首诗写于唐代。", "")
    assert right("C", "The answer is C.", "") and not right("A", "A banana.", "")


def test_the_alternatives_of_the_question_are_no_choice() -> None:
    asked = "Is the sky blue? Answer yes or no."
    assert not right("yes", "Yes or no.", asked) and right("yes", "Yes.", asked) and right("yes", "Yes, or so.", asked)
    assert not right("是", "是或不是", "天是蓝的吗？请答是或不是。")


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a number label is right by value, not by its digits",
        "moe/tasks/labels.py",
        "if (value := number(wanted)) is not None:",
        "if (value := number(wanted)) is not None and wanted not in said:",
        "test_a_number_is_right_by_value",
    ),
    (
        "an answer that names two choices is wrong",
        "moe/tasks/labels.py",
        'return next(iter(named or lettered)) if len(named | lettered) == 1 else ""',
        'return next(iter(sorted(named or lettered))) if named | lettered else ""',
        "test_of_several_choices_one_must_be_named",
    ),
    (
        "a denied label is not named",
        "moe/tasks/labels.py",
        "any(not _DENIED.search(",
        "any(True or not _DENIED.search(",
        "test_a_text_is_named_as_words_and_not_denied",
    ),
    (
        "a choice inside a longer one is not named",
        "moe/tasks/labels.py",
        'said = said.replace(choice, "\\n")',
        "pass",
        "test_a_longer_choice_is_not_the_shorter_in_it",
    ),
    (
        "the alternatives of the question are no answer to it",
        "moe/tasks/labels.py",
        "return False  # the alternatives",
        "pass  # the alternatives",
        "test_the_alternatives_of_the_question_are_no_choice",
    ),
]

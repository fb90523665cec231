"""What each format rule takes for kept and for broken, in English and in Chinese."""

import re
from typing import Any

import pytest

from conf.errors import InputError
from moe.tasks.checks import RULES, broken, read_checks


def holds(text: str, rule: str, **fields: Any) -> bool:
    check = {"rule": rule, **fields}
    assert read_checks([check]) == [check]
    return broken(check, text) == ""


@pytest.mark.parametrize(
    ("rule", "text", "count"),
    [
        ("words", "I don't like well-known things, 3.14 of 1,000.", 8),
        ("words", "法国的首都是Paris。", 7),
        ("words", "...", 0),
        ("words", "हिन्दी भाषा", 2),
        ("sentences", "It costs 3.14 dollars, e.g. here. Mr. J. K. Smith paid. Really?!", 3),
        ("sentences", "他说：“好。”然后走了！为什么？", 3),
        ("sentences", "嗯…… 好", 2),
        ("sentences", "i like cats. they are nice", 2),
        ("sentences", "1. Cut it.\n2. Eat it.", 2),
        ("sentences", "", 0),
        ("items", "- a\n* b\n• c\n1. d\n2) e\n一、己\n（二）庚", 7),
        ("items", "**bold** text\n-5 degrees\n1.5 litres\n2024 was good\na - b", 0),
        ("characters", " 你好 a\n", 4),
    ],
)
def test_counts(rule: str, text: str, count: int) -> None:
    assert holds(text, rule, at_least=count, at_most=count)
    assert not holds(text, rule, at_least=count + 1)
    assert count == 0 or not holds(text, rule, at_most=count - 1)


def test_a_broken_rule_is_told_in_words() -> None:
    check = {"rule": "words", "at_most": 5}
    assert broken(check, "one two three four five six seven") == "has 7 words, at most 5 were asked for"
    assert broken({"rule": "items", "at_least": 3}, "- a") == "has 1 items, at least 3 were asked for"
    assert broken({"rule": "number", "is": 5}, "It is 15.") == "states 15, 5 was asked for"
    assert broken({"rule": "contains", "all": ["cat", "dog"]}, "A cat.") == "does not contain 'dog'"


def test_json_is_strict_and_may_stand_in_one_fence() -> None:
    assert holds('{"a": [1, 2]}', "json") and holds('Here:\n```json\n{"a": 1}\n```', "json", keys=["a"])
    assert not holds('{"a": 1, "a": 2}', "json")
    assert not holds("NaN", "json") and not holds('{"a": Infinity}', "json")
    assert not holds('Here it is: {"a": 1}', "json") and not holds("```\n1\n```\n```\n2\n```", "json")
    assert not holds('{"a": 1}', "json", keys=["a", "b"]) and not holds("[1]", "json", keys=["a"])
    assert holds("[" * 64 + "]" * 64, "json") and not holds("[" * 65 + "]" * 65, "json")
    assert not holds("[" * 10**6, "json") and not holds("9" * 10**5, "json")
    assert holds('{"a": "[[[\\"[["}', "json")


def test_words_are_found_as_words() -> None:
    assert holds("The CAT sat.", "contains", all=["cat", "sat"])
    assert not holds("A category.", "contains", all=["cat"]) and not holds("It has 15.", "contains", any=["5"])
    assert holds("我爱Python编程", "contains", all=["python", "编程"])
    assert holds("ｃａｔ", "contains", all=["cat"])  # full-width
    assert holds("a dog", "contains", any=["cat", "dog"]) and not holds("a dog", "contains", all=["cat", "dog"])
    assert not holds("a dog", "excludes", any=["cat", "dog"]) and holds("a dog", "excludes", all=["cat", "dog"])
    assert not holds("cat and dog", "excludes", all=["cat", "dog"])


def test_language_by_words_not_by_letters() -> None:
    assert holds("我用Python和PyTorch写代码", "language", **{"is": "zh"})
    assert not holds("我用Python和PyTorch写代码", "language", **{"is": "en"})
    assert holds("This is Beijing (北京).", "language", **{"is": "en"})
    assert not holds("This is 一半 half 中文", "language", **{"is": "en"})
    assert not holds("42", "language", **{"is": "en"})


def test_case_needs_a_cased_letter() -> None:
    assert holds("all 3 lower, 好", "case", **{"is": "lower"}) and holds("LOUD!", "case", **{"is": "upper"})
    assert not holds("Almost lower", "case", **{"is": "lower"})
    assert not holds("你好 42", "case", **{"is": "lower"}) and not holds("", "case", **{"is": "upper"})


def test_starts_and_ends() -> None:
    assert holds("  dear John", "starts", **{"with": "Dear"}) and not holds("Dearest", "starts", **{"with": "Dear"})
    assert holds("你好，世界", "starts", **{"with": "你好"})
    assert holds("This is the end.", "ends", **{"with": "the end"}) and holds("好吗？", "ends", **{"with": "？"})
    assert holds('He said: "bye."', "ends", **{"with": "bye"}) and not holds("trend", "ends", **{"with": "end"})


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("First 3, so the total is 1,234.50.", 1234.5),
        ("-3.5", -3.5),
        ("5-3", 3),
        ("covid-19", 19),
        ("共 １２ 个", 12),
        ("一共是一万二千零三个，一起", 12003),
        ("二〇二四年", 2024),
        ("负三", -3),
        ("about 2e3", 2000),
        ("50%", 50),
    ],
)
def test_the_last_number(text: str, number: float) -> None:
    assert holds(text, "number", **{"is": number}) and not holds(text, "number", **{"is": number + 1})


def test_no_number() -> None:
    assert not holds("none", "number", **{"is": 0}) and not holds("9" * 200, "number", **{"is": 9})


def test_exact_save_white_space_and_one_mark() -> None:
    assert holds(" yes.\n", "exact", **{"is": "yes"}) and holds("是。", "exact", **{"is": "是"})
    assert not holds("yes..", "exact", **{"is": "yes"}) and not holds("Yes", "exact", **{"is": "yes"})


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ([], "checks=[] must be a list of rules; there are words, sentences, items, characters, json, contains"),
        ({"rule": "words"}, "checks={'rule': 'words'} must be a list of rules"),
        ([3], "checks[0]=3 must be an object with a rule"),
        ([{"rule": "json"}, {"rule": "word"}], "checks[1]: rule='word' is none; there are words,"),
        ([{"rule": ["json"]}], "checks[0]: rule=['json'] is none"),
        ([{"rule": "words", "least": 3}], "rule words has no field 'least'; it has at_least, at_most"),
        ([{"rule": "words"}], "rule words needs at_least or at_most"),
        ([{"rule": "words", "at_least": 3.5}], "rule words: at_least=3.5 must be a whole number, 0 or more"),
        ([{"rule": "words", "at_least": True}], "at_least=True must be a whole number"),
        ([{"rule": "words", "at_least": -1}], "at_least=-1 must be a whole number"),
        ([{"rule": "items", "at_least": 5, "at_most": 3}], "at_least=5 must not be greater than at_most=3"),
        ([{"rule": "contains", "all": []}], "all=[] must be a list of one text or more"),
        ([{"rule": "contains", "all": ["a", ""]}], "must be a list of one text or more, none empty"),
        ([{"rule": "excludes", "all": ["a"], "any": ["b"]}], "takes all or any, not both"),
        ([{"rule": "language", "is": "fr"}], "is='fr' must be one of en, zh"),
        ([{"rule": "language", "is": ["en"]}], "is=['en'] must be one of en, zh"),
        ([{"rule": "starts", "with": " "}], "with=' ' must be a text that is not empty"),
        ([{"rule": "number", "is": "5"}], "is='5' must be a number"),
        ([{"rule": "number", "is": float("nan")}], "is=nan must be a number"),
        ([{"rule": "json", "keys": "a"}], "keys='a' must be a list"),
    ],
)
def test_a_check_that_cannot_be_is_named(checks: object, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        read_checks(checks)
    assert "\n" not in str(caught.value)


def test_every_rule_has_its_row() -> None:
    assert sorted(RULES) == sorted(
        "words sentences items characters json contains excludes language case starts ends number exact".split()
    )


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a decimal point ends no sentence",
        "moe/tasks/writing.py",
        "if _SPELT.match(after):",
        "if not after:",
        "test_counts",
    ),
    (
        "cat is not in category",
        "moe/tasks/writing.py",
        "left, right = _SPELT.match(needle[0]), _SPELT.match(needle[-1])",
        "left = right = None",
        "test_words_are_found_as_words",
    ),
    (
        "JSON with a key twice is none",
        "moe/tasks/checks.py",
        "if len(record) < len(pairs):",
        "if len(record) > len(pairs):",
        "test_json_is_strict_and_may_stand_in_one_fence",
    ),
    (
        "the number that counts is the last",
        "moe/tasks/checks.py",
        "last = found[-1][0]",
        "last = found[0][0]",
        "test_the_last_number",
    ),
    (
        "a text without cased letters is in no case",
        "moe/tasks/checks.py",
        'if text.islower() if check["is"] == "lower" else text.isupper():',
        'if text == (text.lower() if check["is"] == "lower" else text.upper()):',
        "test_case_needs_a_cased_letter",
    ),
    (
        "a check with an unknown field is refused",
        "moe/tasks/checks.py",
        "if name not in fields:",
        "if name not in fields and False:",
        "test_a_check_that_cannot_be_is_named",
    ),
    (
        "all asks for each, any for one",
        "moe/tasks/checks.py",
        'return f"does not contain {_listed(missing)}" if missing else ""',
        'return "" if present else "contains none"',
        "test_words_are_found_as_words",
    ),
]

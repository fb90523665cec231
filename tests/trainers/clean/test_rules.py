"""Ordinary text passes, rubbish goes for a reason that has a number."""

import gzip
import json
import random
from pathlib import Path

import pytest

from conf.errors import InputError
from trainers.clean.document import Document, Verdict, language_of
from trainers.clean.repeats import codes, copied_grams, copied_lines, numbered, top_gram
from trainers.clean.rules import limits, rules

ROOT = Path(__file__).parents[3]
ENGLISH = (
    "The river rises in the hills to the north of the town and runs for about forty miles before it meets the sea. "
    "People have fished it since the Middle Ages, and there are mills along most of its length. In the spring it "
    "floods the meadows, which is why the houses stand back from the bank. Nobody has built a bridge "
    "below the second lock."
)


def judged(*texts: str, **moved: float) -> list[Verdict | None]:
    block = [Document(text, language=language_of(text)) for text in texts]
    return [one.verdict for one in rules(moved)(block)]


def rule(text: str, **moved: float) -> str:
    (verdict,) = judged(text, **moved)
    return "" if verdict is None else verdict.rule


def test_ordinary_chinese_passes() -> None:
    with gzip.open(ROOT / "data" / "poems.jsonl.gz", "rt", encoding="utf-8") as file:
        poems = [json.loads(line)["text"] for line in file]
    drawn = random.Random(3).sample(poems, 900)
    prose = [
        part
        for path in [ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.zh-CN.md"))]
        for part in path.read_text("utf-8").split("\n\n")
        if language_of(part) == "zh" and len(part) > 40
    ]
    assert len(prose) >= 30
    ordinary = [*drawn, *prose, *(["".join(drawn[at : at + 9]) for at in range(0, 630, 9)])]
    rejected = [one for one in judged(*ordinary) if one]
    assert len(ordinary) >= 1000 and len(rejected) <= 0.05 * len(ordinary), rejected
    assert {language_of(text) for text in ordinary} == {"zh"}


def test_what_is_rejected_says_by_which_number() -> None:
    assert judged(ENGLISH) == [None]
    assert judged("The cat and the dog of the house.") == [Verdict("", "words", 8.0, 50.0)]
    assert judged("天地") == [Verdict("", "characters", 2.0, 16.0)]
    assert rule("买" * 300) == "one_character"
    assert rule("点击购买优惠多多。" * 40) == "top_4_gram"
    assert rule("★☆★☆欢迎光临本店，天天都有新货，快来看看吧◆◇◆◇◆◇") == "symbols"
    assert rule("电话号码表" + "1234567890" * 3) == "digits"
    line = "本站所有资源均来自互联网收集整理请于二十四小时内删除仅供学习交流使用\n"
    assert rule(line * 2 + "另外一行的内容完全不一样" + line * 2) in {"copied_lines", "copied_20_grams"}
    assert rule(ENGLISH.replace(". ", " ...\n"), en_ellipses=1) == "ellipsis_lines"
    assert rule("\n".join(f"- every {word} nearby" for word in ENGLISH.split())) == "bullet_lines"
    assert rule(" ".join([ENGLISH] * 3)) == "copied_5_grams"
    assert rule("\n".join(ENGLISH.split()), en_short_lines=1) == "ended_lines"
    assert rule("\n".join(ENGLISH.split()), en_ended_lines=0) == "short_lines"


def test_bounds_move_by_name() -> None:
    assert rule("床前明月光，疑是地上霜。举头望明月，低头思故乡。", zh_characters=25) == "characters"
    assert rule("The cat and the dog of the house.", en_words=5) == ""
    with pytest.raises(InputError, match="corpus.limits.zh_hans: no such rule; there are .*zh_han,"):
        rules({"zh_hans": 1.0})
    assert limits()["en_top_2_gram"] == 0.2 and limits()["en_copied_10_grams"] == 0.1


def test_numbers_worked_by_hand() -> None:
    assert copied_lines(["a", "bb", "a", "a"]) == (0.5, 2 / 5)
    words = ["x", "yy", "x", "yy", "zzz"]
    lengths = codes("\1\2\1\2\3").astype(int)
    assert top_gram(numbered(words), lengths, 2) == 2 * 3 / 9
    assert copied_grams(numbered(words), lengths, 2) == 3 / 9  # the second "x yy"
    assert copied_grams(numbered(list("aabaaa")), codes("\1" * 6).astype(int), 2) == 3 / 6  # the last three
    assert copied_grams(numbered(words), lengths, 3) == top_gram(numbered(words), lengths, 3) == 0.0


def test_languages() -> None:
    assert [language_of(text) for text in ("天地玄黄", ENGLISH, "これはペンです", "Der Hund ist im Haus", "12345")] == [
        "zh", "en", "", "", "",
    ]  # fmt: skip
    assert language_of("我们用 PyTorch 和 Ray 训练模型") == "zh"


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "Chinese is not judged by English words",
        "trainers/clean/rules.py",
        'packs.get(document.language, packs[""])',
        'packs["en"]',
        "test_ordinary_chinese_passes",
    ),
    (
        "a bound that is a least is not a most",
        "trainers/clean/rules.py",
        "if value < limit if rule.at_least else value > limit:",
        "if value > limit:",
        "test_what_is_rejected_says_by_which_number",
    ),
    (
        "a bound can be moved",
        "trainers/clean/rules.py",
        "    bounds = known | dict(moved)",
        "    bounds = known",
        "test_bounds_move_by_name",
    ),
    (
        "the first of two copies counts as none",
        "trainers/clean/repeats.py",
        "again[order[1:]] = hashes[order[1:]] == hashes[order[:-1]]",
        "again[order[:-1]] = hashes[order[1:]] == hashes[order[:-1]]",
        "test_numbers_worked_by_hand",
    ),
]

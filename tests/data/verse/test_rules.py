"""The rules of verse against poems everyone knows and faults made by hand."""

from pathlib import Path

import numpy as np
import pytest

from data.verse.rules import (
    Copies,
    Look,
    form_of,
    lines,
    look,
    repeats,
    rhyme_class,
    rhyme_share,
    rhymes,
    shape_share,
    title_share,
)

MOON = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"  # 光 霜 乡
SPRING = "国破山河在，城春草木深。感时花溅泪，恨别鸟惊心。烽火连三月，家书抵万金。白头搔更短，浑欲不胜簪。"
WILLOW = "碧玉妆成一树高，万条垂下绿丝绦。不知细叶谁裁出，二月春风似剪刀。"


@pytest.mark.parametrize(
    ("text", "form"),
    [
        (MOON, "五言绝句"),
        (SPRING, "五言律诗"),
        (WILLOW, "七言绝句"),
        (WILLOW * 2, "七言律诗"),
        (MOON[:-1], None),  # not closed
        (MOON + "好", None),
        (MOON.replace("，", "。"), None),  # the wrong mark
        (MOON.replace("霜", "a"), None),
        (MOON.replace("霜", ""), None),
        (MOON + "\n", None),
        (MOON[:12] * 3, None),  # six lines
        ("", None),
    ],
)
def test_form_is_exact(text: str, form: str | None) -> None:
    assert form_of(text) == form


def test_lines_are_parted_by_punctuation() -> None:
    assert lines("床前明月光，疑是地上霜。\n举头") == ["床前明月光", "疑是地上霜", "举头"]


@pytest.mark.parametrize(
    ("characters", "name"),
    [
        ("光霜乡", "ang"),
        ("山天还圆", "an"),
        ("深心金", "en"),
        ("风空翁峰", "ong"),
        ("明生", "eng"),
        ("知时诗", "-i"),
        ("溪", "i"),
        ("家斜花", "a"),
        ("歌多", "o"),
        ("鱼", "v"),
        ("书居", None),
        ("，a", ""),
    ],
)
def test_rhyme_classes(characters: str, name: str | None) -> None:
    if name is None:  # 书 is shu, 居 is ju: they look alike in pinyin and do not rhyme
        assert rhyme_class(characters[0]) != rhyme_class(characters[1])
    else:
        assert {rhyme_class(character) for character in characters} == {name}


def test_rhyme_share_counts_different_characters_of_one_class() -> None:
    assert rhyme_share(MOON) == 1.0  # 霜 乡
    assert rhyme_share(SPRING) == pytest.approx(2 / 3)  # 深 心 金 are en, 簪 is an today
    assert rhyme_share(MOON.replace("故乡", "故山")) == 0.0
    assert rhyme_share(MOON.replace("故乡", "故霜")) == 0.0  # the same character again
    assert rhyme_share("床前明月光，疑是地上霜。") == 0.0  # one even line rhymes with nothing
    assert rhyme_share("") == 0.0
    assert rhymes(MOON) and not rhymes(SPRING)


def test_repeats_finds_lines_runs_and_stutter() -> None:
    assert not repeats(MOON) and not repeats(SPRING)
    assert repeats(WILLOW * 2)
    assert repeats("床前明月光，疑是地上霜。床前明月夜，低头思故乡。")  # four characters again
    assert not repeats("床前明月光，疑是地上霜。举头明月光，低头思故乡。")  # three are allowed
    assert repeats("床前明明明，疑是地上霜。")


def test_title_share_leaves_out_words_without_a_subject() -> None:
    assert title_share(MOON, "静夜思") == pytest.approx(1 / 3)  # 思 of 静 夜 思
    assert title_share(MOON, "咏月其一") == 1.0
    assert title_share(MOON, "一") == 0.0  # only stop words: then they count
    assert title_share(MOON, "") == 0.0


def test_shape_share_is_partial_and_below_one_out_of_form() -> None:
    assert shape_share(MOON, "五言绝句") == 1.0
    assert shape_share(MOON, "五言律诗") == 0.5  # four of eight lines
    assert shape_share(SPRING, "五言绝句") == 0.5  # four right ones of eight written
    assert shape_share(MOON, "七言绝句") == 0.0
    assert shape_share(MOON.replace("疑", ""), "五言绝句") == 0.75
    assert shape_share(MOON.replace("，", "。"), "五言绝句") == 0.95


def test_copies_wants_half_of_the_lines(tmp_path: Path) -> None:
    copies = Copies.of([MOON, SPRING])
    assert len(copies) == 12
    half = "床前明月光，疑是地上霜。春风吹又绿，独自到天明。"
    quarter = half.replace("疑是地上霜", "谁知夜有霜")
    assert copies.copied(MOON) and copies.copied(half)
    eight = "国破山河在，城春草木深。感时花溅泪，独自到天明。春风吹又绿，谁知夜有霜。去年今日客，归梦绕江城。"
    assert not copies.copied(eight)  # three of eight lines
    assert not copies.copied(quarter) and not copies.copied(WILLOW) and not copies.copied("")
    copies.save(tmp_path / "copies.npy")
    again = Copies.load(tmp_path / "copies.npy")
    assert again.copied(half) and not again.copied(quarter)
    assert not Copies(np.array([], dtype=np.uint64)).copied(MOON)


def test_judge() -> None:
    seen = look(MOON, "五言绝句", title="月", copies=Copies.of([MOON]))
    assert seen == Look(form=True, rhyme=True, rhyme_share=1.0, repeats=False, title_share=1.0, copied=True)
    assert not look(MOON, "七言绝句").form

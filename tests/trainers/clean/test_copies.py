"""Near copies: planted ones go, others stay, and who stays hangs on nothing but scores and numbers."""

import gzip
import json
import random
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from conf.knobs.text import Corpus
from tests.trainers.clean.direct import collected
from trainers.clean import copies, near

ROOT = Path(__file__).parents[3]
EDITS = 0.05


def chinese(count: int) -> list[str]:
    """Poems, a third of them several in one document, as a page of a book has them."""
    with gzip.open(ROOT / "data" / "poems.jsonl.gz", "rt", encoding="utf-8") as file:
        poems = [json.loads(line)["text"] for line in islice(file, 12_000)]
    drawn = random.Random(5).sample([poem for poem in poems if len(poem) >= 60], 2 * count)
    return [
        *drawn[: count - count // 3],
        *("\n".join(drawn[count + 3 * n : count + 3 * n + 3]) for n in range(count // 3)),
    ]


def short(count: int) -> list[str]:
    """Poems of any length, most of twenty to sixty characters."""
    with gzip.open(ROOT / "data" / "poems.jsonl.gz", "rt", encoding="utf-8") as file:
        return random.Random(5).sample([json.loads(line)["text"] for line in islice(file, 12_000)], count)


def english(count: int, least: int = 80, most: int = 400) -> list[str]:
    """Texts of made-up sentences: words as often as in a language, no two texts alike."""
    dice = random.Random(7)
    letters = "etaoinshrdlucmfwypvbgk"
    words = ["".join(dice.choices(letters, k=dice.randint(2, 9))) for _ in range(4000)]
    common = "the of and to in is was that it for with as on be at by this had not are but from or have".split()
    made = []
    for _ in range(count):
        size = dice.randint(least, most)
        made.append(" ".join(dice.choice(common) if dice.random() < 0.45 else dice.choice(words) for _ in range(size)))
    return made


def edited(text: str, dice: random.Random, units: list[str], *, words: bool) -> str:
    """The text with 5 % of its words or characters replaced, left out or doubled."""
    parts = text.split(" ") if words else list(text)
    for place in dice.sample(range(len(parts)), max(1, round(EDITS * len(parts)))):
        parts[place] = dice.choice([dice.choice(units), "", f"{parts[place]}{' ' * words}{dice.choice(units)}"])
    return (" " if words else "").join(parts)


def lives(folder: Path) -> list[dict[str, Any]]:
    return [life for path in sorted(folder.glob("ledger-*")) for life in pq.read_table(path).to_pylist()]


def written(path: Path, texts: list[str]) -> Corpus:
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    return Corpus(files=[str(path)], near=0.5, val_fraction=0, test_fraction=0)


def found(texts: list[str], folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    collected(folder, written(folder / "x.jsonl", texts))
    return lives(folder)


MADE = {"zh": lambda: chinese(600), "en": lambda: english(300), "short zh": lambda: short(600)} | {
    "short en": lambda: english(600, 16, 60)
}


@pytest.mark.parametrize("kind", MADE)
def test_planted_near_copies_are_found_and_others_stay(tmp_path: Path, kind: str) -> None:
    dice, language = random.Random(11), kind[-2:]
    texts = MADE[kind]()
    # what the corpus itself has twice is none of ours
    texts = [text for text, life in zip(texts, found(texts, tmp_path / "own"), strict=True) if not life["step"]]
    units = "".join(texts).split() if language == "en" else list("".join(texts))
    sources = dice.sample(range(len(texts)), 150)
    planted = [edited(texts[at], dice, units, words=language == "en") for at in sources]
    both = found([*texts, *planted], tmp_path / "planted")
    gone = [life for life in both if life["step"]]
    assert {life["step"] for life in gone} == {"near"} and {life["language"] for life in both} == {language}
    right = [life for life in gone if life["id"] >= len(texts) and life["twin"] == sources[life["id"] - len(texts)]]
    assert len(right) >= 0.95 * len(planted)
    assert len(right) >= 0.99 * len(gone)


def test_what_is_half_the_same_stays(tmp_path: Path) -> None:
    parts = [poem[:60] for poem in chinese(36)]
    texts = [parts[at] + parts[at + more] for more in (12, 24) for at in range(12)]  # a third of the runs in common
    assert [life["step"] for life in found(texts, tmp_path / "half")] == [""] * 24


def test_the_best_stays_and_of_equals_the_first(tmp_path: Path) -> None:
    text = "".join(chinese(2))
    near_ones = [text, text[:-1] + "甲", text[:-1] + "乙", "完全不同的另外一首，和上面的都没有关系。" * 3]
    assert [(life["step"], life["twin"]) for life in found(near_ones, tmp_path / "a")] == [
        ("", None), ("near", 0), ("near", 0), ("", None),
    ]  # fmt: skip
    pairs = np.zeros(3, copies._PAIR)  # 5 is better than 2 and 3; 3 is like 2 too; 9 is like 3 alone
    pairs["worse"], pairs["better"] = [2, 3, 9], [5, 5, 3]
    pairs["score"], pairs["likeness"] = [0.1, 0.1, 0.0], [0.8, 0.7, 0.9]
    gone = copies.survivors(pairs)
    assert gone["id"].tolist() == [2, 3] and gone["twin"].tolist() == [5, 5]  # 9 is no near copy of one that stays
    assert copies.survivors(pairs[[2, 1, 0, 1]]).tobytes() == gone.tobytes()


def test_ranges_and_pieces_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = chinese(90)
    dice = random.Random(2)
    texts += [edited(text, dice, list(texts[0]), words=False) for text in texts[:60]] + texts[:10]
    whole = [(life["step"], life["twin"]) for life in found(texts, tmp_path / "whole")]
    assert [step for step, _ in whole].count("exact") == 10 and [step for step, _ in whole].count("near") >= 50
    monkeypatch.setattr("trainers.clean.copies.KEYS_PER_RANGE", 60)
    monkeypatch.setattr("trainers.clean.copies.MEMBERS", 3)
    monkeypatch.setattr("trainers.clean.shards.SOURCES_PER_BLOCK", 32)
    monkeypatch.setattr("trainers.clean.gather.SHARDS_PER_TASK", 2)
    assert [(life["step"], life["twin"]) for life in found(texts, tmp_path / "parts")] == whole


def test_estimates() -> None:
    dice = random.Random(1)
    units = [chr(0x4E00 + n) for n in range(3000)]
    one = "".join(dice.choices(units, k=2000))
    for kept in (1800, 1000, 200):
        other = one[:kept] + "".join(dice.choices(units, k=2000 - kept))
        true = len(set(near.runs(one, "zh")) & set(near.runs(other, "zh"))) / len(
            set(near.runs(one, "zh")) | set(near.runs(other, "zh"))
        )
        marks = [near.signature(text, "zh")[None] for text in (one, other)]
        assert abs(near.likeness(*marks)[0] - true) < 0.12
    assert near.shape(0.5) == (32, 4) and near.caught(0.5, 32, 4) == pytest.approx(1 - (1 - 0.5**4) ** 32)
    assert near.runs("a b, c!", "en").tolist() == near.runs("A  b c", "en").tolist()


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "the words of two texts are told apart",
        "trainers/clean/near.py",
        "(crc32(word.encode()) for word in words)",
        "(0 for word in words)",
        "test_planted_near_copies_are_found_and_others_stay",
    ),
    (
        "documents that meet by chance are compared",
        "trainers/clean/copies.py",
        "like = alike >= np.float32(threshold)",
        "like = alike >= 0",
        "test_what_is_half_the_same_stays",
    ),
    (
        "who goes is like one that stays",
        "trainers/clean/copies.py",
        "if worse not in gone and better not in gone:",
        "if worse not in gone:",
        "test_the_best_stays_and_of_equals_the_first",
    ),
    (
        "the best of near copies stays",
        "trainers/clean/copies.py",
        "order = np.lexsort((document, -score, key))",
        "order = np.lexsort((-document, -score, key))",
        "test_the_best_stays_and_of_equals_the_first",
    ),
    (
        "an exact copy in another range of keys is found",
        "trainers/clean/copies.py",
        '(digests[:, 0] % np.uint64(item["ranges"]) == item["range"])',
        '(rows % item["ranges"] == item["range"])',
        "test_ranges_and_pieces_change_nothing",
    ),
    (
        "a group is compared with its first in each piece",
        "trainers/clean/copies.py",
        "held.append(np.concatenate([[begin], np.arange(start, min(end, start + MEMBERS))]))",
        "held.append(np.arange(start, min(end, start + MEMBERS)))",
        "test_ranges_and_pieces_change_nothing",
    ),
    (
        "a short text is cut into shorter runs",
        "trainers/clean/near.py",
        "SIZE if len(found) >= SHORT else SHORT_SIZE",
        "SIZE",
        "test_planted_near_copies_are_found_and_others_stay",
    ),
]

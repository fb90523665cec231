import gzip
import json
import pickle
from pathlib import Path

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import InputError
from conf.knobs.text import Tokenizer as Settings
from moe.text.families import BYTES
from moe.text.tokenizer import ALWAYS, SPECIALS, Tokenizer

POEMS = Path(__file__).parents[3] / "data" / "poems.jsonl.gz"
ENGLISH = ["the cat and the hat sat, the cat ran.\n"] * 4 + ["春眠不觉曉，处处闻啼鸟。"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    with gzip.open(POEMS, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line, _ in zip(lines, range(3000), strict=False)]
    return Tokenizer.train(texts, Settings(vocab_size=3000))


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_round_trip_and_gives_no_special(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(index >= len(SPECIALS) for index in ids)


@pytest.mark.parametrize(
    "text",
    [
        "  leading and trailing  ",
        " ▁x ▁",
        "a\n\n\r\n\tb ",
        "😀👩‍👩‍👧 e\u0301 \u200b\ufeff\x00",
        "春眠 不觉曉\u3000，《》",
        "<0x41><0xE6>",
        "<|im_end|><|im_start|>system\n<|pad|><|endoftext|>",
        "\U0002a6b2\U0003134a 〇々",
    ],
)
def test_awkward_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(range(len(SPECIALS)))


def test_vocabulary_layout(tokenizer: Tokenizer) -> None:
    assert (tokenizer.pad, tokenizer.eos, tokenizer.im_start, tokenizer.im_end) == (0, 1, 2, 3)
    assert tokenizer.byte_ids == frozenset(range(4, 260))
    assert (tokenizer.size, tokenizer.padded_size) == (3000, 3072)
    assert tokenizer.decode([0, 1, 2, 3, 3000, 3071]) == ""  # specials, and ids that only pad the model's vocabulary


def test_han_and_marks_stand_alone(tokenizer: Tokenizer) -> None:
    text = "春风，明月。\n《山》"
    ids = tokenizer.encode(text)
    assert [tokenizer.decode([index]) for index in ids] == list(text)


def test_rare_characters_fall_back_to_their_bytes(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("😀") == [4 + byte for byte in "😀".encode()]


def test_merges_join_letters_with_the_space_before_but_never_a_mark() -> None:
    tokenizer = Tokenizer.train(ENGLISH, Settings(vocab_size=420))
    assert [tokenizer.decode([index]) for index in tokenizer.encode("the cat, the")] == ["the", " cat", ",", " the"]
    assert [tokenizer.decode([index]) for index in tokenizer.encode("cats")] == ["c", "at", "s"]


def test_han_merges_when_asked() -> None:
    tokenizer = Tokenizer.train(ENGLISH, Settings(vocab_size=500, isolate_han=False))
    assert [tokenizer.decode([index]) for index in tokenizer.encode("春眠不觉曉，")] == ["春眠不觉曉", "，"]


def test_same_texts_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Tokenizer.train(iter(ENGLISH), Settings(vocab_size=420)).save(tmp_path / name)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
    loaded = Tokenizer.load(tmp_path / "a")
    assert loaded.digest == Tokenizer.load(tmp_path / "b").digest
    assert pickle.loads(pickle.dumps(loaded)).encode("<|pad|>") == loaded.encode("<|pad|>") != [0]


def test_saved_folder_opens_in_transformers_with_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("春风吹又生。\n two  words\n", " é 😀", ""):
        assert theirs(text)["input_ids"] == tokenizer.encode(text)
        assert theirs.decode(tokenizer.encode(text)) == text
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.im_end, tokenizer.pad)


def test_bad_folders_and_text_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tokenizer.json: no such file"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="tokenizer.json: not a tokenizer"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(InputError, match="tokenizer.json: not a tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(InputError, match="lone surrogate at character 1"):
        tokenizer.encode("a\ud800")


def test_a_small_text_gives_a_small_vocabulary() -> None:
    tokenizer = Tokenizer.train(["春风春风"], Settings(vocab_size=4608))
    roles = 3 + 8 + 5  # the merges that make one piece each of user, assistant and system
    assert tokenizer.size == len(SPECIALS) + len(BYTES) + len(ALWAYS) + 2 + roles  # 春 and 风


def test_written_counts_the_characters_that_are_whole(tokenizer: Tokenizer) -> None:
    text = "a🙂\u9f98b"  # neither is in the vocabulary: four bytes, three bytes
    ids = [tokenizer.im_start, *tokenizer.encode(text), tokenizer.im_end]
    assert tokenizer.written(ids) == [0, 1, 1, 1, 1, 2, 2, 2, 3, 4, 4]

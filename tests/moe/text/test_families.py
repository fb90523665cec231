import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers
from transformers.convert_slow_tokenizer import bytes_to_unicode

from conf.errors import InputError
from conf.knobs.text import Tokenizer as Settings
from moe.text.chat import sample_ids
from moe.text.families import LETTERS
from moe.text.tokenizer import Tokenizer
from tests.moe.text.foreign_tokenizers import FAMILIES, llama2, llama3, smollm

PAIRS = {name: (make(), Tokenizer(make().to_str().encode())) for name, make in FAMILIES.items()}
MARKS = ["<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<s>", "</s>", "<unk>", "<|begin_of_text|>", "<repo_name>"]
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.sampled_from([*MARKS, " ", "x"])).map("".join)
)


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest) -> tuple[tokenizers.Tokenizer, Tokenizer]:
    """A published tokenizer and ours of it."""
    return PAIRS[request.param]


def test_bytes_are_spelled_as_in_gpt2() -> None:
    table = bytes_to_unicode()
    assert [table[byte] for byte in range(256)] == [*LETTERS]


@settings(max_examples=300, deadline=None)
@given(TEXT)
@example("e\u0301 ▁x ▁ <think>\x04\U00040000 ")
@example(" <s></s><unk> ")
def test_any_text_survives_and_gives_no_special(text: str) -> None:
    for _, ours in PAIRS.values():
        ids = ours.encode(text)
        assert ours.decode(ids) == text
        assert not set(ids) & ours.specials.keys()
        assert b"".join(map(ours.bytes_of, ids)) == text.encode()
        assert ours.written(ids)[-1:] == [len(text)][: len(ids)]


@pytest.mark.parametrize("text", ["the cat sat, the hat\n\n 2024 ran", "x  y 中国一个。 user"])
def test_ids_are_those_of_the_original(pair: tuple[tokenizers.Tokenizer, Tokenizer], text: str) -> None:
    theirs, ours = pair
    theirs.no_truncation()
    if ours.byte_level:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids
    else:  # the original puts a space before the text
        assert ours.encode(" " + text) == theirs.encode(text, add_special_tokens=False).ids
    assert [*ours.opening, *ours.encode_texts([text])[0]] == theirs.encode(text).ids
    for piece, index in theirs.get_vocab(with_added_tokens=True).items():
        spelled = piece.encode() if not ours.byte_level else b"".join(bytes([LETTERS.index(c)]) for c in piece)
        if index not in ours.specials and not piece.startswith("<0x"):
            assert ours.bytes_of(index) == spelled.replace("▁".encode(), b" "), piece


@pytest.mark.parametrize(
    ("name", "eos", "come"),
    [
        ("smollm", "<|endoftext|>", [LETTERS[0x04], LETTERS[0x1D], LETTERS[0xF1]]),  # C0 and FF are in no UTF-8
        ("qwen", "<|endoftext|>", []),
        ("llama3", "<|end_of_text|>", ["<|im_start|>", "<|im_end|>"]),
        ("llama2", "</s>", ["<|im_start|>", "<|im_end|>"]),
        ("mistral", "</s>", ["<|im_start|>", "<|im_end|>"]),
    ],
)
def test_marks_are_kept_and_what_is_missing_comes_after(name: str, eos: str, come: list[str]) -> None:
    theirs, ours = PAIRS[name]
    pieces = ours.description["model"]["vocab"]
    known = theirs.get_vocab(with_added_tokens=True)
    assert pieces.items() - {(piece.replace("▁", " "), index) for piece, index in known.items()} == {
        (piece, index) for index, piece in enumerate(come, len(known))
    }
    assert ours.size == len(known) + len(come)
    assert (ours.eos, ours.pad) == (known[eos], known[eos])
    assert (ours.im_start, ours.im_end) == (pieces["<|im_start|>"], pieces["<|im_end|>"])


def test_a_pad_of_its_own_is_kept() -> None:
    theirs = smollm()
    theirs.add_special_tokens(["<|pad|>"])
    assert Tokenizer(theirs.to_str().encode()).pad == theirs.token_to_id("<|pad|>")


@pytest.mark.parametrize("model", ["mixtral", "qwen3_moe"])
def test_saved_folder_opens_in_transformers(
    pair: tuple[tokenizers.Tokenizer, Tokenizer], model: str, tmp_path: Path
) -> None:
    ours = pair[1]
    ours.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model}))
    opened: Any = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in ("the cat ran. 中国 e\u0301 ▁", "two  words\n", ""):
        ids = [*ours.opening, *ours.encode_texts([text])[0]]
        assert opened(text)["input_ids"] == ids
        assert opened.decode(ids, skip_special_tokens=True) == text
    assert (opened.eos_token_id, opened.pad_token_id) == (ours.im_end, ours.pad)
    messages = [{"role": "user", "content": "the cat, 中"}, {"role": "assistant", "content": "hat"}]
    assert opened.apply_chat_template(messages, return_dict=False) == sample_ids(ours, messages)[0]
    assert Tokenizer.load(tmp_path).digest == ours.digest  # nothing is left to do


def test_our_own_stays_as_it_is(tmp_path: Path) -> None:
    own = Tokenizer.train(["the cat"], Settings(vocab_size=400))
    own.save(tmp_path)
    assert Tokenizer.load(tmp_path).digest == own.digest


def test_written_and_byte_ids_of_pieces_that_are_parts_of_characters() -> None:
    ours = PAIRS["smollm"][1]
    ids = ours.encode("a🙂中 é")
    assert [ours.bytes_of(index) for index in ids] == [
        *(b"a", b"\xf0", b"\x9f", b"\x99", b"\x82", b"\xe4\xb8", b"\xad", b" ", b"\xc3", b"\xa9")
    ]
    assert ours.written([ours.im_start, *ids, ours.im_end]) == [0, 1, 1, 1, 1, 2, 2, 3, 4, 4, 5, 5]
    assert [index for index in ids if index not in ours.byte_ids] == ours.encode("a ")


def _bpe(**settings: Any) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.BPE({"a": 0, "b": 1}, [], **settings))


def _with(made: tokenizers.Tokenizer, **parts: Any) -> tokenizers.Tokenizer:
    for name, part in parts.items():
        setattr(made, name, part)
    return made


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (tokenizers.Tokenizer(models.Unigram([("a", 0.0)])), "model.type=Unigram is not supported; BPE is"),
        (tokenizers.Tokenizer(models.WordPiece({"a": 0}, unk_token="a")), "model.type=WordPiece"),
        (_bpe(), "neither byte-level nor with byte_fallback"),
        (_bpe(byte_fallback=True, dropout=0.5), "model.dropout=0.5"),
        (_bpe(byte_fallback=True, end_of_word_suffix="</w>"), "model.end_of_word_suffix='</w>'"),
        (_with(smollm(), normalizer=normalizers.Lowercase()), "normalizer Lowercase changes the text"),
        (_with(llama2(), pre_tokenizer=pre_tokenizers.Whitespace()), "pre_tokenizer Whitespace changes the text"),
    ],
)
def test_what_cannot_keep_the_promises_is_refused(made: tokenizers.Tokenizer, words: str) -> None:
    with pytest.raises(InputError, match=f"mine: {words}"):
        Tokenizer(made.to_str().encode(), "mine")


def test_a_special_that_words_can_spell_is_refused() -> None:
    theirs = llama3()
    theirs.add_special_tokens(["cat"])  # where whole words need no merges, the word cat would be this mark
    with pytest.raises(InputError, match="mine: the text 'cat' encodes to a special token; rename that token"):
        Tokenizer(theirs.to_str().encode(), "mine")


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "text that is not composed survives",
        "moe/text/families.py",
        'out |= {"normalizer": None, "pre_tokenizer": _sequence(parts), "decoder"',
        'out |= {"pre_tokenizer": _sequence(parts), "decoder"',
        None,
    ),
    (
        "every byte of UTF-8 has a piece",
        "moe/text/families.py",
        "for piece in (*marks, *(spelled[byte] for byte in _IN_TEXT)):",
        "for piece in marks:",
        None,
    ),
]

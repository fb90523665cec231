"""A model whose tokenizer was extended: new rows are means of old ones, old rows stay."""

import pytest
import torch

from conf.errors import InputError
from moe.decoder import Decoder, new_decoder
from moe.formats.grow import grow
from moe.text.tokenizer import Tokenizer
from moe.text.vocabulary import extend_with_characters
from tests.moe.text.foreign_tokenizers import FAMILIES

OLD = {name: Tokenizer(FAMILIES[name]().to_str().encode()) for name in ("smollm", "llama3", "llama2")}
CHINESE = ["春眠不觉晓", "处处闻啼鸟", "夜来风雨声", "花落知多少", "春风春雨春眠"]
EXTENDED = {name: extend_with_characters(old, CHINESE, 5) for name, old in OLD.items()}


@pytest.fixture(params=OLD)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


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


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a new row is the mean of its old pieces",
        "moe/formats/grow.py",
        "new[index] = old[ids].mean(0)",
        "new[index] = old[ids[0]]",
        None,
    ),
]

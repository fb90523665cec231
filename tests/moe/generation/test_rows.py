"""Rows by torch and in C: the same logits, and in C to the bit the same in any company.

Planted bugs: a cache that is read too far, experts chosen wrongly, a sum whose order hangs on the other rows, weights
that stay the old ones.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from conf.knobs.model import Model
from moe.decoder import Decoder, new_decoder
from moe.generation.fastest import rows_of
from moe.generation.quantize import quantize
from moe.generation.rows import ByC, ByTorch, Piece, Rows
from moe.kernels.processor import processor, using
from tests.moe.conftest import VOCABULARY

ODD = {  # no width is a multiple of a vector's, but in the last; heads share keys by one, two and three
    "group of one": Model(
        hidden_size=19, layers=2, heads=2, kv_heads=2, head_dim=6, experts=3, top_k=1, expert_size=13, init_std=0.3
    ),
    "group of three, no norm": Model(
        hidden_size=37,
        layers=1,
        heads=6,
        kv_heads=2,
        head_dim=18,
        experts=5,
        top_k=3,
        expert_size=21,
        qk_norm=False,
        init_std=0.3,
    ),
    "whole vectors": Model(
        hidden_size=64, layers=2, heads=4, kv_heads=2, head_dim=32, experts=8, top_k=2, expert_size=48, init_std=0.2
    ),
}


@pytest.fixture(params=ODD)
def odd(request: pytest.FixtureRequest) -> Decoder:
    return new_decoder(ODD[request.param], 101, seed=3).eval()


def sequences(lengths: list[int], vocabulary: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in lengths]


def fed(rows: Rows, given: list[list[int]], prompt: int) -> Tensor:
    """The logits [n, steps, V] after the first `prompt` tokens of each sequence, and after each of the others."""
    held = [rows.take(len(tokens)) for tokens in given]
    made = [rows.feed([Piece(row, tokens[:prompt], True) for row, tokens in zip(held, given, strict=True)])]
    for at in range(prompt, len(given[0])):
        made.append(rows.feed([Piece(row, tokens[at : at + 1], True) for row, tokens in zip(held, given, strict=True)]))
    for row in held:
        rows.free(row)
    return torch.stack(made, 1)


def test_c_and_torch_give_the_logits_of_a_pass_without_a_cache(kernels: None, odd: Decoder) -> None:
    given = sequences([75] * 5, 101)
    by_c = rows_of(odd, 5)
    assert isinstance(by_c, ByC)
    ours, theirs = fed(by_c, given, 41), fed(ByTorch(odd, 5), given, 41)
    with torch.no_grad():
        tokens = torch.tensor(given)
        states = odd(tokens, torch.ones_like(tokens)).states.view(5, 75, -1)
        whole = odd.logits(states[:, 40:].flatten(0, 1)).view(5, 35, -1)
    torch.testing.assert_close(theirs, whole, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-4)


def test_a_rows_bits_do_not_hang_on_the_others_nor_on_how_its_prompt_was_cut(kernels: None, odd: Decoder) -> None:
    rows = rows_of(odd, 9)
    tokens, *others = sequences([70, *range(20, 60, 5)], 101)
    alone = rows.take(80)
    wanted = [rows.feed([Piece(alone, tokens[:60], True)])[0]]
    wanted += [rows.feed([Piece(alone, [token], True)])[0] for token in tokens[60:]]
    beside = [rows.take(80) for _ in others]
    again = rows.take(300)  # another room lays the cache out otherwise
    rows.feed([Piece(row, other, False) for row, other in zip(beside, others, strict=True)])
    cut = [rows.feed([Piece(again, tokens[:7], False), Piece(beside[0], [1], True)])]
    assert cut[0].shape == (1, 101)
    rows.feed([*(Piece(row, [5], False) for row in beside), Piece(again, tokens[7:59], False)])
    for at, right in zip(range(59, 70), wanted, strict=True):
        company = beside[: at % len(beside)]
        made = rows.feed([*(Piece(row, [at], True) for row in company), Piece(again, tokens[at : at + 1], True)])
        assert torch.equal(made[-1], right)


def test_a_copy_goes_on_as_the_row_itself(kernels: None, model: Decoder) -> None:
    rows = rows_of(model, 3)
    (tokens,) = sequences([40], VOCABULARY)
    first = rows.take(50)
    wanted = rows.feed([Piece(first, tokens, True)])
    for length in (17, 32, 39):
        other = rows.take(60)
        rows.copy(first, length, other)
        assert torch.equal(rows.feed([Piece(other, tokens[length:], True)]), wanted)
    rows.free(first)
    assert rows.feed([Piece(other, [3], True)]).isfinite().all()


def test_threads_change_no_bit(kernels: None, model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe.kernels.decode.step.SMALL", 0)
    before, given = torch.get_num_threads(), sequences([20] * 6, VOCABULARY)
    made = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        made.append(fed(rows_of(model, 6), given, 9))
    torch.set_num_threads(before)
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


def test_of_equally_likely_experts_the_first_are_taken(kernels: None) -> None:
    model = new_decoder(ODD["whole vectors"], 64, seed=1).eval()
    with torch.no_grad():
        for layer in model.model.blocks():
            layer.mlp.gate.weight.zero_()
        made = fed(rows_of(model, 1), [[7, 8]], 1)
        for layer in model.model.blocks():  # those that are not to be taken would show
            layer.mlp.experts.gate_up_proj[2:] = float("nan")
    assert torch.equal(fed(rows_of(model, 1), [[7, 8]], 1), made) and made.isfinite().all()


def test_new_weights_count_from_the_next_step_on(kernels: None, model: Decoder) -> None:
    other = new_decoder(model.cfg, VOCABULARY, seed=9).eval()
    wanted = fed(rows_of(other, 1), [[5, 6, 7]], 2)
    rows = rows_of(model, 1)
    assert not torch.equal(fed(rows, [[5, 6, 7]], 2), wanted)
    model.load_state_dict(other.state_dict())
    assert torch.equal(fed(rows, [[5, 6, 7]], 2), wanted)
    for parameter in model.parameters():  # other memory, as loading with assign=True gives
        old, parameter.data = parameter.data, parameter.data.clone()
        old.fill_(float("nan"))
    assert torch.equal(fed(rows, [[5, 6, 7]], 2), wanted)


def test_what_would_be_read_or_written_elsewhere_is_refused(kernels: None, model: Decoder) -> None:
    rows = rows_of(model, 1)
    row = rows.take(3)
    for token in (VOCABULARY, -1):
        with pytest.raises(IndexError, match=f"token {token} is not one of the vocabulary's {VOCABULARY}"):
            rows.feed([Piece(row, [token], True)])
    with pytest.raises(AssertionError, match=f"row {row} has no room for its next tokens"):
        rows.feed([Piece(row, [1, 2, 3, 4], True)])


def test_what_c_does_not_take_goes_to_torch(kernels: None, model: Decoder) -> None:
    assert isinstance(rows_of(model, 1), ByC)
    with using(replace(processor(), kernels=False)):
        assert isinstance(rows_of(model, 1), ByTorch)
    assert isinstance(rows_of(new_decoder(model.cfg, 64).double(), 1), ByTorch)
    with torch.no_grad():
        wide = model.lm_head.weight.new_zeros(VOCABULARY, 64)
        model.lm_head.weight.data = wide[:, :32]  # rows that do not follow each other
    assert isinstance(rows_of(model, 1), ByTorch)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_small_weights_are_read_as_they_are(kernels: None, kind: str) -> None:
    model = new_decoder(ODD["whole vectors"], 112, seed=3).eval()
    given = sequences([30] * 5, 112)
    small = model.bfloat16() if kind == "bf16" else quantize(model)
    rows = rows_of(small, 5)
    assert isinstance(rows, ByC)
    ours = fed(rows, given, 21)
    wide = new_decoder(model.cfg, 112, seed=3).eval()  # with the small weights' numbers, in fp32
    for name, parameter in wide.state_dict().items():
        stem = name.removesuffix(".weight") if name == "model.embed_tokens.weight" and kind == "int8" else name
        held = small.state_dict()
        if f"{stem}.values" in held:
            parameter.copy_(held[f"{stem}.values"].float() * held[f"{stem}.scales"].float().unsqueeze(-1))
        else:
            parameter.copy_(held[name])
    torch.testing.assert_close(ours, fed(rows_of(wide, 5), given, 21), rtol=1e-4, atol=1e-4)
    assert torch.equal(ours[3:4], fed(rows_of(small, 1), given[3:4], 21))


def test_torch_computes_equal_prompts_once(model: Decoder) -> None:
    rows = ByTorch(model, 4)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    prompts = [[5, 6, 7], [8, 9], [5, 6, 7], [5, 6, 7]]
    held = [rows.take(8) for _ in prompts]
    made = rows.feed([Piece(row, prompt, True) for row, prompt in zip(held, prompts, strict=True)])
    assert seen == [2] and torch.equal(made[0], made[2]) and not torch.equal(made[0], made[1])


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "decoding in C sees a row's own positions and no further",
        "moe/kernels/decode/step.c",
        "attend(r.joined + token * width + head * dim, group, cache, at.room, at.position + 1, dim, scores,",
        "attend(r.joined + token * width + head * dim, group, cache, at.room, longest, dim, scores,",
        "test_a_rows_bits_do_not_hang_on_the_others_nor_on_how_its_prompt_was_cut",
    ),
    (
        "decoding in C takes the likeliest experts",
        "moe/kernels/decode/step.c",
        "if (!taken && (best < 0 || odds[e] > odds[best])) best = e;",
        "if (!taken && (best < 0 || odds[e] >= odds[best])) best = e;",
        "test_of_equally_likely_experts_the_first_are_taken",
    ),
    (
        "a row's logits in C do not hang on the rows beside it",
        "moe/kernels/decode/products.h",
        "return sums(acc);",
        "return sums(acc) + (rows == 4 ? acc[0] * 1e-7f : acc[0] * 0.0f);",
        "test_a_rows_bits_do_not_hang_on_the_others_nor_on_how_its_prompt_was_cut",
    ),
    (
        "decoding in C reads the weights that the model has now",
        "moe/kernels/decode/step.py",
        "if read != self._read:",
        "if not self._read and (read != self._read):",
        "test_new_weights_count_from_the_next_step_on",
    ),
]

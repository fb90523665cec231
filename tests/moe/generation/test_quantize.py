"""An int8 model: nearly the same logits, a quarter of the memory, an untouched router."""

import copy

import pytest
import torch

from conf.errors import InputError
from conf.knobs.model import Model
from moe.decoder import Decoder, new_decoder
from moe.generation.engine import Sampling, generate
from moe.generation.quantize import quantize
from moe.router import route

CFG = Model(hidden_size=128, layers=2, heads=4, kv_heads=2, head_dim=32, experts=8, expert_size=64, context=96)


def bytes_of(model: Decoder) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def test_logits_hardly_move_and_memory_falls_to_a_quarter() -> None:
    model = new_decoder(CFG, 512, seed=2).eval()
    small = quantize(copy.deepcopy(model))
    tokens = torch.randint(0, 512, (4, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model.logits(model(tokens, torch.ones_like(tokens)).states)
        got = small.logits(small(tokens, torch.ones_like(tokens)).states)
    assert (got - expected).norm() / expected.norm() < 0.03
    assert (got.argmax(1) == expected.argmax(1)).float().mean() > 0.9
    assert bytes_of(small) < 0.27 * bytes_of(model)


def test_the_router_stays_as_it_is() -> None:
    model = new_decoder(CFG, 512, seed=2).eval()
    small = quantize(copy.deepcopy(model))
    x = torch.randn(9, CFG.hidden_size, generator=torch.Generator().manual_seed(1))
    for was, now in zip(model.model.blocks(), small.model.blocks(), strict=True):
        assert torch.equal(was.mlp.gate.weight, now.mlp.gate.weight)
        routes = now.mlp(x)[1]
        assert torch.equal(routes.experts, route(x, was.mlp.gate.weight, CFG.top_k).experts)


@pytest.mark.slow
def test_greedy_answers_are_mostly_the_same() -> None:
    """After learning to count: a trained model is sure of its tokens, as random weights are not."""
    model = new_decoder(CFG, 128, seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    starts = torch.randint(0, 60, (40, 16), generator=torch.Generator().manual_seed(0))
    for first in starts:
        tokens = first.unsqueeze(1) + torch.arange(24)
        states = model(tokens, torch.ones_like(tokens)).states.view(16, 24, -1)[:, :-1]
        torch.nn.functional.cross_entropy(model.logits(states.flatten(0, 1)), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    prompts = [[first, first + 1] for first in range(5, 45, 5)]
    greedy = [Sampling(max_new_tokens=20, temperature=0.0)] * len(prompts)
    plain = [answer.tokens for answer in generate(model.eval(), prompts, greedy, stop=())]
    small = [answer.tokens for answer in generate(quantize(model), prompts, greedy, stop=())]
    same = [a == b for one, other in zip(plain, small, strict=True) for a, b in zip(one, other, strict=True)]
    assert sum(same) / len(same) > 0.95


def test_a_width_that_the_kernel_cannot_read_is_refused() -> None:
    cfg = Model(hidden_size=40, layers=1, heads=2, kv_heads=1, head_dim=16, experts=2, expert_size=32, context=96)
    with pytest.raises(InputError, match=r"int8: model.embed_tokens.weight has a width of 40, which must divide by 16"):
        quantize(new_decoder(cfg, 64))

"""Attention over documents that lie one after another, as it runs on CUDA, against the one over a grid.

The kernel behind it exists for CUDA only. Here the operator has a kernel for the CPU as well, of plain products, so
that what it is given, and what is made of its gradients, is seen on any machine.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from conf.knobs.model import Model
from moe import decoder
from moe.kernels import attention as module
from moe.kernels.attention import attend_packed, attention

HEADS, SIZE = 4, 8
LENGTHS = [5, 1, 9, 3]


def _document(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    """(queries, keys and values [heads, n, D], weights [heads, n, n]) of one, in fp64."""
    query, key, value = (each.double().transpose(0, 1) for each in (q, k, v))
    key, value = (each.repeat_interleave(query.shape[0] // key.shape[0], 0) for each in (key, value))
    later = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    scores = (query @ key.mT / q.shape[-1] ** 0.5).masked_fill(later, float("-inf"))
    return query, key, value, scores.softmax(-1)


def _forward(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, same: Tensor, longest: int, *more: Any
) -> tuple[Tensor, ...]:
    _, causal, _, window, *_ = more
    assert causal and list(window) == [-1, 0] and torch.equal(ends, same) and ends.dtype == torch.int32
    assert longest == int(ends.diff().max())
    parts = [_document(q[at:to], k[at:to], v[at:to]) for at, to in pairwise(ends.tolist())]
    out = torch.cat([(weights @ value).transpose(0, 1) for _, _, value, weights in parts]).to(q.dtype)
    return out, torch.zeros(q.shape[1], q.shape[0]), torch.zeros(2, dtype=torch.uint64)


def _backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, ends: Tensor, *more: Any) -> Any:
    made: list[list[Tensor]] = [[], [], []]
    for at, to in pairwise(ends.tolist()):
        query, key, value, weights = _document(q[at:to], k[at:to], v[at:to])
        slope = grad[at:to].double().transpose(0, 1)
        d_weights = slope @ value.mT
        d_scores = weights * (d_weights - (d_weights * weights).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5
        shared = k.shape[1], -1, to - at, q.shape[-1]  # heads that share a key add up
        for into, each in zip(made, (d_scores @ key, d_scores.mT @ query, weights.mT @ slope), strict=True):
            into.append((each if into is made[0] else each.view(shared).sum(1)).transpose(0, 1))
    return tuple(torch.cat(each).to(q.dtype) for each in made)


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu() -> Iterator[None]:
    varlen._varlen_attn.register_kernel("cpu")(_forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(_backward)
    yield


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_documents_in_a_line_see_what_they_see_on_a_grid(kv_heads: int) -> None:
    dice = torch.Generator().manual_seed(kv_heads)
    joined = torch.randn(sum(LENGTHS), HEADS + 2 * kv_heads, SIZE, generator=dice)
    slope = torch.randn(sum(LENGTHS), HEADS, SIZE, generator=dice)
    ends = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0).tolist()], dtype=torch.int32)
    one, other = joined.clone().requires_grad_(), joined.clone().requires_grad_()
    packed = attend_packed(one, HEADS, kv_heads, ends, max(LENGTHS))
    alone = torch.cat([attention(part.unsqueeze(0), HEADS, kv_heads)[0] for part in other.split(LENGTHS)])
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-6)
    (packed * slope).sum().backward()
    (alone * slope).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)


def test_an_older_torch_gets_heads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def older(q: Tensor, k: Tensor, v: Tensor, *rest: Any, is_causal: bool) -> Tensor:
        seen.update(heads=(q.shape[1], k.shape[1], v.shape[1]), causal=is_causal)
        return q

    monkeypatch.setattr(module, "_varlen", lambda: (older, frozenset({"is_causal"})))
    joined = torch.arange(2.0 * 8 * SIZE).view(2, 8, SIZE)  # 4 heads, 2 of keys, 2 of values
    made = attend_packed(joined, HEADS, 2, torch.tensor([0, 2], dtype=torch.int32), 2)
    assert seen == {"heads": (4, 4, 4), "causal": True} and torch.equal(made, joined[:, :HEADS])


def test_a_model_is_the_same_by_either_road(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed rows with padding, documents of every length."""
    cfg = Model(hidden_size=32, layers=2, heads=4, kv_heads=2, head_dim=8, experts=2, expert_size=16, init_std=0.2)
    model = decoder.new_decoder(cfg, 64, seed=2)
    tokens = torch.randint(0, 64, (3, 12), generator=torch.Generator().manual_seed(1))
    segments = torch.tensor([[1] * 5 + [2] * 7, [1] * 12, [1, 2, 3] + [4] * 6 + [0] * 3])
    grid = model(tokens, segments).states
    monkeypatch.setattr(decoder, "packs", lambda joined: True)
    torch.testing.assert_close(model(tokens, segments).states, grid, rtol=1e-4, atol=1e-5)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "no packed document sees another on CUDA",
        "moe/decoder.py",
        "ends = torch.cat((first, first.new_tensor([index.shape[0]]))).int()",
        "ends = first.new_tensor([0, index.shape[0]]).int()",
        "test_a_model_is_the_same_by_either_road",
    ),
    (
        "packed attention on CUDA is causal",
        "moe/kernels/attention.py",
        '"window_size": (-1, 0)',
        '"window_size": (-1, -1)',
        "test_documents_in_a_line_see_what_they_see_on_a_grid",
    ),
]

"""The sorted backend against a plain loop over tokens.

Planted bugs these turn red: gate and up swapped, weights not applied, an empty expert's gradient left uninitialised.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe.kernels.sorted_experts import torch_experts

pytestmark = pytest.mark.usefixtures("any_processor")


def plain_loop(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    rows = []
    for n in range(x.shape[0]):
        total = torch.zeros_like(x[n])
        for e, weight in zip(experts[n].tolist(), weights[n], strict=True):
            gate, up = (gate_up[e] @ x[n]).chunk(2)
            total = total + weight * (down[e] @ (F.silu(gate) * up))
        rows.append(total)
    return torch.stack(rows) if rows else 0 * x


@pytest.mark.parametrize(("n", "e", "k"), [(7, 4, 2), (5, 4, 1), (6, 3, 3), (1, 8, 2), (0, 4, 2)])
@pytest.mark.parametrize("skewed", [False, True])
def test_forward_and_gradients_equal_the_plain_loop(n: int, e: int, k: int, skewed: bool) -> None:
    generator = torch.Generator().manual_seed(n * 100 + e * 10 + k)
    scores = torch.rand(n, e, generator=generator, dtype=torch.float64)
    if skewed:
        scores[:, 0] += 10  # expert 0 takes a token of everybody
    experts = scores.topk(k, dim=1).indices
    leaves = [
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((n, 6), (n, k), (e, 10, 6), (e, 6, 5))
    ]
    x, weights, gate_up, down = leaves
    direction = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    ours = torch_experts(x, experts, weights, gate_up, down)
    theirs = plain_loop(x, experts, weights, gate_up, down)
    torch.testing.assert_close(ours, theirs)
    expected = torch.autograd.grad((theirs * direction).sum(), leaves, allow_unused=True, materialize_grads=True)
    for got, wanted in zip(torch.autograd.grad((ours * direction).sum(), leaves), expected, strict=True):
        torch.testing.assert_close(got, wanted)


def test_an_expert_without_tokens_gets_a_zero_gradient() -> None:
    gate_up, down = torch.ones(3, 4, 2, requires_grad=True), torch.ones(3, 2, 2, requires_grad=True)
    y = torch_experts(torch.ones(4, 2), torch.zeros(4, 1, dtype=torch.long), torch.ones(4, 1), gate_up, down)
    y.sum().backward()
    assert gate_up.grad is not None and down.grad is not None
    assert gate_up.grad[1:].abs().sum() == 0 and down.grad[1:].abs().sum() == 0
    assert down.grad[0, 0, 0].item() == pytest.approx(4 * 2 * torch.tensor(2.0).sigmoid().item() * 2)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an expert without tokens has a gradient of zeros",
        "moe/kernels/sorted_experts.py",
        "room[e].zero_()",
        "room[e].fill_(1)",
        "test_an_expert_without_tokens_gets_a_zero_gradient",
    ),
    (
        "the backward pass gathers each expert's own tokens again",
        "moe/kernels/sorted_experts.py",
        "product(d_hidden.t(), _rows(x, plan.token[share])",
        "product(d_hidden.t(), _rows(x, plan.token[share].flip(0))",
        "test_forward_and_gradients_equal_the_plain_loop",
    ),
]

"""Int8 matrices: small errors, products and experts of the widened ones."""

import pytest
import torch
from torch import Tensor

from moe.kernels.int8 import Int8, int8_experts


def widened(rows: Int8) -> Tensor:
    return rows.values.float() * rows.scales.float().unsqueeze(-1)


def test_a_weight_is_off_by_half_a_step_of_its_row() -> None:
    weight = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    weight[1, 2] = 0.0
    rows = Int8(weight)
    off = (widened(rows) - weight).abs()
    assert bool((off <= 0.501 * rows.scales.float().unsqueeze(-1)).all())
    assert torch.equal(widened(rows)[1, 2], torch.zeros(32))
    assert rows.values.min() >= -127


@pytest.mark.parametrize("tokens", [0, 1, 2, 5, 33])
@pytest.mark.parametrize(("rows", "columns"), [(7, 16), (33, 48), (64, 32), (1, 144)])
def test_a_product_is_that_of_the_widened_matrix(tokens: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = Int8(torch.randn(rows, columns, generator=generator))
    x = torch.randn(tokens, columns, generator=generator).bfloat16().float()
    expected = x @ widened(weight).t()
    torch.testing.assert_close(weight(x), expected, atol=0.01, rtol=0.008)  # bf16


def test_experts_sum_their_weighted_answers_and_may_have_none_to_give() -> None:
    generator = torch.Generator().manual_seed(0)
    gate_up, down = (
        Int8(torch.randn(4, 64, 16, generator=generator)),
        Int8(torch.randn(4, 16, 32, generator=generator)),
    )
    x = torch.randn(5, 16, generator=generator)
    experts = torch.tensor([[3, 0], [0, 3], [3, 0], [0, 3], [3, 0]])  # 1 and 2 get no token
    weights = torch.rand(5, 2, generator=generator)
    expected = torch.zeros(5, 16)
    for n in range(5):
        for e, share in zip(experts[n], weights[n], strict=True):
            gate, up = (widened(gate_up)[e] @ x[n]).chunk(2)
            expected[n] += share * (widened(down)[e] @ (torch.nn.functional.silu(gate) * up))
    got = int8_experts(x, experts, weights, gate_up, down)
    assert (got - expected).norm() / expected.norm() < 0.01


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "int8 values fit the scale that is kept",
        "moe/kernels/int8.py",
        "(weight / scales.float().unsqueeze(-1))",
        "(weight / (weight.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127))",
        None,
    ),
]

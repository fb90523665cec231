"""Both libraries, and padding to whole tiles, give the products that fp64 gives, with and without the C kernels.

Planted bugs: padding of an expert's tile carries weight, rows of a padded product are not cut off.
"""

import pytest
import torch
from torch import Tensor

from moe.kernels import gemm
from moe.kernels.processor import Processor
from moe.kernels.sorted_experts import torch_experts

pytestmark = pytest.mark.usefixtures("any_processor")


def close(got: Tensor, wanted: Tensor) -> None:
    got, wanted = got.detach().double(), wanted.detach()
    torch.testing.assert_close(got, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=0.0)


def test_products_of_any_strides() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, m, p in ((128, 64, 192), (65, 64, 64), (1, 64, 128), (64, 0, 64)):
        a, b = torch.randn(n, m, generator=generator), torch.randn(m, p, generator=generator)
        wanted = a.double() @ b.double()
        for left in (a, a.t().contiguous().t()):
            for right in (b, b.t().contiguous().t()):
                out = torch.full((n, p), 7.0)
                assert gemm.product(left, right, out=out) is out
                for got in (out, gemm.product(left, right)):
                    torch.testing.assert_close(got.double(), wanted, atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("n", [1, 63, 64, 100])
def test_joined_linear_maps_and_their_gradients(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    leaves = [torch.randn(*s, generator=generator).requires_grad_() for s in ((n, 64), (64, 64), (128, 64))]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    direction = torch.randn(n, 192, generator=generator)
    y = gemm.linear(*leaves)
    wanted = exact[0] @ torch.cat(exact[1:]).t()
    assert y.shape == (n, 192)
    close(y, wanted)
    with torch.no_grad():
        close(gemm.linear(*leaves), wanted)
    y.backward(direction)
    wanted.backward(direction.double())
    for leaf, other in zip(leaves, exact, strict=True):
        assert leaf.grad is not None and other.grad is not None
        close(leaf.grad, other.grad)


@pytest.mark.parametrize("skewed", [False, True])
def test_experts_of_padded_tiles(any_processor: Processor, skewed: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(300, 4, generator=generator)
    if skewed:
        scores[:, 0] += 1  # everybody goes to expert 0, nobody to expert 3
        scores[:, 3] -= 1
    experts = scores.topk(2).indices
    shapes = ((300, 64), (300, 2), (4, 128, 64), (4, 64, 64))
    leaves = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]  # fp64 is never padded
    assert gemm.tile(leaves[0], 150) == (gemm.TILE if any_processor.onednn else 1) and gemm.tile(exact[0], 150) == 1
    direction = torch.randn(300, 64, generator=generator)
    y = torch_experts(leaves[0], experts, *leaves[1:])
    wanted = torch_experts(exact[0], experts, *exact[1:])
    close(y, wanted)
    y.backward(direction)
    wanted.backward(direction.double())
    for leaf, other in zip(leaves, exact, strict=True):
        assert leaf.grad is not None and other.grad is not None
        close(leaf.grad, other.grad)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "padding of an expert's tile carries no weight",
        "moe/kernels/sorted_experts.py",
        "weight = weight.new_zeros(slots)",
        "weight = weight.new_ones(slots)",
        "test_experts_of_padded_tiles",
    ),
    (
        "rows that pad a product are cut off",
        "moe/kernels/gemm.py",
        "return product(x, weight.t())[:n]",
        "return product(x, weight.t())",
        "test_joined_linear_maps_and_their_gradients",
    ),
]

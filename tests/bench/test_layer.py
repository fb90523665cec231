"""The layer of experts, forward and backward, against every one of transformers' that trains on a CPU.

(Its batched_mm is left out: it copies a whole expert for every token, which at these sizes does not fit into memory.)
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3MoeConfig
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from moe.kernels.allocator import keep_buffers
from moe.kernels.gemm import product
from moe.kernels.sorted_experts import torch_experts
from tests.bench.measure import rates, record, sized

pytestmark = [pytest.mark.bench, pytest.mark.timeout(600)]
TOKENS, ROUNDS = sized((4096, 9), (256, 1))
OPERATIONS = sized(2e9, 1e6)  # of a measurement of the ceiling
SHAPES = sized(
    [(256, 8, 2, 512), (512, 16, 4, 512), (256, 64, 8, 512), (512, 8, 2, 1024)], [(64, 4, 2, 64)]
)  # H, E, k, I


def ceilings(
    hidden: int, experts: int, top_k: int, inner: int, kind: torch.dtype
) -> tuple[dict[str, Callable[[], object]], float]:
    """One product of an expert's shape, again and again, by both libraries; and its operations."""
    rows = TOKENS * top_k // experts
    x, weight, out = (torch.randn(*size).to(kind) for size in ((rows, hidden), (2 * inner, hidden), (rows, 2 * inner)))
    flops = 2.0 * rows * hidden * 2 * inner
    times = max(1, round(OPERATIONS / flops))

    def repeat(run: Callable[[], object]) -> Callable[[], object]:
        return lambda: [run() for _ in range(times)]

    runs = {"mm": repeat(lambda: torch.mm(x, weight.t(), out=out)), "product": repeat(lambda: product(x, weight.t()))}
    return runs, times * flops


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer(shape: tuple[int, int, int, int], kind: torch.dtype) -> None:
    keep_buffers()
    hidden, experts, top_k, inner = shape
    generator = torch.Generator().manual_seed(0)
    weights, ids = torch.rand(TOKENS, experts, generator=generator).softmax(-1).topk(top_k)
    leaves = [
        torch.randn(TOKENS, hidden, generator=generator),
        weights / weights.sum(-1, keepdim=True),
        torch.randn(experts, 2 * inner, hidden, generator=generator) * 0.05,
        torch.randn(experts, hidden, inner, generator=generator) * 0.05,
    ]
    leaves = [leaf.to(kind) for leaf in leaves]
    x, weights, gate_up, down = (leaf.requires_grad_() for leaf in leaves)
    direction = torch.randn(TOKENS, hidden, generator=generator).to(kind)

    def theirs(implementation: str) -> Callable[[], Tensor]:
        config: Any = Qwen3MoeConfig(
            hidden_size=hidden, num_experts=experts, moe_intermediate_size=inner, num_experts_per_tok=top_k
        )
        config._experts_implementation = implementation
        layer = Qwen3MoeExperts(config)
        layer.gate_up_proj.data, layer.down_proj.data = gate_up.data, down.data
        return lambda: layer(x, ids, weights)

    layers = {"ours": lambda: torch_experts(x, ids, weights, gate_up, down)}
    layers |= {f"transformers {name}": theirs(name) for name in ("eager", "grouped_mm")}
    outputs = {name: layer() for name, layer in layers.items()}
    near = 1e-5 if kind is torch.float32 else 2**-6 * outputs["ours"].abs().max().item()
    for y in outputs.values():
        torch.testing.assert_close(y, outputs["ours"], atol=near, rtol=1e-4)
    del outputs

    def step(layer: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for leaf in leaves:
                leaf.grad = None
            layer().backward(direction)

        return run

    runs, flops = ceilings(*shape, kind)
    amounts = dict.fromkeys(runs, flops / 1e9)
    amounts |= dict.fromkeys(layers, 3 * 2.0 * TOKENS * top_k * 3 * hidden * inner / 1e9)
    got = rates({**runs, **{name: step(layer) for name, layer in layers.items()}}, amounts, rounds=ROUNDS)
    peers = {name: rate for name, rate in got.items() if name.startswith("transformers")}
    name = f"moe_layer{'' if kind is torch.float32 else '_bf16'}/{','.join(map(str, shape))}"
    record(name, "GFLOP/s", got["ours"], peers, ceiling=max(got[library] for library in runs))
    print(f"{'':<24} {got['ours'] / got['mm']:.2f} of what torch.mm reaches at this shape")

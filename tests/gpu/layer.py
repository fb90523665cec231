"""The layer of experts, forward and backward in bf16: ours, transformers', a loop, and the six products alone."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from moe.kernels.grouped import _sorted, grouped_experts, grouped_product, obstacle
from moe.kernels.sorted_experts import torch_experts
from tests.gpu.machine import by_turns, device, peak_gib

SHAPES = {  # tokens, H, I, E, k
    "qwen3-30b-a3b": (32768, 2048, 768, 128, 8),
    "qwen3-next": (32768, 2048, 512, 512, 10),
    "31m": (4096, 256, 512, 8, 2),
    "mixtral": (8192, 4096, 14336, 8, 2),
    "olmoe": (16384, 2048, 1024, 64, 8),
}
TOY = {"toy": (64, 64, 32, 4, 2)}
GOALS = {"qwen3-30b-a3b": (1.5, 300.0)}  # times transformers' grouped_mm, TFLOP/s


def run(toy: bool) -> dict[str, Any]:
    where = device(toy)
    return {name: measured(shape, where, GOALS.get(name)) for name, shape in (TOY if toy else SHAPES).items()}


def measured(shape: tuple[int, ...], where: torch.device, goal: tuple[float, float] | None) -> dict[str, Any]:
    tokens, hidden, inner, count, top_k = shape
    torch.manual_seed(0)
    weights, experts = torch.rand(tokens, count, device=where).softmax(-1).topk(top_k)
    weights = weights / weights.sum(-1, keepdim=True)

    def leaf(*sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*sizes, device=where) * scale).bfloat16().requires_grad_()

    x, gate_up = leaf(tokens, hidden), leaf(count, 2 * inner, hidden, scale=hidden**-0.5)
    down, weights = leaf(count, hidden, inner, scale=inner**-0.5), weights.requires_grad_()
    direction, leaves = torch.randn_like(x), [x, weights, gate_up, down]
    theirs = transformers_layer(gate_up, down, top_k)
    layers: dict[str, Callable[[], Tensor]] = {
        "loop": lambda: torch_experts(x, experts, weights, gate_up, down),
        "transformers grouped_mm": lambda: theirs(x, experts, weights),
    }
    if where.type == "cpu" or not obstacle(x, gate_up):
        layers = {"ours": lambda: grouped_experts(x, experts, weights, gate_up, down)} | layers
    with torch.no_grad():
        first = layers["transformers grouped_mm"]().float()
        for name, layer in layers.items():
            apart = float((layer().float() - first).norm() / first.norm())
            assert apart < 2e-2, f"{name} is {apart:.3f} of its size apart from transformers"
        del first

    def step(layer: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            y = layer()
            for tensor in (*leaves, theirs.gate_up_proj, theirs.down_proj):
                tensor.grad = None
            y.backward(direction)

        return run

    runs = {name: step(layer) for name, layer in layers.items()}
    runs["six products"] = products(x.detach(), experts, gate_up.detach(), down.detach())
    memory = {}
    for name, once in runs.items():
        peak_gib()
        once()
        memory[name] = peak_gib()
    took = by_turns(runs)
    operations = 3 * 2 * tokens * top_k * 3 * hidden * inner
    rates = {name: round(operations / seconds / 1e12, 4) for name, seconds in took.items()}
    found: dict[str, Any] = {"shape": shape, "tflops": rates, "peak_gib": memory}
    if "ours" in rates:
        times = took["transformers grouped_mm"] / took["ours"]  # of the seconds: rates at toy size may round to 0
        found["times_transformers"] = round(times, 2)
        found["of_its_products"] = round(took["six products"] / took["ours"], 3)
        if goal:
            found["goal"] = {"times_transformers": goal[0], "tflops": goal[1]}
            found["goal_met"] = times >= goal[0] and rates["ours"] >= goal[1]
    return found


def transformers_layer(gate_up: Tensor, down: Tensor, top_k: int) -> Any:
    """transformers' experts by its grouped_mm, with our weights as parameters of its own."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    count, hidden, inner = down.shape
    config: Any = Qwen3MoeConfig(
        hidden_size=hidden, num_experts=count, moe_intermediate_size=inner, num_experts_per_tok=top_k
    )
    config._experts_implementation = "grouped_mm"
    with torch.device("meta"):
        layer = Qwen3MoeExperts(config)
    layer.gate_up_proj, layer.down_proj = nn.Parameter(gate_up.detach()), nn.Parameter(down.detach())
    return layer


def products(x: Tensor, experts: Tensor, gate_up: Tensor, down: Tensor) -> Callable[[], None]:
    """The layer's products and nothing between them: what it could reach at most."""
    order, ends, _ = _sorted(experts, gate_up.shape[0])
    rows = x.index_select(0, order // experts.shape[1])  # [A, H]
    active = rows.new_empty(rows.shape[0], down.shape[2]).normal_()

    def run() -> None:
        hidden = grouped_product(rows, gate_up.mT, ends)
        grouped_product(active, down.mT, ends)
        grouped_product(rows, down, ends)
        grouped_product(rows.t(), active, ends)
        grouped_product(hidden.t(), rows, ends)
        grouped_product(hidden, gate_up, ends)

    return run

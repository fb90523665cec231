"""The real MegaBlocks layer and `moe.kernels.megablocks` against `torch_experts`, measured on a CPU.

Run by test_megablocks.py in a process of its own, because Triton interprets its kernels only if TRITON_INTERPRET=1 is
set before it is imported. Prints one JSON object.
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moe.kernels import megablocks_ops
from moe.kernels.megablocks import experts_megablocks
from moe.kernels.sorted_experts import torch_experts

Call = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Case(NamedTuple):
    tokens: int
    hidden: int
    inner: int
    experts: int
    top_k: int
    busy: int  # experts that tokens may go to; the others stay empty
    skewed: bool = False  # expert 0 gets a token of everybody

    def __str__(self) -> str:
        shape = f"N{self.tokens}-H{self.hidden}-I{self.inner}-E{self.experts}-k{self.top_k}"
        return f"{shape}-busy{self.busy}{'-skewed' * self.skewed}"


# The real layer's constructor needs I*E >= 128.
GROUPED = [
    Case(24, 32, 32, 4, 2, busy=4),
    Case(24, 32, 32, 4, 2, busy=4, skewed=True),
    Case(24, 32, 32, 4, 2, busy=2),
    Case(20, 24, 16, 8, 1, busy=8),
    Case(20, 24, 16, 8, 1, busy=3),
    Case(20, 24, 16, 8, 1, busy=1),
    Case(17, 8, 48, 5, 3, busy=5, skewed=True),
    Case(17, 8, 48, 5, 3, busy=4),
    Case(12, 12, 34, 4, 4, busy=4),
    Case(9, 6, 22, 6, 6, busy=6),
    Case(13, 7, 45, 3, 2, busy=3),
    Case(13, 7, 45, 3, 3, busy=3, skewed=True),
    Case(1, 33, 17, 8, 2, busy=8),
    Case(7, 65, 131, 1, 1, busy=1),
    Case(19, 16, 9, 16, 4, busy=6, skewed=True),
]
SPARSE = [Case(8, 128, 128, 3, 2, busy=3), Case(5, 128, 128, 4, 1, busy=2, skewed=True)]
EMPTY = Case(0, 16, 8, 4, 2, busy=4)
NAMES = ("y", "x", "weights", "gate_up", "down")  # the output, then the gradients


def inputs(case: Case, *, device: str = "cpu") -> tuple[Tensor, list[Tensor], Tensor]:
    """(experts [N, k], the leaves x, weights, gate_up and down, the gradient of y [N, H])."""
    generator = torch.Generator().manual_seed(sum(case))
    scores = torch.rand(case.tokens, case.experts, generator=generator)
    scores[:, case.busy :] -= 10
    if case.skewed:
        scores[:, 0] += 10
    experts = scores.topk(case.top_k, dim=1).indices
    n, h, i, e = case.tokens, case.hidden, case.inner, case.experts
    gate_up = torch.randn(e, 2 * i, h, generator=generator) * h**-0.5
    down = torch.randn(e, h, i, generator=generator) * i**-0.5
    weights = torch.rand(n, case.top_k, generator=generator) + 0.5
    leaves = [torch.randn(n, h, generator=generator), weights, gate_up, down]
    direction = torch.randn(n, h, generator=generator)
    return experts.to(device), [leaf.to(device).requires_grad_() for leaf in leaves], direction.to(device)


def results(call: Call, case: Case, *, device: str = "cpu") -> list[Tensor]:
    """What `call` makes of the case, in the order of NAMES."""
    experts, leaves, direction = inputs(case, device=device)
    x, weights, gate_up, down = leaves
    y = call(x, experts, weights, gate_up, down)
    return [y.detach(), *torch.autograd.grad(y, leaves, direction)]


def errors(call: Call, case: Case, *, device: str = "cpu") -> dict[str, float]:
    """Largest difference from `torch_experts`: of y absolute, of a gradient relative to its largest entry."""
    found = {}
    wanted = results(torch_experts, case, device=device)
    for name, mine, right in zip(NAMES, results(call, case, device=device), wanted, strict=True):
        assert mine.shape == right.shape and mine.dtype == right.dtype, (name, mine.shape, mine.dtype)
        difference = (mine - right).abs().max().item() if right.numel() else 0.0
        scale = 1.0 if name == "y" or not difference else right.abs().max().item()
        found[name] = difference / scale if scale else float("inf")
    return found


def layer(case: Case, kind: str, change: str = "") -> Call:
    """The real `ParallelDroplessMLP` with our weights in its order; `change` plants a mistake in that order."""
    from megablocks.layers.arguments import Arguments
    from megablocks.layers.dmoe import ParallelDroplessMLP

    def call(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        args = Arguments(
            hidden_size=case.hidden,
            ffn_hidden_size=case.inner,
            bias=False,
            return_bias=False,
            activation_fn=F.silu,
            moe_num_experts=case.experts,
            moe_top_k=case.top_k,
            moe_loss_weight=0,
            mlp_type="glu",
            mlp_impl="grouped",
            fp16=False,
            device=torch.device("cpu"),
        )
        args.mlp_impl = kind  # only its constructor refuses "sparse" with a new Triton
        mlp = ParallelDroplessMLP(args)
        gate, up = gate_up.chunk(2, dim=1)
        if change == "gate and up swapped":
            gate, up = up, gate
        turned = down if change == "down not transposed" else down.transpose(1, 2)
        owned = {"mlp.w1": gate, "mlp.v1": up, "mlp.w2": turned}
        rows = {name: weight.reshape(-1, case.hidden).contiguous() for name, weight in owned.items()}
        scores = torch.zeros(len(x), case.experts)  # for its own balance loss, which is off
        given: Any = (x.unsqueeze(1), scores, weights, experts)
        return torch.func.functional_call(mlp, rows, given).squeeze(1)

    return call


def in_bf16(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    with torch.autocast(x.device.type, dtype=torch.bfloat16):
        return experts_megablocks(x, experts, weights, gate_up, down)


def count_launches() -> Counter[str]:
    """Let each kernel have one configuration, since there is nothing to tune on a CPU, and count its runs."""
    import stk.backend.triton_kernels as products
    import triton
    from megablocks.backend import kernels as copies

    launches: Counter[str] = Counter()
    for name, kernel in [*vars(copies).items(), *vars(products).items()]:
        if isinstance(kernel, triton.runtime.Autotuner):
            kernel.configs = kernel.configs[:1]
            kernel.configs[0].pre_hook = lambda _, name=name: launches.update([name])
    return launches


def main() -> None:
    import megablocks
    import triton

    launches = count_launches()
    report: dict[str, Any] = {"ours": {str(case): errors(experts_megablocks, case) for case in [*GROUPED, EMPTY]}}
    report["ours_launches"] = dict(launches)
    for kind, cases in (("grouped", GROUPED), ("sparse", SPARSE)):
        launches.clear()
        report[kind] = {str(case): errors(layer(case, kind), case) for case in cases}
        report[f"{kind}_launches"] = dict(launches)
    for change in ("gate and up swapped", "down not transposed"):
        report[change] = errors(layer(GROUPED[0], "grouped", change), GROUPED[0])
    report["bf16"] = errors(in_bf16, GROUPED[0])
    report["package"] = [megablocks.__file__, triton.__version__, triton.knobs.runtime.interpret]
    print(json.dumps(report))


if __name__ == "__main__":
    megablocks_ops.install()
    main()

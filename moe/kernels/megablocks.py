"""The experts by MegaBlocks' grouped dropless path (Gale et al. 2022): its sort, permutation and grouped products.

The only file that imports megablocks, and only when it is called: the package loads Triton. Its compiled CUDA code is
used where it can be imported; else megablocks_ops.py stands in for it. Router, losses and parameters stay ours.

Letters: N tokens, H hidden size, E experts, I inner width, k experts per token, A = N*k assignments.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conf.errors import InputError
from moe.kernels import megablocks_ops
from moe.kernels.gemm import product_dtype
from moe.kernels.sorted_experts import torch_experts

_OFFSETS = 2**31  # the kernels address the A*H permuted numbers by int32


def available(x: Tensor) -> bool:
    """Whether `compute.experts=auto` may send the tokens x here: CUDA, matrix products in bf16, package importable."""
    return x.is_cuda and product_dtype(x) is torch.bfloat16 and _importable()


def experts_megablocks(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """`torch_experts` by another road: the same arguments, shapes and, to rounding, results.

    x [N, H], experts [N, k] int64, weights [N, k], gate_up [E, 2I, H] (gate rows first), down [E, H, I] -> y [N, H] in
    the dtype of x. Products are in autocast's dtype where that is on, else in that of x; a gradient has the dtype of
    what it belongs to. One device sync a call: grouped_gemm wants the counts on the CPU.

    Raises InputError where MegaBlocks cannot be imported, where CUDA products are not to be bf16 (grouped_gemm knows no
    other dtype), and where A*H numbers are too many for its offsets.
    """
    if x.shape[0] == 0:
        return torch_experts(x, experts, weights, gate_up, down)
    dtype, count, top_k = product_dtype(x), gate_up.shape[0], experts.shape[1]
    if x.is_cuda and dtype is not torch.bfloat16:
        raise InputError(
            f"compute.experts=megablocks computes in bf16 on CUDA, not in {dtype}; "
            "set compute.precision=bf16 or compute.experts=torch"
        )
    if experts.numel() * x.shape[1] >= _OFFSETS:
        raise InputError(
            f"compute.experts=megablocks takes fewer than {_OFFSETS // x.shape[1]} assignments of hidden size "
            f"{x.shape[1]} at once, not {experts.numel()}; raise accumulate, or set compute.experts=torch"
        )
    ops, gmm = _package()
    with torch.autocast(x.device.type, enabled=False):  # casts are explicit; the weights of a token keep their dtype
        flat = experts.flatten().int()
        bins, order = ops.sort(flat, max((count - 1).bit_length(), 1))  # [A] expert, assignment
        counts = ops.histogram(flat, count)  # [E]
        ends = ops.inclusive_cumsum(counts, 0).view(count)
        sizes = counts.cpu().long()
        grouped = ops.gather(x.to(dtype).contiguous(), order, bins, ends, top_k)  # [A, H]
        gate, up = gmm(grouped, gate_up.to(dtype), sizes, trans_b=True).chunk(2, dim=1)
        out = gmm(F.silu(gate) * up, down.to(dtype), sizes, trans_b=True)  # [A, H]
        return ops.scatter(out, order, bins, weights.flatten(), ends, top_k).to(x.dtype)


def _package() -> tuple[Any, Any]:
    """(`megablocks.ops`, `grouped_gemm.ops.gmm`)."""
    megablocks_ops.install()
    try:
        import megablocks.ops
        from grouped_gemm.ops import gmm
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            f"compute.experts=megablocks cannot be imported ({error!r}); "
            "install it with `make gpu`, which needs no compiler, or set compute.experts=torch"
        ) from error
    return megablocks.ops, gmm


@cache
def _importable() -> bool:
    try:
        _package()
    except InputError:
        return False
    return True

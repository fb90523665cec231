"""Int8 weights for inference: symmetric, one scale a row; about a quarter of the memory of fp32.

Attention, experts, embedding and vocabulary head are quantised; the router, the norms and a scalar head are not. A
product rounds its activations to bf16 and runs on PyTorch's own int8 kernel, which never widens a whole matrix.
torchao's int8 tensors do at every call outside `torch.compile`: decoding gets slower than in fp32, instead of faster.

Letters: N tokens, H hidden size, E experts, I inner width, k experts per token.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conf.schema import InputError

if TYPE_CHECKING:
    from moe.decoder import Decoder

_BLOCK = 16  # the kernel reads past the end of rows whose width is no multiple of this
_MATRICES = (".q_proj.weight", ".k_proj.weight", ".v_proj.weight", ".o_proj.weight", ".gate_up_proj", ".down_proj")


class Int8(nn.Module):
    """A matrix [..., m, n] in the place of a parameter: int8 values with a scale for each row."""

    values: Tensor  # [..., m, n] int8
    scales: Tensor  # [..., m] bf16

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        weight = weight.detach().float()
        scales = (weight.abs().amax(-1).clamp(min=1e-12) / 127).bfloat16()  # rounded first, so that values fit it
        values = (weight / scales.float().unsqueeze(-1)).round().clamp(-127, 127)
        self.register_buffer("values", values.to(torch.int8))
        self.register_buffer("scales", scales)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, n] times the transpose of [m, n] -> [N, m]."""
        return _product(x, self.values, self.scales)


class _Embedding(Int8):
    def forward(self, ids: Tensor) -> Tensor:
        return self.values[ids].float() * self.scales[ids].float().unsqueeze(-1)


def quantize(model: "Decoder") -> "Decoder":
    """Turn the weights into int8, in place. The model can then only generate: it is neither trained nor saved.

    Raises InputError naming a weight whose width does not divide by 16.
    """
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and parameter.shape[-1] % _BLOCK:
            raise InputError(f"int8: {name} has a width of {parameter.shape[-1]}, which must divide by {_BLOCK}")
    for name, parameter in list(model.named_parameters()):
        if name.endswith(_MATRICES) or name == "lm_head.weight":
            owner, _, attribute = name.rpartition(".")
            module = model.get_submodule(owner)
            delattr(module, attribute)
            setattr(module, attribute, Int8(parameter))
    model.model.set_submodule("embed_tokens", _Embedding(model.model.embed_tokens.weight))
    for layer in model.model.blocks():
        layer.mlp.backend = int8_experts  # type: ignore[assignment]
    return model.eval()


def int8_experts(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Int8, down: Int8) -> Tensor:
    """`moe.experts` for int8 matrices: x [N, H], experts and weights [N, k], gate_up [E, 2I, H], down [E, H, I]
    -> y [N, H]."""
    n, k = experts.shape
    order = experts.flatten().argsort(stable=True)
    chosen = x[order // k]  # [N*k, H]
    out = torch.empty_like(chosen)
    start = 0
    for e, count in enumerate(torch.bincount(experts.flatten()).tolist()):
        if count:
            rows = slice(start, start + count)
            gate, up = _product(chosen[rows], gate_up.values[e], gate_up.scales[e]).chunk(2, dim=-1)
            out[rows] = _product(F.silu(gate) * up, down.values[e], down.scales[e])
            start += count
    y = torch.empty_like(out)
    y[order] = out
    return torch.bmm(weights.unsqueeze(1), y.view(n, k, -1)).squeeze(1)


def _product(x: Tensor, values: Tensor, scales: Tensor) -> Tensor:
    return torch._weight_int8pack_mm(x.bfloat16(), values, scales).to(x.dtype)

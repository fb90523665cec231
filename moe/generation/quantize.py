"""Int8 weights for inference: symmetric, one scale a row; about a quarter of the memory of fp32.

Attention, experts, embedding and vocabulary head are quantised; the router, the norms and a scalar head are not.
"""

from torch import Tensor

from conf.errors import InputError
from moe.decoder import Decoder
from moe.kernels.int8 import Int8, int8_experts

_BLOCK = 16  # the kernel reads past the end of rows whose width is no multiple of this
_MATRICES = (".q_proj.weight", ".k_proj.weight", ".v_proj.weight", ".o_proj.weight", ".gate_up_proj", ".down_proj")


class _Embedding(Int8):
    def forward(self, ids: Tensor) -> Tensor:
        return self.values[ids].float() * self.scales[ids].float().unsqueeze(-1)


def quantize(model: Decoder) -> Decoder:
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

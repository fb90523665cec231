"""GGUF, the file that llama.cpp runs: read as the Hugging Face checkpoint that it was, and written.

Mixtral is architecture `llama` with experts, Qwen3-MoE is `qwen3moe`. llama.cpp turns pairs of neighbouring numbers in
the heads of `llama`, Hugging Face the two halves of a head, so the rows of q and k change their order on the way.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader, GGUFWriter, dequantize
from torch import Tensor

from conf.errors import InputError
from moe.decoder import Decoder
from moe.formats.gguf_vocabulary import add_tokenizer
from moe.text.defaults import Defaults
from moe.text.gguf_tokenizer import open_file

_LAYER = {  # ours -> GGUF's, within a layer
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
}
_WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_DENSE = {f"ffn_{part}.weight": f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")}
_EXPERTS = re.compile(r"ffn_(gate|up|down)_exps\.weight")
_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}
_KINDS = {  # (architecture, has experts): model_type
    ("llama", False): "llama",
    ("llama", True): "mixtral",
    ("qwen3", False): "qwen3",
    ("qwen3moe", True): "qwen3_moe",
}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config.json, tensors in fp32 under their names on disk) of a .gguf file, dequantised."""
    reader = open_file(path)
    config = _config(reader, path)
    try:
        return config, dict(_tensors(reader, config, path))
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: cut short or damaged: {error}") from None


def read_config(path: Path) -> dict[str, Any]:
    """What config.json says of the model in a .gguf file."""
    return _config(open_file(path), path)


def _config(reader: GGUFReader, path: Path) -> dict[str, Any]:
    def get(key: str, default: Any = None) -> Any:
        field = reader.get_field(key)
        return default if field is None else field.contents()

    arch = str(get("general.architecture"))

    def need(name: str, default: Any = None) -> Any:
        value = get(f"{arch}.{name}", default)
        if value is None:
            raise InputError(f"{path}: {arch}.{name} is missing")
        return value

    kind = _KINDS.get((arch, bool(get(f"{arch}.expert_count"))))
    if kind is None:
        raise InputError(f"{path}: architecture {arch!r} is not supported; there are: llama, qwen3, qwen3moe")
    names = {tensor.name for tensor in reader.tensors}
    heads, hidden = need("attention.head_count"), need("embedding_length")
    head_dim = need("attention.key_length", hidden // heads)
    turned = need("rope.dimension_count", head_dim)
    if turned != head_dim:
        raise InputError(f"{path}: {arch}.rope.dimension_count={turned} is not supported; it must be {head_dim}")
    scaling = get(f"{arch}.rope.scaling.type", "none")
    if scaling != "none" or "rope_freqs.weight" in names:
        raise InputError(f"{path}: rope scaling is not supported; only unscaled rotary embedding is")
    experts = {
        "num_experts": get(f"{arch}.expert_count"),
        "num_local_experts": get(f"{arch}.expert_count"),
        "num_experts_per_tok": get(f"{arch}.expert_used_count"),
        "moe_intermediate_size": get(f"{arch}.expert_feed_forward_length"),
        "norm_topk_prob": True,  # as llama.cpp computes it, whatever the file says
    }
    theta = _decimal(need("rope.freq_base", 10000.0))
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": need("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": need("feed_forward_length", get(f"{arch}.expert_feed_forward_length")),
        "max_position_embeddings": need("context_length"),
        "sliding_window": get(f"{arch}.attention.sliding_window"),
        "rms_norm_eps": _decimal(need("attention.layer_norm_rms_epsilon")),
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "vocab_size": next(
            (int(tensor.shape[1]) for tensor in reader.tensors if tensor.name == "token_embd.weight"), 0
        ),
        "tie_word_embeddings": "output.weight" not in names,
        "bos_token_id": get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _ends(get("tokenizer.ggml.eos_token_id"), get("tokenizer.ggml.eot_token_id")),
        "pad_token_id": get("tokenizer.ggml.padding_token_id"),
        **(experts if kind in ("mixtral", "qwen3_moe") else {}),
    }


def _ends(*found: int | None) -> int | list[int] | None:
    ends = list(dict.fromkeys(end for end in found if end is not None))
    return ends if len(ends) > 1 else ends[0] if ends else None


def _decimal(value: float) -> float:
    """The shortest decimal that an fp32 number stands for: 1e-05 was stored as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _tensors(reader: GGUFReader, config: dict[str, Any], path: Path) -> Iterator[tuple[str, Tensor]]:
    to_ours = {theirs: ours for ours, theirs in _LAYER.items()} | _DENSE
    whole = {theirs: ours for ours, theirs in _WHOLE.items()}
    mixtral = config["model_type"] == "mixtral"
    block = "block_sparse_moe" if mixtral else "mlp"
    if mixtral:
        to_ours["ffn_gate_inp.weight"] = f"{block}.gate.weight"
    permuted = {}
    if config["model_type"] in ("llama", "mixtral"):
        permuted = {
            "attn_q.weight": config["num_attention_heads"],
            "attn_k.weight": config["num_key_value_heads"],
        }
    for stored in reader.tensors:
        try:
            values = torch.from_numpy(np.array(dequantize(stored.data, stored.tensor_type), dtype=np.float32))
        except NotImplementedError:
            raise InputError(
                f"{path}: tensor {stored.name} is stored as {stored.tensor_type.name}, which cannot be dequantised"
            ) from None
        name = str(stored.name)
        _, _, rest = name.partition("blk.")
        layer, _, part = rest.partition(".")
        if part in permuted:
            values = halves(values, permuted[part])
        if expert := _EXPERTS.fullmatch(part):
            projection = _MIXTRAL[expert[1]] if mixtral else f"{expert[1]}_proj"
            for e, one in enumerate(values):
                yield f"model.layers.{layer}.{block}.experts.{e}.{projection}.weight", one
        elif part in to_ours:
            yield f"model.layers.{layer}.{to_ours[part]}", values
        else:
            yield whole.get(name, name), values  # a name that is unknown is refused when the model is filled


def halves(rows: Tensor, heads: int) -> Tensor:
    """Rows [heads*D, H] of q or k from llama.cpp's order (neighbours turn together) to Hugging Face's (halves do)."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).reshape(rows.shape)


def neighbours(rows: Tensor, heads: int) -> Tensor:
    """The inverse of `halves`."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(rows.shape)


def write(model: Decoder, path: Path, defaults: Defaults, *, name: str) -> None:
    """Write a model in fp32. Raises InputError for a tokenizer that llama.cpp has no counterpart of."""
    cfg = model.cfg
    arch = "qwen3moe" if cfg.qk_norm else "llama"
    out = GGUFWriter(path, arch)
    out.add_name(name)
    out.add_file_type(0)  # all fp32
    out.add_vocab_size(model.vocab_size)
    out.add_context_length(cfg.context)
    out.add_embedding_length(cfg.hidden_size)
    out.add_block_count(cfg.layers)
    out.add_feed_forward_length(cfg.expert_size * cfg.top_k if cfg.qk_norm else cfg.expert_size)
    if cfg.qk_norm:
        out.add_expert_feed_forward_length(cfg.expert_size)
    out.add_expert_count(cfg.experts)
    out.add_expert_used_count(cfg.top_k)
    out.add_head_count(cfg.heads)
    out.add_head_count_kv(cfg.kv_heads)
    out.add_key_length(cfg.head_dim)
    out.add_value_length(cfg.head_dim)
    out.add_rope_dimension_count(cfg.head_dim)
    out.add_rope_freq_base(cfg.rope_theta)
    out.add_layer_norm_rms_eps(cfg.norm_eps)
    add_tokenizer(out, defaults, model.vocab_size)
    for stored, values in _named(model):
        out.add_tensor_info(stored, values.shape, np.dtype(np.float32), values.numel() * 4)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    for _, values in _named(model):
        out.write_tensor_data(values.contiguous().numpy())
    out.close()


def _named(model: Decoder) -> Iterator[tuple[str, Tensor]]:
    """The tensors under their names in GGUF, one at a time: some are copies."""
    cfg = model.cfg
    for name, tensor in model.state_dict().items():
        if name in _WHOLE:
            yield _WHOLE[name], tensor
            continue
        layer, part = name.removeprefix("model.layers.").split(".", 1)
        if part == "mlp.experts.gate_up_proj":
            gate, up = tensor.chunk(2, dim=1)
            yield f"blk.{layer}.ffn_gate_exps.weight", gate
            yield f"blk.{layer}.ffn_up_exps.weight", up
        elif part == "mlp.experts.down_proj":
            yield f"blk.{layer}.ffn_down_exps.weight", tensor
        else:
            if not cfg.qk_norm and part == "self_attn.q_proj.weight":
                tensor = neighbours(tensor, cfg.heads)
            elif not cfg.qk_norm and part == "self_attn.k_proj.weight":
                tensor = neighbours(tensor, cfg.kv_heads)
            yield f"blk.{layer}.{_LAYER[part]}", tensor

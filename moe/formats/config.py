"""Our model config to a Hugging Face config.json and back. `qk_norm` chooses Qwen3-MoE, else Mixtral.

Qwen3-MoE is what upcycled Qwen3 is, and Mixtral what upcycled LLaMA and Mistral are.
"""

from typing import Any

from conf.errors import InputError
from conf.knobs.model import Model
from moe.decoder import LANGUAGE, SCALAR, Head

MIXTURES = ("qwen3_moe", "mixtral")
DENSE = ("qwen3", "llama", "mistral")  # become mixtures by upcycling
_OTHERS = {  # near relatives that a user may try, and what stands between
    "olmoe": "its q/k norm runs over all heads together and ours over each head, so no exact map exists",
    "qwen2_moe": "it has a shared expert and attention biases",
    "qwen2": "its attention has biases",
}


def to_hugging_face(cfg: Model, vocab_size: int, head: Head = LANGUAGE) -> dict[str, Any]:
    """The config.json of a model. Both spellings of a field are written where engines disagree about its name."""
    kind = "qwen3_moe" if cfg.qk_norm else "mixtral"
    out: dict[str, Any] = {
        "architectures": [
            ("Qwen3MoeFor" if cfg.qk_norm else "MixtralFor") + ("SequenceClassification" if head else "CausalLM")
        ],
        "model_type": kind,
        "vocab_size": vocab_size,
        "hidden_size": cfg.hidden_size,
        "num_hidden_layers": cfg.layers,
        "num_attention_heads": cfg.heads,
        "num_key_value_heads": cfg.kv_heads,
        "head_dim": cfg.head_dim,
        "max_position_embeddings": cfg.context,
        "rope_theta": cfg.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},
        "rms_norm_eps": cfg.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "num_experts": cfg.experts,
        "num_local_experts": cfg.experts,
        "num_experts_per_tok": cfg.top_k,
        # engines that know one width only derive the dense one from it
        "intermediate_size": cfg.expert_size * cfg.top_k if cfg.qk_norm else cfg.expert_size,
        "moe_intermediate_size": cfg.expert_size,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "router_aux_loss_coef": cfg.balance_coef,
        "router_z_loss_coef": cfg.z_coef,
        "initializer_range": cfg.init_std,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        "dtype": "float32",
        "torch_dtype": "float32",
    }
    if not cfg.qk_norm:  # Qwen3-MoE has no such field
        out["router_jitter_noise"] = cfg.jitter
    if head:
        out |= {
            "num_labels": len(head),
            "id2label": {str(number): name for number, name in enumerate(head)},
            "label2id": {name: number for number, name in enumerate(head)},
        }
    return out


def from_hugging_face(config: dict[str, Any], where: str) -> tuple[Model, int, Head]:
    """(model config, vocabulary size, head) of a config.json that `where` names; a dense model is a mixture of one
    expert. Raises InputError for a model that our decoder does not compute exactly."""
    kind = str(config.get("model_type"))
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if why := _obstacle(config, kind, rope):
        raise InputError(f"{where}: {why}")
    heads = config["num_attention_heads"]
    # transformers' order: newer files have it within, older ones beside, and Mixtral's own default is another
    theta = rope.get("rope_theta") or config.get("rope_theta") or (1e6 if kind == "mixtral" else 1e4)
    mixture: dict[str, Any] = {"experts": 1, "top_k": 1, "expert_size": config["intermediate_size"]}
    if kind in MIXTURES:
        mixtral = kind == "mixtral"
        mixture = {
            "experts": config["num_local_experts" if mixtral or "num_experts" not in config else "num_experts"],
            "top_k": config["num_experts_per_tok"],
            "expert_size": config["intermediate_size"] if mixtral else config["moe_intermediate_size"],
            "balance_coef": config.get("router_aux_loss_coef", 0.01),
            "z_coef": config.get("router_z_loss_coef", 0.0),
            "jitter": config.get("router_jitter_noise", 0.0),
        }
    cfg = Model(
        hidden_size=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        context=config["max_position_embeddings"],
        rope_theta=float(theta),
        norm_eps=config["rms_norm_eps"],
        qk_norm=kind.startswith("qwen3"),
        init_std=config.get("initializer_range", 0.02),
        **mixture,
    )
    architecture = (config.get("architectures") or [""])[0]
    head = LANGUAGE
    if architecture.endswith("SequenceClassification"):
        labels = config.get("id2label") or dict(enumerate(SCALAR))
        head = tuple(labels[number] for number in sorted(labels, key=int))
    return cfg, config["vocab_size"], head


def _obstacle(config: dict[str, Any], kind: str, rope: dict[str, Any]) -> str | None:
    """Why our decoder would not give the logits of this model, if so."""
    if kind in _OTHERS:
        return f"model_type={kind!r} is not supported: {_OTHERS[kind]}"
    if kind not in (*DENSE, *MIXTURES):
        return f"model_type={kind!r} is not supported; there are: {', '.join((*MIXTURES, *DENSE))}"
    if kind == "qwen3_moe" and not config.get("norm_topk_prob", False):
        return "norm_topk_prob=false is not supported: our router renormalises its weights"
    if kind == "qwen3_moe" and (config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1):
        return "dense layers are not supported; every layer must be MoE"
    if (activation := config.get("hidden_act", "silu")) not in ("silu", "swish"):
        return f"hidden_act={activation!r} is not supported; only silu is"
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name):
            return f"{name}=true is not supported: our projections have no bias"
    if (scaling := rope.get("rope_type") or rope.get("type") or "default") != "default":
        return f"rope scaling {scaling!r} is not supported; only unscaled rotary embedding is"
    if (config.get("partial_rotary_factor") or rope.get("partial_rotary_factor") or 1.0) != 1.0:
        return "partial_rotary_factor is not supported: our heads turn whole"
    window, context = config.get("sliding_window"), config["max_position_embeddings"]
    if window and config.get("use_sliding_window", kind in ("mistral", "mixtral")) and window < context:
        return (
            f"sliding_window={window} is not supported below max_position_embeddings={context}; "
            "lower that to the window, within which both agree"
        )
    if config.get("quantization_config"):
        return "quantized weights are not supported; take the checkpoint in fp32, bf16 or fp16, or a .gguf file"
    return None

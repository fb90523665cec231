"""Our model config to a Hugging Face config.json and back. `qk_norm` chooses Qwen3-MoE, else Mixtral."""

from typing import Any

from conf.schema import InputError, Model

LANGUAGE, SCALAR = "language", "scalar"  # the two heads

_ARCHITECTURES = {
    ("qwen3_moe", LANGUAGE): "Qwen3MoeForCausalLM",
    ("qwen3_moe", SCALAR): "Qwen3MoeForSequenceClassification",
    ("mixtral", LANGUAGE): "MixtralForCausalLM",
    ("mixtral", SCALAR): "MixtralForSequenceClassification",
}


def to_hugging_face(cfg: Model, vocab_size: int, head: str = LANGUAGE) -> dict[str, Any]:
    """The config.json of a model. Both spellings of a field are written where engines disagree about its name."""
    kind = "qwen3_moe" if cfg.qk_norm else "mixtral"
    out: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[kind, head]],
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
    if head == SCALAR:
        out |= {"num_labels": 1, "id2label": {"0": "score"}, "label2id": {"score": 0}}
    return out


def from_hugging_face(config: dict[str, Any], where: str) -> tuple[Model, int, str]:
    """(model config, vocabulary size, head) of a config.json that `where` names. Raises InputError for other kinds."""
    kind = config.get("model_type")
    if kind not in {"qwen3_moe", "mixtral"}:
        raise InputError(f"{where}: model_type={kind!r} is not supported; there are: qwen3_moe, mixtral")
    if kind == "qwen3_moe" and not config.get("norm_topk_prob", False):
        raise InputError(f"{where}: norm_topk_prob=false is not supported: our router renormalises its weights")
    if kind == "qwen3_moe" and (config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1):
        raise InputError(f"{where}: dense layers are not supported; every layer must be MoE")
    architecture = (config.get("architectures") or [""])[0]
    heads = config["num_attention_heads"]
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta", 10000.0)
    mixtral = kind == "mixtral"
    cfg = Model(
        hidden_size=config["hidden_size"],
        layers=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        experts=config["num_local_experts" if mixtral or "num_experts" not in config else "num_experts"],
        top_k=config["num_experts_per_tok"],
        expert_size=config["intermediate_size"] if mixtral else config["moe_intermediate_size"],
        context=config["max_position_embeddings"],
        rope_theta=float(theta),
        norm_eps=config["rms_norm_eps"],
        qk_norm=not mixtral,
        init_std=config.get("initializer_range", 0.02),
        balance_coef=config.get("router_aux_loss_coef", 0.01),
        z_coef=config.get("router_z_loss_coef", 0.0),
    )
    head = SCALAR if architecture.endswith("SequenceClassification") else LANGUAGE
    return cfg, config["vocab_size"], head

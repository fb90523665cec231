"""Small models of other families, as transformers writes them."""

from pathlib import Path
from typing import Any

import torch
import transformers

from tests.moe.text.foreign_tokenizers import FAMILIES

VOCABULARY = 384
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXTRA: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True, "rope_theta": 500.0},
    "mistral": {"sliding_window": None, "head_dim": 32},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "moe_intermediate_size": 48,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "head_dim": 16,
    },
}
DENSE, MIXTURES = ("llama", "mistral", "qwen3"), ("mixtral", "qwen3_moe")


def foreign(kind: str, folder: Path, *, dtype: torch.dtype = torch.float32, **saving: Any) -> Path:
    """Write a model with random weights and a tokenizer of SmolLM2's kind -> `folder`."""
    config = transformers.AutoConfig.for_model(kind, **SHAPE, **EXTRA[kind])
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # trained norms are not all one
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.to(dtype).save_pretrained(folder, **saving)
    FAMILIES["smollm"]().save(str(folder / "tokenizer.json"))
    return folder

"""Checkpoints of other families give the logits that transformers gives, or are refused by name.

Planted bugs: up before gate when a dense MLP is read, tied embeddings forgotten.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conf.errors import InputError
from conf.knobs.model import Parent
from moe.formats import certificate, checkpoints, hugging_face
from tests.moe.formats.foreign_models import DENSE, MIXTURES, VOCABULARY, foreign


@pytest.mark.parametrize("kind", [*DENSE, *MIXTURES])
def test_a_parent_has_the_logits_it_has_in_transformers(kind: str, tmp_path: Path) -> None:
    path = foreign(kind, tmp_path)
    model = checkpoints.read(path)
    tokens = certificate.batch(VOCABULARY)
    ours, (theirs, reader) = certificate.logits(model, tokens), certificate.by_transformers(path, tokens)
    assert reader == "transformers"
    assert certificate.difference(ours, theirs) < 1e-4
    assert theirs.abs().max() > 1
    assert (model.cfg.experts, model.cfg.qk_norm) == (1 if kind in DENSE else 4, kind.startswith("qwen3"))
    assert model.vocab_size == VOCABULARY
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_sharded_bf16_files_are_read(tmp_path: Path) -> None:
    whole = checkpoints.read(foreign("qwen3", tmp_path / "whole", dtype=torch.bfloat16))
    path = foreign("qwen3", tmp_path / "sharded", dtype=torch.bfloat16, max_shard_size="50KB")
    assert len(list(path.glob("*.safetensors"))) > 2
    for (name, a), b in zip(checkpoints.read(path).state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert len(checkpoints.weight_files(path)) == len(list(path.glob("*.safetensors"))) + 2  # the index and config.json


def test_a_mixture_is_continued_as_it_is(tmp_path: Path) -> None:
    path = foreign("mixtral", tmp_path)
    model = checkpoints.new_from(Parent(model=str(path), experts=2), seed=0)
    assert model.cfg.experts == 4
    assert model.cfg == hugging_face.load(path).cfg


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("llama", {"model_type": "olmoe"}, "olmoe.* is not supported: its q/k norm runs over all heads together"),
        ("llama", {"model_type": "gpt2"}, "model_type='gpt2' is not supported; there are: qwen3_moe, mixtral, qwen3"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob=false is not supported"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "every layer must be MoE"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ("llama", {"attention_bias": True}, "attention_bias=true is not supported"),
        ("llama", {"mlp_bias": True}, "mlp_bias=true is not supported"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope scaling 'linear' is not supported"),
        ("mistral", {"sliding_window": 32}, "sliding_window=32 is not supported below max_position_embeddings=64"),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 32}, "sliding_window=32 is not supported"),
        ("llama", {"quantization_config": {"quant_method": "awq"}}, "quantized weights are not supported"),
        ("llama", {"hidden_size": "wide"}, "config.json cannot be used: .*hidden_size.* expected int"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "has no language head"),
    ],
)
def test_what_we_would_compute_otherwise_is_refused(
    kind: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = foreign(kind, tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=message):
        checkpoints.read(path)


def test_a_window_as_wide_as_the_context_changes_nothing(tmp_path: Path) -> None:
    path = foreign("mistral", tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"sliding_window": 64}))
    assert checkpoints.read(path).cfg.context == 64


def test_unusable_files_are_named(tmp_path: Path) -> None:
    path = foreign("llama", tmp_path)
    weights = path / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, weights)
    with pytest.raises(InputError, match="tensor model.layers.0.self_attn.q_proj.bias is not part of this model"):
        checkpoints.read(path)
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="model.safetensors: not a safetensors file"):
        checkpoints.read(path)
    weights.rename(path / "pytorch_model.bin")
    with pytest.raises(InputError, match="pytorch_model.bin is pickled and never opened"):
        checkpoints.read(path)
    (path / "config.json").write_text("{")
    with pytest.raises(InputError, match="config.json: not JSON"):
        checkpoints.read(path)
    with pytest.raises(InputError, match="no model here"):
        checkpoints.read(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere.gguf: no such file"):
        checkpoints.read(tmp_path / "nowhere.gguf")


def test_a_dense_model_cannot_be_served_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model_type='llama' is dense; make it .* python -m moe.convert"):
        hugging_face.load(foreign("llama", tmp_path))

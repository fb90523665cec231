"""Our folders open in transformers with the same logits.

Planted bugs: gate and up swapped on disk, norm_topk_prob off.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from conf.errors import InputError
from conf.knobs.model import Model
from moe.decoder import Decoder
from moe.formats import hugging_face
from moe.formats.config import from_hugging_face, to_hugging_face
from moe.text.defaults import Defaults
from tests.moe.conftest import VOCABULARY


def rows() -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(3))


def test_transformers_gives_our_logits(model: Decoder, tmp_path: Path) -> None:
    hugging_face.save(model, tmp_path, Defaults({}, (3,), 0))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs).__name__ == ("Qwen3MoeForCausalLM" if model.cfg.qk_norm else "MixtralForCausalLM")
    with torch.no_grad():
        expected = theirs(rows()).logits.flatten(0, 1)
        ours = model.logits(model(rows(), torch.ones_like(rows())).states)
    assert (ours - expected).abs().max().item() < 1e-4
    assert ours.abs().max().item() > 0.1


def test_load_gives_back_every_weight_bit_for_bit(model: Decoder, tmp_path: Path) -> None:
    hugging_face.save(model, tmp_path, Defaults({}, (3, 4), 0))
    again = hugging_face.load(tmp_path)
    assert again.cfg == model.cfg
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [3, 4]


def test_a_scalar_head_scores_as_in_transformers(model: Decoder, tmp_path: Path) -> None:
    hugging_face.save(model, tmp_path / "chat", Defaults({}, (3,), 0))
    scalar = hugging_face.load_scalar(tmp_path / "chat", seed=0)
    hugging_face.save(scalar, tmp_path / "reward", Defaults({}, (), 0))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    with torch.no_grad():
        expected = theirs(rows()).logits.flatten()
        ours = scalar.scores(scalar(rows(), torch.ones_like(rows())).states).view(2, 20)[:, -1]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_each_score_is_a_named_label_in_transformers(model: Decoder, tmp_path: Path) -> None:
    head = ("total", "helpful", "clear")
    hugging_face.save(model, tmp_path / "chat", Defaults({}, (3,), 0))
    scored = hugging_face.load_scalar(tmp_path / "chat", seed=0, head=head)
    hugging_face.save(scored, tmp_path / "reward", Defaults({}, (), 0))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    again = hugging_face.load_scalar(tmp_path / "reward", seed=5, head=head)
    with torch.no_grad():
        states = again(rows(), torch.ones_like(rows())).states.view(2, 20, -1)[:, -1]
        torch.testing.assert_close(again.principle_scores(states), theirs(rows()).logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(again.scores(states), theirs(rows()).logits[:, 0], atol=1e-4, rtol=1e-4)
    assert theirs.config.id2label == dict(enumerate(head)) and again.head == head
    assert torch.equal(again.score.weight, scored.score.weight) and again.score.weight.unique().numel() == 3 * 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "tensor model.norm.weight is missing"),
        (lambda t: t.update({"model.extra": torch.zeros(1)}), "tensor model.extra is not part of this model"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), r"model.norm.weight has shape \[3\], not \[32\]"),
    ],
)
def test_wrong_tensors_are_refused_by_name(model: Decoder, tmp_path: Path, change: object, message: str) -> None:
    hugging_face.save(model, tmp_path, Defaults({}, (), None))
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message):
        hugging_face.load(tmp_path)


def test_other_models_are_refused_by_name(model: Decoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model here"):
        hugging_face.load(tmp_path)
    hugging_face.save(model, tmp_path, Defaults({}, (), None))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(InputError, match="model_type='gpt2' is not supported"):
        hugging_face.load(tmp_path)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "qwen3", "llama", "mistral"])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 10000.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_theta": 20000.0, "rope_parameters": {"rope_type": "default"}},
        {"rope_theta": 20000.0, "rope_parameters": None},
        {"rope_scaling": {"rope_type": "default"}, "rope_parameters": {"rope_theta": 7.0}, "rope_theta": 30000.0},
        {"rope_scaling": {"rope_type": "default", "rope_theta": 9.0}, "rope_theta": 30000.0},
        {},
    ],
)
def test_rotary_frequencies_are_those_of_transformers(kind: str, rope: dict[str, Any], tmp_path: Path) -> None:
    shape = to_hugging_face(Model(hidden_size=32, heads=2, kv_heads=1, head_dim=16), VOCABULARY)
    config = {name: value for name, value in shape.items() if not name.startswith("rope")} | rope | {"model_type": kind}
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = AutoConfig.from_pretrained(tmp_path).rope_parameters["rope_theta"]
    assert from_hugging_face(config, "here")[0].rope_theta == theirs


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "gate and up keep their places on disk",
        "moe/formats/hugging_face.py",
        "first, second = both.chunk(2)",
        "second, first = both.chunk(2)",
        None,
    ),
    (
        "the newer place of rope_theta wins, as in transformers",
        "moe/formats/config.py",
        'rope.get("rope_theta") or config.get("rope_theta")',
        'config.get("rope_theta") or rope.get("rope_theta")',
        "test_rotary_frequencies_are_those_of_transformers",
    ),
    ("no bias is exported", "moe/formats/config.py", '"attention_bias": False', '"attention_bias": True', None),
    (
        "scores keep their names on disk",
        "moe/formats/config.py",
        "sorted(labels, key=int)",
        "sorted(labels, key=int, reverse=True)",
        None,
    ),
]

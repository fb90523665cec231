"""Our folders open in transformers with the same logits.

Planted bugs: gate and up swapped on disk, norm_topk_prob off.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from conf.schema import InputError
from moe import folder
from moe.decoder import Decoder
from tests.moe.conftest import VOCABULARY


def rows() -> torch.Tensor:
    return torch.randint(1, VOCABULARY, (2, 20), generator=torch.Generator().manual_seed(3))


def test_transformers_gives_our_logits(model: Decoder, tmp_path: Path) -> None:
    folder.save(model, tmp_path, stop=(3,), pad=0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs).__name__ == ("Qwen3MoeForCausalLM" if model.cfg.qk_norm else "MixtralForCausalLM")
    with torch.no_grad():
        expected = theirs(rows()).logits.flatten(0, 1)
        ours = model.logits(model(rows(), torch.ones_like(rows())).states)
    assert (ours - expected).abs().max().item() < 1e-4
    assert ours.abs().max().item() > 0.1


def test_load_gives_back_every_weight_bit_for_bit(model: Decoder, tmp_path: Path) -> None:
    folder.save(model, tmp_path, stop=(3, 4), pad=0)
    again = folder.load(tmp_path)
    assert again.cfg == model.cfg
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == [3, 4]


def test_a_scalar_head_scores_as_in_transformers(model: Decoder, tmp_path: Path) -> None:
    folder.save(model, tmp_path / "chat", stop=(3,), pad=0)
    scalar = folder.load_scalar(tmp_path / "chat", seed=0)
    folder.save(scalar, tmp_path / "reward", pad=0)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    with torch.no_grad():
        expected = theirs(rows()).logits.flatten()
        ours = scalar.scores(scalar(rows(), torch.ones_like(rows())).states).view(2, 20)[:, -1]
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_each_score_is_a_named_label_in_transformers(model: Decoder, tmp_path: Path) -> None:
    head = ("total", "helpful", "clear")
    folder.save(model, tmp_path / "chat", stop=(3,), pad=0)
    scored = folder.load_scalar(tmp_path / "chat", seed=0, head=head)
    folder.save(scored, tmp_path / "reward", pad=0)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    again = folder.load_scalar(tmp_path / "reward", seed=5, head=head)
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
    folder.save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    change(tensors)  # type: ignore[operator]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message):
        folder.load(tmp_path)


def test_other_models_are_refused_by_name(model: Decoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model here"):
        folder.load(tmp_path)
    folder.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(InputError, match="model_type='gpt2' is not supported"):
        folder.load(tmp_path)

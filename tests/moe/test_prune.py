"""Pruning: the busiest experts stay, with their own rows of the router; what was never used is not missed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from conf.errors import InputError
from moe.decoder import Decoder
from moe.formats import hugging_face
from moe.prune import prune
from moe.text.defaults import Defaults

TOKENS = torch.randint(0, 256, (4, 24), generator=torch.Generator().manual_seed(0))


def outputs(model: Decoder, tokens: Tensor = TOKENS) -> tuple[Tensor, Tensor]:
    """(logits, load)"""
    with torch.no_grad():
        hidden = model(tokens, torch.ones_like(tokens))
        return model.logits(hidden.states), hidden.load


def test_the_busiest_experts_of_each_layer_stay_in_order(model: Decoder) -> None:
    load = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.4, 0.1, 0.1, 0.4]])  # a tie falls to the lower number
    pruned = prune(model, load, 3)
    assert pruned.cfg.experts == 3 and model.cfg.experts == 4
    for layer, kept in enumerate(([1, 2, 3], [0, 1, 3])):
        was, now = model.model.blocks()[layer].mlp, pruned.model.blocks()[layer].mlp
        assert torch.equal(now.gate.weight, was.gate.weight[kept])
        assert torch.equal(now.experts.gate_up_proj, was.experts.gate_up_proj[kept])
        assert torch.equal(now.experts.down_proj, was.experts.down_proj[kept])


def test_experts_that_a_token_does_not_choose_are_not_missed(model: Decoder) -> None:
    for token in (3, 70, 201):  # one token goes to top_k = 2 experts of each layer
        tokens = torch.tensor([[token]])
        before, load = outputs(model, tokens)
        assert load.sort(descending=True).values.tolist() == [[0.5, 0.5, 0.0, 0.0]] * 2
        torch.testing.assert_close(outputs(prune(model, load, 2), tokens)[0], before, atol=1e-5, rtol=1e-5)
        assert (outputs(prune(model, -load, 2), tokens)[0] - before).abs().max() > 0.1


def test_a_pruned_model_is_an_ordinary_one(model: Decoder, tmp_path: Path) -> None:
    pruned = prune(model, outputs(model)[1], 2)
    hugging_face.save(pruned, tmp_path, Defaults({}, (), None))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = theirs(TOKENS).logits.flatten(0, 1)
    torch.testing.assert_close(outputs(pruned)[0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("keep", [0, 1, 5])
def test_fewer_than_top_k_or_more_than_all_is_refused(model: Decoder, keep: int) -> None:
    with pytest.raises(InputError, match=rf"prune.keep={keep} must lie in \[2, 4\]: top_k, and all experts"):
        prune(model, torch.ones(2, 4), keep)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    ("the busiest experts are kept", "moe/prune.py", "argsort(descending=True,", "argsort(descending=False,", None),
]

"""An upcycled model computes what its parent does.

Planted bugs: down not scaled, slices of a copy with router rows of their own.
"""

from pathlib import Path

import pytest
import torch

from conf.errors import InputError
from conf.knobs.model import Parent
from moe.formats import certificate, checkpoints
from moe.formats.upcycle import ROUTER_STD, upcycle
from tests.moe.formats.foreign_models import DENSE, VOCABULARY, foreign


def tensors(model: torch.nn.Module, ending: str) -> list[torch.Tensor]:
    return [tensor for name, tensor in model.state_dict().items() if name.endswith(ending)]


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize(("experts", "top_k", "granularity"), [(4, 2, 1), (3, 1, 1), (4, 4, 2), (12, 4, 4)])
def test_the_logits_are_those_of_the_parent(
    kind: str, experts: int, top_k: int, granularity: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = Parent(model=str(foreign(kind, tmp_path)), experts=experts, top_k=top_k, granularity=granularity)
    model = checkpoints.new_from(cfg, seed=3)
    assert (model.cfg.experts, model.cfg.top_k, model.cfg.expert_size) == (experts, top_k, 96 // granularity)
    certificate.prove(model, tmp_path)  # an error above 1e-4
    assert "the logits differ from the parent's by at most" in capsys.readouterr().out


def test_a_difference_is_an_error(tmp_path: Path) -> None:
    path = foreign("llama", tmp_path)
    model = checkpoints.new_from(Parent(model=str(path), experts=4), seed=0)
    with torch.no_grad():
        model.lm_head.weight[5, 5] += 1e-2
    with pytest.raises(InputError, match="the logits differ by .*; rounding explains at most 1e-04"):
        certificate.prove(model, path)
    with torch.no_grad():
        model.lm_head.weight[5, 5] = float("nan")
    with pytest.raises(InputError, match="the logits differ by nan"):
        certificate.prove(model, path)


def test_experts_are_copies_and_slices_of_a_copy_share_a_router_row(tmp_path: Path) -> None:
    dense = checkpoints.read(foreign("llama", tmp_path))
    model = upcycle(dense, Parent(model="", experts=4, top_k=2, granularity=2), seed=1)
    for whole, cut in zip(tensors(dense, "gate_up_proj"), tensors(model, "gate_up_proj"), strict=True):
        gate, up = whole[0].chunk(2)
        assert torch.equal(cut[1], torch.cat((gate[48:], up[48:])))
        assert torch.equal(cut[2], cut[0]) and torch.equal(cut[3], cut[1])
    for whole, cut in zip(tensors(dense, "down_proj"), tensors(model, "down_proj"), strict=True):
        assert torch.equal(cut[0], 2 * whole[0][:, :48])
    for rows in tensors(model, "mlp.gate.weight"):
        assert torch.equal(rows[0], rows[1]) and torch.equal(rows[2], rows[3])
        assert not torch.equal(rows[0], rows[2])
    spread = torch.cat(tensors(model, "mlp.gate.weight")).std().item()
    assert abs(spread - ROUTER_STD) < 0.3 * ROUTER_STD


def test_weights_depend_on_the_seed_alone(tmp_path: Path) -> None:
    dense = checkpoints.read(foreign("llama", tmp_path))
    cfg = Parent(experts=4, noise=0.1)
    one, same, other = (upcycle(dense, cfg, seed=seed).state_dict() for seed in (1, 1, 2))
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert {name.partition("mlp.")[2] for name in changed} == {
        "gate.weight",
        "experts.gate_up_proj",
        "experts.down_proj",
    }


def test_noise_is_in_units_of_the_matrix(tmp_path: Path) -> None:
    dense = checkpoints.read(foreign("llama", tmp_path))
    noisy = upcycle(dense, Parent(experts=4, noise=0.1), seed=0)
    for ending in ("gate_up_proj", "down_proj"):
        for whole, copies in zip(tensors(dense, ending), tensors(noisy, ending), strict=True):
            assert abs(((copies - whole).std() / whole.std()).item() - 0.1) < 0.005
    tokens = certificate.batch(VOCABULARY)
    assert certificate.difference(certificate.logits(noisy, tokens), certificate.logits(dense, tokens)) > 0.01


def test_granularity_must_divide_the_width(tmp_path: Path) -> None:
    dense = checkpoints.read(foreign("llama", tmp_path))
    with pytest.raises(InputError, match="parent.granularity=5 must divide the inner width 96"):
        upcycle(dense, Parent(experts=10, top_k=5, granularity=5), seed=0)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a dense parent's gate stays the gate",
        "moe/formats/checkpoints.py",
        '_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}',
        '_MIXTRAL = {"gate": "w3", "up": "w1", "down": "w2"}',
        None,
    ),
    (
        "finer experts compute the same",
        "moe/formats/upcycle.py",
        ".transpose(0, 1) * parts)",
        ".transpose(0, 1))",
        None,
    ),
    ("NaN is no proof", "moe/formats/certificate.py", "if not found <= bound:", "if found > bound:", None),
]

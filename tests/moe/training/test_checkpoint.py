"""A training state comes back to the bit, from whole or spread files; what is not this model's is named."""

import os
import random
import resource
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cluster.checkpoints import newest_checkpoint
from cluster.saver import Saver
from conf.errors import InputError
from conf.knobs.model import Model
from conf.knobs.training import Checkpoints, Optim, Optimizer
from moe.decoder import Decoder, new_decoder
from moe.training import checkpoint
from moe.training.average import Average
from moe.training.optimizer import new_optimizer, state_tensors

CFG = Model(hidden_size=16, layers=2, heads=2, kv_heads=1, head_dim=8, experts=4, expert_size=24, context=32)
Made = tuple[Decoder, torch.optim.Optimizer, Average]


def made(kind: Optimizer = Optimizer.muon, *, seed: int = 0, steps: int = 0) -> Made:
    model = new_decoder(CFG, 50, seed=seed)
    optimizer, average = new_optimizer(model, Optim(kind=kind, lr=0.1)), Average(model, 0.9)
    for step in range(steps):
        train(model, optimizer, average, step)
    return model, optimizer, average


def train(model: Decoder, optimizer: torch.optim.Optimizer, average: Average, step: int) -> None:
    ids = torch.randint(1, 50, (2, 8), generator=torch.Generator().manual_seed(step))
    model.logits(model(ids, torch.ones_like(ids)).states).log_softmax(-1)[:, 0].mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    average.update(model)


def everything(model: Decoder, optimizer: torch.optim.Optimizer, average: Average) -> dict[str, Tensor]:
    state = {f"w.{n}": t for n, t in model.state_dict().items()} | {f"a.{n}": t for n, t in average.tensors().items()}
    return state | {f"o.{n}": t for n, t in state_tensors(model, optimizer).items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("kind", [Optimizer.adamw, Optimizer.muon])
def test_what_was_taken_comes_back_whatever_was_done_since(tmp_path: Path, kind: Optimizer) -> None:
    model, optimizer, average = state = made(kind, steps=2)
    expected = {name: tensor.clone() for name, tensor in everything(*state).items()}
    taken = checkpoint.take(*state)
    train(model, optimizer, average, 2)  # before it is written
    checkpoint.write(tmp_path, taken)
    fresh = made(kind, seed=1)
    checkpoint.load(tmp_path, *fresh)
    assert_equal(everything(*fresh), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "average-00000-of-00001.safetensors",
        "optimizer-00000-of-00001.safetensors",
        "random-00000.safetensors",
        "weights-00000-of-00001.safetensors",
    ]


def test_what_is_written_before_the_next_step_needs_no_copies(tmp_path: Path) -> None:
    model, optimizer, _ = state = made(steps=2)
    taken, copied = checkpoint.take(*state, copies=False), checkpoint.take(*state)
    own = {t.data_ptr() for t in (*model.state_dict().values(), *state_tensors(model, optimizer).values())}
    assert {t.data_ptr() for kind in ("weights", "optimizer") for t in taken[kind].values()} == own
    assert not own & {t.data_ptr() for kind in ("weights", "optimizer") for t in copied[kind].values()}
    checkpoint.write(tmp_path, taken)
    fresh = made(seed=1)
    checkpoint.load(tmp_path, *fresh)
    assert_equal(everything(*fresh), everything(*state))


def spread(folder: Path, world: int) -> None:
    """The files of one rank as so many would have written them, the last with none of the weights."""
    for kind in ("weights", "optimizer", "average"):
        path = folder / f"{kind}-00000-of-00001.safetensors"
        tensors = list(load_file(path).items())
        path.unlink()
        for rank in range(world):
            share = dict(tensors[rank :: world - 1]) if rank < world - 1 else {}
            save_file(share, folder / f"{kind}-{rank:05d}-of-{world:05d}.safetensors")


def test_files_of_several_ranks_are_read_by_one(tmp_path: Path) -> None:
    state, fresh = made(steps=1), made(seed=1)
    checkpoint.write(tmp_path, checkpoint.take(*state))
    spread(tmp_path, 3)
    checkpoint.load(tmp_path, *fresh)
    assert_equal(everything(*fresh), everything(*state))


def test_every_rank_writes_about_as_much() -> None:
    model, optimizer, _ = made(steps=1)
    tensors = {("w", n): t for n, t in model.state_dict().items()}
    tensors |= {("o", n): t for n, t in state_tensors(model, optimizer).items()}
    sizes = {key: t.numel() * t.itemsize for key, t in tensors.items()}
    for world in (1, 2, 4):
        owner = checkpoint._owners(sizes, world)
        assert owner == checkpoint._owners(dict(reversed(sizes.items())), world)  # whatever the order of names
        held = [sum(size for key, size in sizes.items() if owner[key] == rank) for rank in range(world)]
        assert sum(held) == sum(sizes.values())
        assert max(held) <= 1.05 * sum(held) / world


def draws() -> list[float]:
    """From every generator, of normal numbers too: they keep one for the next time."""
    return [
        *torch.rand(3).tolist(),
        float(torch.randn(())),
        *np.random.rand(3).tolist(),
        float(np.random.randn()),
        random.random(),
        random.gauss(0, 1),
    ]


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    draws()
    checkpoint.save(tmp_path, *made()[:2])
    expected = [draws(), draws()]
    checkpoint.load_random(tmp_path, 0, seed=5)
    assert [draws(), draws()] == expected


def test_a_rank_that_was_not_there_gets_numbers_of_its_own(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, *made()[:2])
    found = []
    for rank, seed in ((1, 5), (1, 5), (2, 5), (1, 6)):
        checkpoint.load_random(tmp_path, rank, seed)
        found.append(draws())
    assert found[0] == found[1] and not any(a == b for other in found[2:] for a, b in zip(found[0], other, strict=True))
    (tmp_path / "random-00000.safetensors").unlink()
    with pytest.raises(InputError, match=r"random-00000.safetensors is missing; resume from another checkpoint"):
        checkpoint.load_random(tmp_path, 0, seed=5)


def test_what_is_not_this_models_is_named(tmp_path: Path) -> None:
    state = made(steps=1)
    checkpoint.write(tmp_path, checkpoint.take(*state))
    weights = tmp_path / "weights-00000-of-00001.safetensors"
    right = load_file(weights)

    def refused(message: str, **changed: Tensor | None) -> None:
        there = {**right, **changed}
        save_file({name: tensor for name, tensor in there.items() if tensor is not None}, weights)
        with pytest.raises(InputError, match=message):
            checkpoint.load(tmp_path, *made())

    refused(r"weights-\*.safetensors: no tensor lm_head.weight, which this", **{"lm_head.weight": None})
    refused(r"weights-\*.safetensors: tensor extra, which this model does not have", extra=torch.zeros(1))
    refused(r"00001.safetensors: lm_head.weight has shape \[16\], but the", **{"lm_head.weight": torch.zeros(16)})
    save_file(right, weights)
    save_file({"momentum.other": torch.zeros(1)}, tmp_path / "optimizer-00000-of-00001.safetensors")
    with pytest.raises(InputError, match=r"optimizer-00000.*: momentum.other belongs to no parameter of this model"):
        checkpoint.load(tmp_path, *made())


def test_an_incomplete_or_mixed_set_of_files_is_refused(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, checkpoint.take(*made(steps=1)))
    spread(tmp_path, 3)
    (tmp_path / "weights-00001-of-00003.safetensors").rename(tmp_path / "kept")
    with pytest.raises(InputError, match=r"weights-00001-of-00003.safetensors: No such file"):
        checkpoint.load(tmp_path, *made())
    (tmp_path / "kept").rename(tmp_path / "weights-00001-of-00003.safetensors")
    save_file({}, tmp_path / "weights-00000-of-00002.safetensors")
    with pytest.raises(InputError, match=r"files of weights as \[2, 3\] ranks wrote them; only one set may be there"):
        checkpoint.load(tmp_path, *made())
    (tmp_path / "weights-00000-of-00002.safetensors").unlink()
    save_file(
        load_file(tmp_path / "weights-00000-of-00003.safetensors"), tmp_path / "weights-00001-of-00003.safetensors"
    )
    with pytest.raises(InputError, match=r"weights-00001-of-00003.*lies in weights-00000-of-00003.safetensors as well"):
        checkpoint.load(tmp_path, *made())


def test_a_disk_that_refuses_is_an_os_error(tmp_path: Path) -> None:
    taken, before = checkpoint.take(*made()), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match=r"\[Errno 27\] File too large: '.*weights-00000-of-00001.safetensors'"):
            checkpoint.write(tmp_path, taken)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = made(steps=1)
    with Saver(tmp_path, Checkpoints(), keep=2, rank=0, world=1, attempt="a") as saver:
        for step in (1, 2):
            taken = checkpoint.take(*state)
            saver.save(step, lambda folder, taken=taken: checkpoint.write(folder, taken))  # type: ignore[misc]
    newest, before = tmp_path / "step-00000002", tmp_path / "step-00000001"
    files = sorted(newest.iterdir())
    assert len(files) == 5 and newest_checkpoint(tmp_path) == (2, newest)
    dice = random.Random(0)
    for trial in range(120):
        path = files[trial % len(files)]
        right = path.read_bytes()
        if trial < 60:
            wrong = bytearray(right)
            wrong[dice.randrange(len(right))] ^= 1 << dice.randrange(8)
        else:
            wrong = bytearray(right[: dice.randrange(len(right))])
        path.write_bytes(wrong)
        assert newest_checkpoint(tmp_path) == (1, before), (trial, path)
        assert str(path) in capsys.readouterr().err
        path.write_bytes(right)
    assert newest_checkpoint(tmp_path) == (2, newest)
    fresh = made(seed=1)
    checkpoint.load(before, *fresh)
    assert_equal(everything(*fresh), everything(*state))


def test_files_have_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        checkpoint.write(tmp_path, checkpoint.take(*made(steps=1)))
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 4 and set(modes.values()) == {0o640}, modes


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "who may read the run's folder may read its checkpoints",
        "moe/training/checkpoint.py",
        "            path.chmod(mode)\n",
        "",
        "test_files_have_the_mode_that_the_umask_leaves",
    ),
    (
        "a resumed run has the optimizer's state",
        "moe/training/checkpoint.py",
        "load_state_tensors(model, optimizer, stored)",
        "pass",
        None,
    ),
    (
        "what was taken does not change under later steps",
        "moe/training/checkpoint.py",
        "share[kind][name] = copy.copy_(full)",
        "share[kind][name] = full",
        None,
    ),
    (
        "torch's dice are saved",
        "moe/training/checkpoint.py",
        '    torch.set_rng_state(state["torch"])',
        "    pass",
        None,
    ),
    ("NumPy's dice are saved", "moe/training/checkpoint.py", "    np.random.set_state((", "    id((", None),
    ("Python's dice are saved", "moe/training/checkpoint.py", "    random.setstate((3,", "    id((3,", None),
]

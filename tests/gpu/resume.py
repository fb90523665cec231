"""A training run that is killed in its sixth step and started again ends with the weights of one that was not.

`python -m tests.gpu.resume FOLDER PRECISION DEVICE [KILL]` is such a run; it prints the sha256 of its weights.
"""

import os
import signal
import subprocess
import sys
import tempfile
import warnings
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from conf.knobs.model import Compute, Model, Precision
from conf.knobs.training import Optim, Optimizer
from moe.decoder import Decoder, new_decoder
from moe.training import checkpoint
from moe.training.objectives import LANGUAGE_MODEL, Batch, in_precision
from moe.training.optimizer import new_optimizer
from moe.training.step import apply, gradients
from tests.gpu.machine import device

KINDS = (Precision.bf16, Precision.fp32)
STEPS, KILLED, SAVED = 12, 6, 2  # steps, the one that is never ended, and those between two checkpoints
CFG = Model(
    hidden_size=128, layers=2, heads=4, kv_heads=2, head_dim=32, experts=8, top_k=2, expert_size=128, jitter=0.1
)
VOCABULARY, ROWS, LENGTH = 512, 4, 64


def run(toy: bool) -> dict[str, Any]:
    found = {}
    with tempfile.TemporaryDirectory() as place:
        # what need not wait for another runs beside it: most of each is its start
        straight = {kind: begun(Path(place, f"{kind.value}-straight"), kind, toy) for kind in KINDS}
        broken = {kind: begun(Path(place, f"{kind.value}-broken"), kind, toy, "kill") for kind in KINDS}
        for kind in KINDS:
            _, told = broken[kind].communicate()
            assert broken[kind].returncode == -signal.SIGKILL, f"{kind.value}: not killed: {told[-400:]}"
            saved = newest(Path(place, f"{kind.value}-broken"))
            assert saved == (KILLED - 1) // SAVED * SAVED, f"{kind.value}: step {saved} is saved"
        again = {kind: begun(Path(place, f"{kind.value}-broken"), kind, toy) for kind in KINDS}
        for kind in KINDS:
            one, other = said(straight[kind]), said(again[kind])
            assert one[0] == other[0], f"{kind.value}: {one[0][:12]} straight, {other[0][:12]} after the kill"
            found[kind.value] = {"sha256": one[0][:16], "not_deterministic": one[1:]}
    return found


def begun(folder: Path, precision: Precision, toy: bool, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.gpu.resume", str(folder), precision.value, device(toy).type, *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(process: "subprocess.Popen[str]") -> list[str]:
    """The lines that a run printed."""
    out, told = process.communicate()
    assert process.returncode == 0, told[-400:]
    return out.splitlines()


def main(folder: Path, precision: Precision, where: torch.device, *, kill: bool) -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)  # what cannot be is told, and the hash decides
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = trained(folder, precision, where, kill=kill)
    digest = sha256()
    for _, tensor in sorted(model.state_dict().items()):
        digest.update(tensor.cpu().numpy().tobytes())
    print(digest.hexdigest())
    for name in sorted({str(each.message).partition(" ")[0] for each in told if "determinis" in str(each.message)}):
        print(name)


def trained(folder: Path, precision: Precision, where: torch.device, *, kill: bool) -> Decoder:
    """From the newest checkpoint to the end."""
    folder.mkdir(exist_ok=True)
    model = new_decoder(CFG, VOCABULARY, seed=1).to(where).train().compute_with(Compute())
    optimizer = new_optimizer(model, Optim(kind=Optimizer.adamw, lr=1e-3))
    objective = in_precision(LANGUAGE_MODEL, precision)
    checkpoint.seed_random(0, 0)
    first = newest(folder)
    if first:
        checkpoint.load(folder / f"{first:02d}", model, optimizer)
        checkpoint.load_random(folder / f"{first:02d}", 0, 0)
    for step in range(first, STEPS):
        assert gradients(model, objective, batch(step, where), clip=1.0).finite
        if kill and step + 1 == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        apply(model, optimizer, rate=1e-3)
        if (step + 1) % SAVED == 0:
            made = folder / f"{step + 1:02d}.tmp"
            made.mkdir()
            checkpoint.save(made, model, optimizer)
            made.rename(folder / f"{step + 1:02d}")
    return model


def newest(folder: Path) -> int:
    """The last step that is saved whole; 0 where none is."""
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=0)


def batch(step: int, where: torch.device) -> Batch:
    tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(step))
    segments = (torch.arange(LENGTH) // 40 + 1).expand(ROWS, -1)  # two documents a row
    loss = torch.ones_like(tokens)
    loss[:, [0, 40]] = 0
    return {name: value.to(where) for name, value in (("tokens", tokens), ("segments", segments), ("loss", loss))}


if __name__ == "__main__":
    place, kind, machine, *rest = sys.argv[1:]
    main(Path(place), Precision(kind), torch.device(machine), kill=bool(rest))

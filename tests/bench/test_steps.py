"""Our training step against transformers', with the same weights, by turns in one process."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from conf.knobs.model import Model
from moe.decoder import Decoder, new_decoder
from moe.formats import hugging_face
from moe.kernels.allocator import keep_buffers
from moe.losses import cross_entropy_sum
from moe.text.defaults import Defaults
from tests.bench.measure import rates, record, sized

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
ROUNDS = sized(7, 1)
CFG = sized(
    Model(hidden_size=256, layers=8, heads=8, kv_heads=4, head_dim=32, experts=8, top_k=2, expert_size=512),
    Model(hidden_size=64, layers=1, heads=2, kv_heads=1, head_dim=32, experts=4, top_k=2, expert_size=64),
)
VOCABULARY, ROWS, LENGTH = sized((8192, 8, 512), (256, 2, 32))
TOKENS = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
TARGETS = ROWS * (LENGTH - 1)
IMPLEMENTATIONS = sized(("eager", "grouped_mm"), ("grouped_mm",))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    hugging_face.save(new_decoder(CFG, VOCABULARY, seed=0), path, Defaults({}, (1,), 0))
    return path


def ours_of(path: Path) -> tuple[Decoder, Callable[[], Tensor]]:
    model = hugging_face.load(path).train()

    def loss() -> Tensor:
        states = model(TOKENS, torch.ones_like(TOKENS)).states.view(ROWS, LENGTH, -1)[:, :-1].reshape(TARGETS, -1)
        return cross_entropy_sum(states, model.lm_head.weight, TOKENS[:, 1:].flatten()) / TARGETS

    return model, loss


def peer_of(path: Path, implementation: str, *, compiled: bool = False) -> tuple[Any, Callable[[], Tensor]]:
    model = AutoModelForCausalLM.from_pretrained(path, experts_implementation=implementation).train()
    model.config.output_router_logits = False
    forward = torch.compile(model) if compiled else model
    return model, lambda: forward(TOKENS, labels=TOKENS).loss


def stepper(model: torch.nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def in_bf16(loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Products in bf16, weights and optimizer in fp32."""

    def run() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return loss()

    return run


def test_train_step_bf16(saved: Path) -> None:
    """Theirs with autocast as ours, and `pure`: weights and optimizer in bf16 too, less work that loses more."""
    keep_buffers()
    sides = {"ours": ours_of(saved)}
    for name in IMPLEMENTATIONS:
        sides[f"transformers {name}"] = peer_of(saved, name)
    sides = {name: (model, in_bf16(loss)) for name, (model, loss) in sides.items()}
    for name in IMPLEMENTATIONS:
        model, loss = peer_of(saved, name)
        sides[f"transformers {name}, pure"] = model.to(torch.bfloat16), loss
    losses = {name: loss().item() for name, (_, loss) in sides.items()}
    assert losses == pytest.approx(dict.fromkeys(losses, losses["ours"]), rel=5e-3)
    runs = {name: stepper(*side) for name, side in sides.items()}
    got = rates(runs, dict.fromkeys(runs, ROWS * LENGTH), rounds=ROUNDS)
    record("train_step_bf16/eager", "tok/s", got.pop("ours"), got)


@pytest.mark.parametrize("kind", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_train_step(saved: Path, kind: str) -> None:
    keep_buffers()  # for both sides: it is the process's
    sides = {"ours": ours_of(saved)}
    for name in IMPLEMENTATIONS:
        sides[f"transformers {name}"] = peer_of(saved, name, compiled=kind == "compiled")
    losses = {name: loss().item() for name, (_, loss) in sides.items()}
    assert losses == pytest.approx(dict.fromkeys(losses, losses["ours"]), rel=1e-5)
    runs = {name: stepper(*side) for name, side in sides.items()}
    got = rates(runs, dict.fromkeys(runs, ROWS * LENGTH), rounds=ROUNDS)
    record(f"train_step/{kind}", "tok/s", got.pop("ours"), got)


def test_peak_memory(saved: Path) -> None:
    """Each side alone in a process: how far three steps raise its peak resident memory above the loaded libraries'."""
    peaks = {}
    for name in ("ours", *IMPLEMENTATIONS):
        ended = subprocess.run(
            [sys.executable, "-m", "tests.bench.test_steps", str(saved), name],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[name] = json.loads(ended.stdout.splitlines()[-1])
    # more is better in the table: steps that would fit into a gigabyte
    ours = 1 / peaks.pop("ours")
    record("train_step/memory", "steps/GB", ours, {f"transformers {name}": 1 / peak for name, peak in peaks.items()})


def _peak(path: Path, side: str) -> float:
    """GB."""

    def high_water() -> int:  # kB; getrusage would begin with what the parent process had
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

    keep_buffers()
    before = high_water()
    step = stepper(*(ours_of(path) if side == "ours" else peer_of(path, side)))
    for _ in range(3):
        step()
    return (high_water() - before) / 2**20


if __name__ == "__main__":
    print(json.dumps(_peak(Path(sys.argv[1]), sys.argv[2])))

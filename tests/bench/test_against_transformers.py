"""Our training step and decoding against transformers', same weights, same threads, interleaved in one run.

`make bench` prints a table of ratios and writes bench.json: [{"name", "unit", "ours", "peer", "peer_name", "ratio"}].
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from conf.schema import Model
from moe import folder
from moe.allocator import keep_buffers
from moe.decoder import Decoder, new_decoder
from moe.engine import Sampling, generate
from moe.losses import cross_entropy_sum

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
ROUNDS = 5
CFG = Model(hidden_size=256, layers=8, heads=8, kv_heads=4, head_dim=32, experts=8, top_k=2, expert_size=512)
VOCABULARY, ROWS, LENGTH = 8192, 8, 512
RESULTS = Path(__file__).parents[2] / "bench.json"


def rates(ours: Callable[[], object], peer: Callable[[], object], amount: int) -> tuple[float, float]:
    """Medians of amount per second, over rounds in which each goes once."""
    ours(), peer()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for run, seconds in zip((ours, peer), times, strict=True):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
    return amount / median(times[0]), amount / median(times[1])


def record(name: str, unit: str, ours: float, peer: float, peer_name: str) -> None:
    lines = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    lines = [line for line in lines if (line["name"], line["peer_name"]) != (name, peer_name)]
    line = {"name": name, "unit": unit, "ours": ours, "peer": peer, "peer_name": peer_name, "ratio": ours / peer}
    RESULTS.write_text(json.dumps([*lines, line], indent=1) + "\n")
    print(f"\n{name:<24} ours {ours:9,.0f}  {peer_name} {peer:9,.0f} {unit}  ratio {ours / peer:.2f}")


@pytest.fixture(scope="module")
def model() -> Decoder:
    keep_buffers()  # for both sides: it is the process's
    return new_decoder(CFG, VOCABULARY, seed=0)


def peer_of(model: Decoder, path: Path, **options: Any) -> Any:
    folder.save(model, path, stop=(1,), pad=0)
    return AutoModelForCausalLM.from_pretrained(path, **options)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_train_step(model: Decoder, tmp_path: Path, implementation: str) -> None:
    theirs = peer_of(model, tmp_path, experts_implementation=implementation).train()
    theirs.config.output_router_logits = False
    tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    segments = torch.ones_like(tokens)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-5, fused=True) for m in (model, theirs)]
    targets = ROWS * (LENGTH - 1)

    def our_loss() -> torch.Tensor:
        states = model(tokens, segments).states.view(ROWS, LENGTH, -1)[:, :-1].reshape(targets, -1)
        return cross_entropy_sum(states, model.lm_head.weight, tokens[:, 1:].flatten()) / targets

    def step(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    assert our_loss().item() == pytest.approx(theirs(tokens, labels=tokens).loss.item(), rel=1e-5)
    ours, peer = rates(
        lambda: step(our_loss(), optimizers[0]),
        lambda: step(theirs(tokens, labels=tokens).loss, optimizers[1]),
        ROWS * LENGTH,
    )
    record("train_step/eager", "tok/s", ours, peer, f"transformers {implementation}")


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_decoding(model: Decoder, tmp_path: Path, batch: int) -> None:
    model = model.eval()
    theirs = peer_of(model, tmp_path, experts_implementation="grouped_mm").eval()
    prompts = torch.randint(2, VOCABULARY, (batch, 32), generator=torch.Generator().manual_seed(1))
    asked = [Sampling(64, temperature=0.0)] * batch

    def ours_once() -> list[list[int]]:
        return [answer.tokens for answer in generate(model, prompts.tolist(), asked, stop=())]

    def peer_once() -> list[list[int]]:
        options = {"max_new_tokens": 64, "min_new_tokens": 64, "do_sample": False, "use_cache": True}
        made = theirs.generate(prompts, attention_mask=torch.ones_like(prompts), **options)
        return made[:, 32:].tolist()

    same = sum(a[:8] == b[:8] for a, b in zip(ours_once(), peer_once(), strict=True))
    assert same >= 0.9 * batch  # a tie between two tokens may fall either way in float32
    ours, peer = rates(ours_once, peer_once, batch * 64)
    record(f"decode/batch-{batch}", "tok/s", ours, peer, "transformers generate")

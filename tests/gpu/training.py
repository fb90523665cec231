"""A training step of a slice of Qwen3-30B-A3B: 4 of its 48 layers and 32k of its vocabulary, 8 rows of 4096 tokens.

Ours has fp32 weights and bf16 products. transformers' grouped_mm needs weights in bf16, so it and its AdamW have them
in bf16: the faster of what it offers. One after the other, for both do not fit.
"""

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from conf.knobs.model import Compute, ExpertsBackend, Model, Precision
from moe.decoder import Decoder
from moe.footprint import training_flops
from moe.formats.config import to_hugging_face
from moe.kernels.precision import autocast
from moe.losses import cross_entropy_sum
from tests.gpu.machine import device, peak_gib, seconds

SLICE = Model(
    hidden_size=2048,
    layers=4,
    heads=32,
    kv_heads=4,
    head_dim=128,
    experts=128,
    top_k=8,
    expert_size=768,
    context=4096,
    rope_theta=1e6,
    norm_eps=1e-6,
    balance_coef=0.0,
)
SMALL = Model(
    hidden_size=64, layers=1, heads=4, kv_heads=2, head_dim=16, experts=4, top_k=2, expert_size=32, balance_coef=0.0
)
PEAK = 989e12  # dense bf16 operations a second of an H100 SXM: the denominator of everybody's MFU
GOAL = {"mfu": 0.30, "times_transformers": 1.5}


def run(toy: bool) -> dict[str, Any]:
    where, cfg = device(toy), SMALL if toy else SLICE
    vocabulary, rows, length = (256, 2, 32) if toy else (32768, 8, 4096)
    tokens = torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(0)).to(where)
    model = new_model(cfg, vocabulary, where)
    peer = new_peer(model, where)
    peer.to("cpu")  # until it is its turn
    expected = {"ours": measured(model, ours(model, tokens, toy=toy))}
    del model
    gc.collect()
    torch.cuda.empty_cache()
    peer.to(where)
    expected["transformers grouped_mm"] = measured(peer, lambda: peer(tokens, labels=tokens, use_cache=False).loss)
    first = {name: side["loss"] for name, side in expected.items()}
    apart = abs(first["ours"] / first["transformers grouped_mm"] - 1)
    assert apart < 1e-2, f"losses of the same weights: {first}"
    flops = training_flops(cfg, vocabulary, checkpointing=False, seen=length / 2) * rows * length
    for side in expected.values():
        side |= {
            "tokens_per_s": round(rows * length / side["seconds"]),
            "mfu": round(flops / side["seconds"] / PEAK, 4),
        }
    times = expected["transformers grouped_mm"]["seconds"] / expected["ours"]["seconds"]
    met = expected["ours"]["mfu"] >= GOAL["mfu"] and times >= GOAL["times_transformers"]
    told: dict[str, Any] = {"times_transformers": round(times, 2), "goal": GOAL, "goal_met": met}
    return expected | told | {"not_measured": "transformers under torch.compile"}


def new_model(cfg: Model, vocabulary: int, where: torch.device) -> Decoder:
    """Random weights made on the device: on the CPU they would take a minute."""
    torch.manual_seed(0)
    with where:
        model = Decoder(cfg, vocabulary)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
    return model.train()


def new_peer(model: Decoder, where: torch.device) -> Any:
    """transformers' model with the same weights."""
    from transformers import AutoModelForCausalLM, Qwen3MoeConfig

    config: Any = Qwen3MoeConfig(**to_hugging_face(model.cfg, model.vocab_size, model.head))
    config._experts_implementation, config.output_router_logits = "grouped_mm", False
    with where:
        peer = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    peer.load_state_dict(model.state_dict())
    return peer.train()


def ours(model: Decoder, tokens: Tensor, *, toy: bool) -> Callable[[], Tensor]:
    rows, length = tokens.shape
    model.compute_with(Compute(experts=ExpertsBackend.grouped))  # by name: no other may step in
    targets, segments = tokens[:, 1:].flatten(), torch.ones_like(tokens)

    def loss() -> Tensor:
        with autocast(Precision.bf16, tokens.device.type):
            states = model(tokens, segments).states.view(rows, length, -1)[:, :-1].reshape(targets.shape[0], -1)
            return cross_entropy_sum(states, model.lm_head.weight, targets, chunk=64 if toy else 4096) / len(targets)

    return loss


def measured(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Any]:
    """{"loss": of the first step, "seconds": of a later one, "peak_gib"}"""
    losses: list[Tensor] = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.detach())

    peak_gib()
    took = seconds(step, warm=3, rounds=6)
    values = torch.stack(losses).tolist()
    assert values[-1] < values[0], f"the loss does not fall: {values}"
    return {"loss": values[0], "seconds": took, "peak_gib": peak_gib()}

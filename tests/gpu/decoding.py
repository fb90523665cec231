"""Decoding: our engine against transformers' `generate` with a static cache, greedily, at batch 1, 8 and 64."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from conf.knobs.model import Compute, Model
from moe.decoder import Decoder
from moe.generation.engine import Sampling, generate
from tests.gpu.machine import by_turns, device
from tests.gpu.training import SLICE, SMALL, new_model, new_peer

M31 = Model(hidden_size=256, layers=8, heads=8, kv_heads=4, head_dim=32, experts=8, top_k=2, expert_size=512)
PROMPT = 32
GOALS = {1: 10.0, 64: 2.0}  # batch: times transformers
SAME = 0.9  # of the rows: two tokens may be equally likely to the last bit but one


def run(toy: bool) -> dict[str, Any]:
    where = device(toy)
    if toy:
        return {"toy fp32": measured(SMALL, 256, torch.float32, where, batches=(1, 4), answer=4)}
    return {
        "31m fp32": measured(M31, 8192, torch.float32, where, batches=(1, 8, 64), answer=64),
        "slice bf16": measured(SLICE, 32768, torch.bfloat16, where, batches=(1, 64), answer=32),
    }


def measured(
    cfg: Model, vocabulary: int, dtype: torch.dtype, where: torch.device, *, batches: tuple[int, ...], answer: int
) -> dict[str, Any]:
    model = new_model(cfg, vocabulary, where).eval()
    peer = new_peer(model, where).eval().to(dtype)
    peer.load_state_dict(model.state_dict())  # once more, for it came in bf16
    model = model.to(dtype).compute_with(Compute())
    found: dict[str, Any] = {}
    for batch in batches:
        prompts = torch.randint(0, vocabulary, (batch, PROMPT), generator=torch.Generator().manual_seed(batch))
        sides = {"ours": ours(model, prompts, answer), "transformers": theirs(peer, prompts.to(where), answer)}
        mine, right = sides["ours"](), sides["transformers"]()
        same = sum(one == other for one, other in zip(mine, right, strict=True)) / batch
        assert dtype is not torch.float32 or same >= SAME, f"batch {batch}: {same:.2f} of the answers are transformers'"
        took = by_turns(sides, warm=1, rounds=3)
        times = took["transformers"] / took["ours"]
        found[f"batch {batch}"] = {
            "ms_per_token": {name: round(seconds * 1e3 / answer, 3) for name, seconds in took.items()},
            "times_transformers": round(times, 2),
            "same_answers": round(same, 3),
        }
        if batch in GOALS:
            found[f"batch {batch}"] |= {"goal": GOALS[batch], "goal_met": times >= GOALS[batch]}
    return found


def ours(model: Decoder, prompts: Tensor, answer: int) -> Callable[[], list[list[int]]]:
    given, asked = prompts.tolist(), [Sampling(answer, temperature=0.0)] * len(prompts)
    return lambda: [made.tokens for made in generate(model, given, asked, stop=())]


def theirs(peer: Any, prompts: Tensor, answer: int) -> Callable[[], list[list[int]]]:
    def run() -> list[list[int]]:
        made = peer.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=answer,
            min_new_tokens=answer,
            do_sample=False,
            use_cache=True,
            cache_implementation="static",
            disable_compile=True,  # which takes longer than this whole step
            pad_token_id=0,
            eos_token_id=None,
        )
        return made[:, prompts.shape[1] :].tolist()

    return run

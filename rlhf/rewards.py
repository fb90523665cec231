"""What an answer earns: named terms, pure functions, weighed by `ppo.rewards.<name>` and added up.

A term of your own is a function here and a line of `TERMS`. Letters as in `rlhf.losses`.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cluster.run import read_manifest
from conf.errors import InputError
from moe.tasks.task import Verdict
from moe.text.tokenizer import Tokenizer
from rlhf.losses import at_the_end
from rlhf.messages import Batch


@dataclass(frozen=True)
class Scale:
    """The reward model's scores of the answers in the rankings."""

    mean: float
    std: float


@dataclass(frozen=True)
class Judged:
    """What the terms are made of."""

    batch: Batch
    verdicts: Sequence[Verdict]  # [B] of the domain's rules
    written: Sequence[Sequence[int]]  # [B] of each token of an answer: characters of the text complete with it
    model: Tensor | None  # [B] the reward model's, in standard deviations of the rankings' scores; None without one
    limit: int  # tokens that an answer may have


Term = Callable[[Judged], Tensor]  # -> [B, T], 0 outside the mask


def model(judged: Judged) -> Tensor:
    """The reward model's score, at the answer's end."""
    assert judged.model is not None
    return at_the_end(judged.model, judged.batch.mask)


def rules(judged: Judged) -> Tensor:
    """The domain's reward: what a verdict places at a character is earned there, all else at the answer's end."""
    mask = judged.batch.mask
    placed = torch.zeros_like(mask)
    first = mask.argmax(1).tolist()
    for row, (verdict, written) in enumerate(zip(judged.verdicts, judged.written, strict=True)):
        for place, amount in verdict.placed:
            # at the token with which the character is complete
            placed[row, first[row] + bisect_right(written, place)] += amount
    whole = torch.tensor([verdict.reward for verdict in judged.verdicts])
    return placed + at_the_end(whole - placed.sum(1), mask)


def length(judged: Judged) -> Tensor:
    """How much of its room an answer leaves unused, in [0, 1], at its end: a weight above 0 asks for short answers, one
    below for long ones."""
    return at_the_end(1.0 - judged.batch.mask.sum(1) / judged.limit, judged.batch.mask)


TERMS: dict[str, Term] = {"model": model, "rules": rules, "length": length}


def check(weights: Mapping[str, float]) -> None:
    """Raise `InputError` for a term that there is none of."""
    for name in weights:
        if name not in TERMS:
            raise InputError(f"ppo.rewards.{name}: no such term; there are {', '.join(TERMS)}")


def total(judged: Judged, weights: Mapping[str, float]) -> tuple[Tensor, dict[str, Tensor], dict[str, float]]:
    """(what PPO maximises [B, T], each term summed over an answer [B], {"reward/<term>/mean", "/std", "/share"} of the
    answers: the terms before their weight, the share the part of the weighed terms' sizes). Raises `InputError` naming
    a term that is not finite, or not [B, T]."""
    parts = {name: TERMS[name](judged) for name in weights}
    earned = torch.zeros_like(judged.batch.mask)
    for name, part in parts.items():
        if part.shape != earned.shape:
            raise InputError(
                f"ppo.rewards.{name}: of shape {list(part.shape)}, where {list(earned.shape)} is asked for"
            )
        if not part.isfinite().all():
            raise InputError(f"ppo.rewards.{name}: not finite in iteration {judged.batch.version}")
        earned = earned + weights[name] * part
    sums = {name: part.sum(1) for name, part in parts.items()}
    sizes = {name: float(weights[name] * of.abs().mean()) for name, of in sums.items()}
    whole = sum(map(abs, sizes.values())) or 1.0
    said = {}
    for name, of in sums.items():
        said[f"reward/{name}/mean"] = float(of.mean())
        said[f"reward/{name}/std"] = float(of.std(correction=0))
        said[f"reward/{name}/share"] = abs(sizes[name]) / whole
    return earned, sums, said


def scored_by(folder: Path, tokenizer: Tokenizer) -> tuple[Path, Scale]:
    """The folder of the stage reward and the scale of its scores. Raises `InputError` for one that has none, or that
    belongs to another tokenizer than the chat model's."""
    if tokenizer.digest != Tokenizer.load(folder).digest:
        raise InputError(f"{folder}: the reward model has another tokenizer than the chat model; make both in one run")
    found = read_manifest(folder)["metrics"]
    if not found["score_std"] > 0:
        raise InputError(
            f"{folder}: the reward model gives all answers the same score (score_std={found['score_std']}); rank more "
            "queries, train it longer, or leave it out by ppo.rewards.model=0"
        )
    return folder, Scale(found["score_mean"], found["score_std"])

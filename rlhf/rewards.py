"""What an answer earns: named terms, pure functions, weighed by `ppo.rewards.<name>` and added up.

A term of your own is a function anywhere, named by `ppo.terms.<name>=<module>.<function>`. Letters as in `rlhf.losses`.
"""

import importlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor

from cluster.run import read_manifest
from conf.errors import InputError
from moe.tasks.task import Sample, Verdict
from moe.text.tokenizer import Tokenizer
from rlhf.losses import at_the_end
from rlhf.messages import Batch, Scored


@dataclass(frozen=True)
class Scale:
    """The reward model's scores of the answers in the rankings."""

    mean: float
    std: float


@dataclass(frozen=True)
class Running:
    """Mean and variance of all values so far (Welford 1962)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared differences from the mean

    def with_these(self, values: Tensor) -> "Running":
        """With the values [B] in them (Chan et al. 1979)."""
        more = values.double()
        count, apart = self.count + len(more), float(more.mean()) - self.mean
        share = len(more) / count
        squares = float((more - more.mean()).square().sum()) + apart**2 * self.count * share
        return Running(count, self.mean + apart * share, self.squares + squares)

    @property
    def std(self) -> float:
        return (self.squares / self.count) ** 0.5 if self.count else 0.0


@dataclass(frozen=True)
class Earned:
    """What answers earn."""

    rewards: Tensor  # [B, T] what PPO maximises, before any distance from the first model
    sums: dict[str, Tensor]  # each term summed over an answer [B], before its weight
    told: dict[str, float]  # to be logged
    running: dict[str, Running]  # statistics of the terms, these answers in them


@dataclass(frozen=True)
class Judged:
    """What the terms are made of."""

    batch: Batch
    verdicts: Sequence[Verdict]  # [B] of the domain's rules
    written: Sequence[Sequence[int]]  # [B] of each token of an answer: characters of the text complete with it
    model: Tensor | None  # [B] the reward model's, in standard deviations of the rankings' scores; None without one
    limit: int  # tokens that an answer may have
    asked: Sequence[Sample] = ()  # [B] the queries
    texts: Sequence[str] = ()  # [B] the answers
    spread: Tensor | None = None  # [B] how far several reward models differ, in their deviations
    begun: Sequence[int] = ()  # [B] tokens of each answer before those of the batch; none: 0
    going: Sequence[bool] = ()  # [B] whether the answer goes on: it earns when it is done; none: no answer does

    @property
    def used(self) -> Tensor:
        """How much of its room each answer takes [B], in [0, 1]."""
        begun = torch.tensor(self.begun) if self.begun else 0
        return (self.batch.mask.sum(1) + begun) / self.limit

    @property
    def done(self) -> Tensor:
        """[B] bool"""
        return ~torch.tensor(self.going) if self.going else torch.ones(len(self.batch.tokens), dtype=torch.bool)


def judged(
    batch: Batch,
    verdicts: Sequence[Verdict],
    written: Sequence[Sequence[int]],
    scored: Scored | None,
    limit: int,
    asked: Sequence[Sample],
    texts: Sequence[str],
    begun: Sequence[int] = (),
    going: Sequence[bool] = (),
) -> Judged:
    """`Judged` of answers, where there is a reward model with what it says."""
    mean, spread = (scored.mean, scored.spread) if scored else (None, None)
    return Judged(batch, verdicts, written, mean, limit, asked, texts, spread, begun, going)


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
    return at_the_end(1.0 - judged.used, judged.batch.mask)


def overlong(judged: Judged) -> Tensor:
    """In [-1, 0], at the answer's end: 0 until the last quarter of its room, from there down to -1 at the limit (Yu et
    al. 2025, "DAPO", eq. 13)."""
    return at_the_end(((_FREE - judged.used) / (1 - _FREE)).clamp(-1.0, 0.0), judged.batch.mask)


def spread(judged: Judged) -> Tensor:
    """How far the reward models of `ppo.ensemble` differ about an answer, at its end: a weight below 0 keeps the policy
    where they know what they say (Coste et al. 2024)."""
    assert judged.spread is not None
    return at_the_end(judged.spread, judged.batch.mask)


_FREE = 0.75  # of its room, which an answer may take
_LEAST = 1e-6  # of a term's deviation
_NONE: Mapping[str, str] = MappingProxyType({})
TERMS: dict[str, Term] = {"model": model, "rules": rules, "length": length, "overlong": overlong, "spread": spread}


def check(weights: Mapping[str, float], own: Mapping[str, str] = _NONE) -> None:
    """Raise `InputError` for a term that there is none of, or a function of one's `own` that cannot be imported."""
    for name in own:
        if name in TERMS:
            raise InputError(f"ppo.terms.{name}: there is such a term already; give yours another name")
        if name not in weights:
            raise InputError(f"ppo.terms.{name} has no weight; try ppo.rewards.{name}=1")
        imported(name, own[name])
    for name in weights:
        if name not in TERMS and name not in own:
            raise InputError(
                f"ppo.rewards.{name}: no such term; there are {', '.join([*TERMS, *own])}, and yours by "
                f"ppo.terms.{name}=<module>.<function>"
            )


def imported(name: str, path: str) -> Callable[[Judged], Any]:
    """A user's function `path`, "module.function". It takes `Judged` and gives a number for each answer, or a tensor
    [B] of them, which are earned at the answers' ends, or one [B, T]."""
    module, _, function = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"ppo.terms.{name}={path}: {error}") from None
    if not callable(found):
        raise InputError(f"ppo.terms.{name}={path}: no function")
    return cast(Callable[[Judged], Any], found)


def parts(judged: Judged, weights: Mapping[str, float], own: Mapping[str, str] = _NONE) -> dict[str, Tensor]:
    """Each term that has a weight, before it [B, T]. Raises `InputError` naming a term that is not finite, or has
    another shape."""
    found = {}
    mask = judged.batch.mask
    for name in weights:
        part = TERMS[name](judged) if name in TERMS else _as_rows(imported(name, own[name])(judged), mask)
        if part.shape != mask.shape:
            raise InputError(f"ppo.rewards.{name}: of shape {list(part.shape)}, where {list(mask.shape)} is asked for")
        if not part.isfinite().all():
            row = int((~part.isfinite()).any(1).nonzero()[0])
            which = f" (first: the answer {judged.texts[row][:60]!r})" if judged.texts else ""
            raise InputError(f"ppo.rewards.{name}: not finite in iteration {judged.batch.iteration}{which}")
        found[name] = part
    return found


def _as_rows(given: Any, mask: Tensor) -> Tensor:
    """What a user's function gave, as a term."""
    told = torch.as_tensor(given, dtype=mask.dtype)
    if told.shape == mask.shape[:1]:
        return at_the_end(told, mask)
    return told * mask if told.shape == mask.shape else told


def total(
    judged: Judged,
    weights: Mapping[str, float],
    own: Mapping[str, str] = _NONE,
    running: Mapping[str, Running] | None = None,
) -> Earned:
    """The weighed sum of the terms, each told as "reward/<term>/mean" and "/std" before its weight and "/share", its
    part of the weighed terms' sizes. With the `running` statistics of the iterations before, each term is taken
    less its mean and in its deviations, these answers in both. Raises `InputError` as `parts` does."""
    done = judged.done
    found = {name: part * done.unsqueeze(1) for name, part in parts(judged, weights, own).items()}
    sums = {name: part.sum(1) for name, part in found.items()}
    if not done.any():
        return Earned(torch.zeros_like(judged.batch.mask), sums, {}, dict(running or {}))
    made = {name: (running or {}).get(name, Running()).with_these(of[done]) for name, of in sums.items()}
    if running is not None:
        found = {name: _normalised(part, made[name], judged.batch.mask) for name, part in found.items()}
    earned = torch.zeros_like(judged.batch.mask)
    for name, part in found.items():
        earned = earned + weights[name] * part
    sizes = {name: float(weights[name] * part.sum(1)[done].abs().mean()) for name, part in found.items()}
    whole = sum(map(abs, sizes.values())) or 1.0
    said = {}
    for name, of in sums.items():
        said[f"reward/{name}/mean"] = float(of[done].mean())
        said[f"reward/{name}/std"] = float(of[done].std(correction=0))
        said[f"reward/{name}/share"] = abs(sizes[name]) / whole
        if running is not None:
            said |= {f"reward/{name}/running_mean": made[name].mean, f"reward/{name}/running_std": made[name].std}
    return Earned(earned, sums, said, made)


def _normalised(part: Tensor, running: Running, mask: Tensor) -> Tensor:
    """A term [B, T] whose sum over an answer is less the mean, in deviations; the mean is taken off at the end. One
    that has always been the same is 0."""
    if running.std <= _LEAST:
        return torch.zeros_like(part)
    return (part - at_the_end(torch.full((len(part),), running.mean), mask)) / running.std


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

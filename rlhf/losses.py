"""The mathematics of PPO. Pure functions of arrays and tensors.

Letters: B answers, T positions of a padded row. Everything per token is [B, T], meaningful where `mask` is 1: at the
answer's own tokens. The value at a token is that of the state before it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from conf.knobs.reinforcement import KlEstimate


def token_rewards(
    earned: Tensor,
    logprobs: Tensor,
    reference: Tensor,
    mask: Tensor,
    kl_coef: float,
    estimate: KlEstimate = KlEstimate.k1,
) -> Tensor:
    """What was earned at each token, less the KL penalty there (Ouyang et al. 2022, eq. 2) -> [B, T]."""
    return (earned - kl_coef * distance(logprobs, reference, estimate)) * mask


def at_the_end(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores [B] of whole answers, put at their last tokens -> [B, T]."""
    earned = torch.zeros_like(mask)
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    earned[torch.arange(mask.shape[0]), last] = scores
    return earned


def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) over contiguous answers -> (advantages, returns).

    After an answer's last token nothing follows: the value there is 0.
    """
    advantages = torch.zeros_like(rewards)
    following, following_value = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * following_value - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        following_value = values[:, t] * mask[:, t]
        advantages[:, t] = following
    return advantages, (advantages + values) * mask


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Zero mean, unit variance over the tokens where mask is 1; 0 elsewhere."""
    count = mask.sum().clamp(min=1)
    mean = (values * mask).sum() / count
    variance = ((values - mean).square() * mask).sum() / count
    return (values - mean) * (variance + 1e-8).rsqrt() * mask


@dataclass(frozen=True)
class PolicyLoss:
    """Sums over the tokens, of which a micro-batch may have none."""

    loss: Tensor  # []
    clipped: Tensor  # [] tokens whose clipped term was the smaller one
    bounded: Tensor  # [] tokens whose loss the dual clip bounded
    kl: Tensor  # [] old - new log-probs: a first-order estimate of KL(old || new)


def policy_loss(new: Tensor, old: Tensor, advantages: Tensor, clip: float, dual: float = 0.0) -> PolicyLoss:
    """The clipped surrogate (Schulman et al. 2017, eq. 7) over tokens [M]: log-probs under the new and old policy.
    `dual` bounds what a token with a negative advantage may cost to so many of them (Ye et al. 2020, eq. 3): where its
    ratio is large, the surrogate has no bound. 0: none."""
    ratio = (new - old).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = torch.maximum(plain, clipped)
    bound = torch.where(advantages < 0, -advantages * dual, torch.inf) if dual else torch.full_like(loss, torch.inf)
    return PolicyLoss(
        torch.minimum(loss, bound).sum(),
        (clipped > plain).float().sum().detach(),
        (loss > bound).float().sum().detach(),
        (old - new).sum().detach(),
    )


def distance(new: Tensor, reference: Tensor, estimate: KlEstimate = KlEstimate.k3) -> Tensor:
    """An estimate of KL(new || reference) at each token that `new` sampled (Schulman 2020, "Approximating KL
    divergence"): k1 is right in the mean, k2 never below 0, k3 both."""
    apart = reference - new
    if estimate is KlEstimate.k1:
        return -apart
    return apart.square() / 2 if estimate is KlEstimate.k2 else apart.exp() - apart - 1.0


def value_loss(new: Tensor, old: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Half the squared error of the value [M], or of the value clipped to within `clip` of the old if that is worse,
    summed over the tokens."""
    clipped = old + (new - old).clamp(-clip, clip)
    return 0.5 * torch.maximum((new - returns).square(), (clipped - returns).square()).sum()


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over tokens [M]: 1 is a perfect critic, 0 no better than a constant."""
    variance = returns.var()
    return float(1 - (returns - values).var() / variance) if variance > 0 else 0.0

"""How much better an answer, or a token of it, was than expected. Pure functions; letters as in `rlhf.losses`.

`(rewards [B, T], values [B, T] or None, mask [B, T], groups [B], cfg) -> (advantages [B, T], returns [B, T] or None)`;
`groups` are numbers, the same for answers to one query of one iteration. Only `gae` needs a critic.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from conf.knobs.reinforcement import Advantages, CutOff, Ppo
from rlhf.losses import gae as generalised
from rlhf.losses import whiten

Result = tuple[Tensor, Tensor | None]
_LEAST = 1e-6  # of a group's deviation: where all answers earn the same there is nothing to learn


def gae(rewards: Tensor, values: Tensor | None, mask: Tensor, groups: Tensor, cfg: Ppo) -> Result:
    """Each token against the critic's values (Schulman et al. 2016), whitened over the batch unless told otherwise."""
    assert values is not None
    advantages, returns = generalised(rewards, values, mask, gamma=cfg.gamma, lam=cfg.lam)
    return whiten(advantages, mask) if cfg.whiten else advantages, returns


def group(rewards: Tensor, values: Tensor | None, mask: Tensor, groups: Tensor, cfg: Ppo) -> Result:
    """GRPO (Shao et al. 2024): an answer's reward less its group's mean, in the group's deviations, at all tokens."""
    earned = rewards.sum(1).double()  # in fp32 a mean of equal numbers is off by enough to be told apart by `_LEAST`
    same = (groups.unsqueeze(1) == groups).to(earned)  # [B, B]
    count = same.sum(1)
    over = earned - same @ earned / count
    deviation = (same @ over.square() / count).sqrt()
    return (over / (deviation + _LEAST)).to(mask).unsqueeze(1) * mask, None


def leave_one_out(rewards: Tensor, values: Tensor | None, mask: Tensor, groups: Tensor, cfg: Ppo) -> Result:
    """RLOO (Ahmadian et al. 2024): an answer's reward less the mean of its group's others, at all its tokens."""
    earned = rewards.sum(1)
    others = (groups.unsqueeze(1) == groups).to(earned) - torch.eye(len(groups))
    return (earned - others @ earned / others.sum(1).clamp(min=1.0)).unsqueeze(1) * mask, None


def heard(finished: Sequence[bool], going: Sequence[bool], cfg: Ppo) -> Tensor:
    """[B, 1]: 0 for an answer that the policy shall learn nothing from (`ppo.cut_off`): one that did not end by
    itself, and does not go on."""
    all_of_them = cfg.cut_off is CutOff.learn
    counts = [float(done or more or all_of_them) for done, more in zip(finished, going, strict=True)]
    return torch.tensor(counts).unsqueeze(1)


ADVANTAGES: dict[Advantages, Callable[[Tensor, Tensor | None, Tensor, Tensor, Ppo], Result]] = {
    Advantages.gae: gae,
    Advantages.group: group,
    Advantages.leave_one_out: leave_one_out,
}

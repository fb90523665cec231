"""Which of a query's answers to learn from: sampling is cheap and learning is not."""

from collections.abc import Hashable, Sequence

import numpy as np


def widest(groups: Sequence[Hashable], scores: Sequence[float], keep: int) -> list[int]:
    """Of each group, the `keep` places whose scores have the largest variance; all of them in their order.

    Max-variance down-sampling (Xu et al. 2025, "Not All Rollouts are Useful"): that subset is always some of the best
    and some of the worst. `keep` 0 keeps everything.
    """
    if not keep:
        return list(range(len(groups)))
    members: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    chosen: list[int] = []
    for places in members.values():
        ordered = sorted(places, key=lambda place: (scores[place], place))
        if keep >= len(ordered):
            chosen += ordered
            continue
        ends = [ordered[:low] + ordered[len(ordered) - (keep - low) :] for low in range(keep + 1)]
        # of equal variances the one with more of the best
        chosen += max(ends, key=lambda subset: float(np.var([scores[place] for place in subset])))
    return sorted(chosen)

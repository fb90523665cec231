"""Answers that are not done when an iteration ends: the next one goes on with them, by its own weights.

So an iteration takes no longer than `ppo.segment` tokens, however long answers become (partial rollouts: Kimi k1.5,
Team et al. 2025). A segment is learnt from in the iteration that made it, so that each token is of the policy that
learns from it; what follows on it is worth what the critic expects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from conf.knobs.reinforcement import Ppo
from rlhf.messages import Response
from rlhf.rollouts import Begun, fresh


@dataclass
class Segments:
    begun: int = 0  # answers, so far
    open: list[Begun] = field(default_factory=list)  # those that are not done
    _now: list[Begun] = field(default_factory=list)

    def next(self, cfg: Ppo, iteration: int) -> list[Begun]:
        """What an iteration makes: the open answers first, then so many new ones that there are as many as ever."""
        if not cfg.segment:
            return fresh(cfg, iteration)
        count = cfg.prompts * cfg.samples - len(self.open)
        new = [Begun(number, iteration) for number in range(self.begun, self.begun + count)]
        self.begun += count
        self._now = [*self.open, *new]
        return self._now

    def going(self, responses: Sequence[Response], cfg: Ppo) -> list[bool]:
        """Of the answers, in the order of `next`, which go on; they are open then."""
        if not cfg.segment:
            return [False] * len(responses)
        found = [not made.finished and len(made.whole) < cfg.max_new_tokens for made in responses]
        made = zip(self._now, responses, found, strict=True)
        self.open = [replace(one, tokens=tuple(response.whole)) for one, response, more in made if more]
        return found

    @property
    def plain(self) -> dict[str, Any]:
        """For a file."""
        return {"begun": self.begun, "open": [asdict(one) for one in self.open]}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Segments":
        return cls(
            plain["begun"], [Begun(one["number"], one["iteration"], tuple(one["tokens"])) for one in plain["open"]]
        )

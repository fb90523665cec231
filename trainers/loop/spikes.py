"""Watches the loss and the gradients' norm of each step, and says which steps must not move the weights.

A step is judged before it is taken, by how far it lies above the median of the accepted steps before it. What was
refused never enters that window, so that neither a spike nor a NaN blinds it to the next. Nor is anything refused for
ever: `limit` incidents among the last `window` steps are a reason to stop, and where the data are known to change,
`forget` says so.

The unit, one deviation, is the standard deviation of a normal distribution with the same median absolute difference
between neighbours. Deviations from the median itself would take a falling loss for a noisy one, and miss spikes of
several times the loss while it falls.

Plain numbers in and out: workers that see the same ones judge alike, and the state survives JSON exactly.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from math import exp, isfinite, log
from statistics import median
from typing import Any

from conf.knobs.training import SpikeAction, Spikes

_NORMAL = 1.0484  # a normal distribution's standard deviation over its median absolute difference of two draws
_LATELY = 8  # steps: a rising loss is compared with these, as the median of all would lag behind it
# What counts as one deviation at the least: a calm run deviates by nearly nothing, and ten times that is no spike.
_CALM_LOSS = 0.01  # times the median, plus
_CALM_NATS = 0.02
_CALM_NORM = 0.05  # of the norm's logarithm
_TINY = 1e-30  # a norm of 0 has this one's logarithm


@dataclass(frozen=True)
class Verdict:
    """What to do with a step."""

    accepted: bool
    stop: bool  # there were too many incidents lately
    kind: str  # what was refused: "loss", "gradient norm" or "not finite"; "" if nothing was
    reason: str  # in one line; "" likewise
    loss: float
    grad_norm: float
    median: float  # of the accepted steps' losses, or norms where the norm was refused; 0 while nothing is judged
    deviation: float  # from it

    def incident(self, *, step: int, position: int, action: SpikeAction, rows: list[Any]) -> dict[str, Any]:
        """The record of a refused step, for JSON: what was done, and with which rows, the first at `position`."""
        told = {name: value for name, value in asdict(self).items() if name not in ("accepted", "stop")}
        told = {name: str(v) if isinstance(v, float) and not isfinite(v) else v for name, v in told.items()}
        return {"step": step, "position": position, "action": action.value, **told, "rows": rows}


class Watch:
    """Judges the steps of a stage, one after the other."""

    def __init__(self, cfg: Spikes, *, clip: float = 0.0) -> None:
        self.cfg, self.clip = cfg, clip  # a norm up to `clip` is never a spike
        self._losses: deque[float] = deque(maxlen=cfg.window)  # of the accepted steps, the latest last
        self._norms: deque[float] = deque(maxlen=cfg.window)  # in logarithms: they spread over orders of magnitude
        self._refused: deque[bool] = deque(maxlen=cfg.window)  # of all judged steps, the latest last

    def judge(self, loss: float, grad_norm: float) -> Verdict:
        """Judge a step by its loss and the norm of its gradients before clipping, and remember it."""
        kind, reason, middle, deviation = "", "", 0.0, 0.0
        if not (isfinite(loss) and isfinite(grad_norm)):
            kind, reason = "not finite", f"loss {loss:.4g}, gradient norm {grad_norm:.4g}"
        elif self.cfg.action is not SpikeAction.none and len(self._losses) >= self.cfg.warmup:
            value, middle = loss, _level(self._losses)
            deviation = (loss - middle) / max(_spread(self._losses), abs(middle) * _CALM_LOSS + _CALM_NATS)
            usual = _level(self._norms)
            of_norm = (_log(grad_norm) - usual) / max(_spread(self._norms), _CALM_NORM)
            if deviation > self.cfg.loss_deviations:
                kind = "loss"
            elif grad_norm > self.clip and of_norm > self.cfg.norm_deviations:
                kind, value, middle, deviation = "gradient norm", grad_norm, exp(usual), of_norm
            if kind:
                reason = f"{kind} {value:.4g} is {deviation:.1f} deviations above the median {middle:.4g} "
                reason += f"of {len(self._losses)} steps"
        if not kind:
            self._losses.append(loss)
            self._norms.append(_log(grad_norm))
        self._refused.append(bool(kind))
        stop = sum(self._refused) >= self.cfg.limit
        return Verdict(not kind, stop, kind, reason, loss, grad_norm, middle, deviation)

    def forget(self) -> None:
        """The data change: what the steps so far were like says nothing about those to come."""
        self._losses.clear()
        self._norms.clear()

    def state(self) -> dict[str, list[Any]]:
        """As JSON takes it."""
        return {name: [*kept] for name, kept in self._kept().items()}

    def load(self, state: dict[str, list[Any]]) -> None:
        """Put back what `state` gave."""
        for name, kept in self._kept().items():
            kept.clear()
            kept.extend(state[name])

    def _kept(self) -> dict[str, deque[Any]]:
        return {"losses": self._losses, "norms": self._norms, "refused": self._refused}


def _log(norm: float) -> float:
    return log(max(norm, _TINY))


def _level(seen: Sequence[float]) -> float:
    """The median, or that of the latest where it is higher."""
    return max(median(seen), median(islice(reversed(seen), _LATELY)))


def _spread(seen: Sequence[float]) -> float:
    """The standard deviation of the noise, whatever the trend."""
    return _NORMAL * median(abs(b - a) for a, b in pairwise(seen))

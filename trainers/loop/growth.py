"""Whether a supervised stage that has begun can go on to another number of steps."""

from collections.abc import Mapping
from math import isclose
from typing import Any

from conf.knobs.training import Fit, Optim, Schedule
from moe.training.optimizer import learning_rate


def lengthened(section: str, fit: Fit, optim: Optim, before: Mapping[str, Any], step: int) -> str:
    """Why a stage that has saved `step` of the steps of its settings `before` cannot go on to `fit.steps`; "" if it
    can.

    Only under `wsd`, and only while its learning rate is at the peak under the one number and the other: whatever was
    learnt is then what would have been, had it begun so with as many steps of warm-up.
    """
    steps = int(before[f"{section}.steps"])
    if optim.schedule is not Schedule.wsd:
        return (
            f"under optim.schedule={optim.schedule.value} the learning rate of every step hangs on how many there are; "
            "a stage that is to grow begins with optim.schedule=wsd"
        )
    if step >= min(steps, fit.steps):
        return f"it has saved step {step}, where the fewer steps end"
    if fit.ramp and step < round(fit.ramp * max(steps, fit.steps)):
        return f"it has saved step {step}, where {section}.ramp={fit.ramp} still makes the batch larger"
    for many in (steps, fit.steps):
        if not isclose(learning_rate(step, many, optim), optim.lr, rel_tol=1e-9):
            part = "warm-up" if step < many * optim.warmup else "decay"
            return f"it has saved step {step}, which lies in the {part} of {many} steps"
    return ""

"""Put a new model on trial beside the one that is served.

    python -m serving.promote run.name=demo promote.model=<folder>

A share of the conversations is the candidate's; what people say of its answers, against what they say of the others,
promotes it or takes it back. The run's server does it; this says how it goes, and may be ended and given again.
"""

from conf.entry import early, job

early(__name__)

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from conf.errors import InputError
from conf.schema import Config
from serving.canary import trial as trials
from serving.canary.trial import Trial
from serving.models import find_model, version

LOOK, UNHEARD = 1.0, 30.0  # seconds: between two looks, and after which a trial that no server takes up is told of


def wanted(cfg: Config) -> Trial:
    """The trial that the knobs ask for: the one under way where it is of the same model. Raises `InputError`."""
    run, knobs = cfg.run.folder, cfg.promote
    last = trials.read(run)
    under_way = None if last is None or last.over else last
    if knobs.stop:
        if under_way is None:
            raise InputError(f"promote.stop=true: no trial is under way in {run}")
        return replace(under_way, state="rolled back", why="taken back by promote.stop=true")
    if not knobs.model:
        if under_way is None:
            raise InputError("promote.model is empty; give the candidate's folder: promote.model=<folder>")
        return under_way
    folder, _ = find_model(replace(cfg, serve=replace(cfg.serve, model=knobs.model)))
    candidate = version(folder)
    if under_way is not None and under_way.version == candidate:
        return under_way
    if under_way is not None:
        raise InputError(f"promote.model={knobs.model}: {under_way.model} is on trial; promote.stop=true takes it back")
    if not cfg.serve.model and candidate == version(find_model(cfg)[0]):
        raise InputError(f"promote.model={knobs.model}: that is what the run serves already")
    asked = {name: getattr(knobs, name) for name in ("share", "votes", "confidence", "tolerance")}
    return Trial(
        model=str(folder),
        version=candidate,
        incumbent="",
        asked=time.time(),
        before=last.taken if last else None,
        **asked,
    )


def followed(run: Path, wait: Callable[[float], None] = time.sleep) -> Iterator[Trial]:
    """The run's trial whenever something is new, to its end."""
    last = None
    while True:
        now = trials.read(run)
        if now is None:
            raise InputError(f"{trials.path(run)} is gone, and the trial with it")
        if now != last:
            last = now
            yield now
            if now.over:
                return
        wait(LOOK)


@job
def main(cfg: Config) -> dict[str, float]:
    """{"promoted": 1 or 0}, once it is decided."""
    trial = wanted(cfg)
    if trial != trials.read(cfg.run.folder):
        trials.write(cfg.run.folder, trial)
    began = time.monotonic()
    told = False

    def wait(seconds: float) -> None:
        nonlocal told
        time.sleep(seconds)
        now = trials.read(cfg.run.folder)
        if now and now.state == "asked" and not told and time.monotonic() > began + UNHEARD:
            told = True
            print(
                f"no server of this run has heard of it yet: python -m serving.serve run.name={cfg.run.name}",
                flush=True,
            )

    for trial in followed(cfg.run.folder, wait):
        print(f"{trial.model} is {trial.state}" + (f": {trial.why}" if trial.why else ""), flush=True)
    return {"promoted": float(trial.state == "promoted")}


if __name__ == "__main__":
    main()

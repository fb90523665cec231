"""A new model on trial beside the one that is served: what is known of it, in one small file of the run.

`python -m serving.promote` asks for it, the run's server carries it out and writes what has come of it, and Serve's
proxies read there which share of the conversations is the candidate's.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from cluster.storage import Damaged, read_json, write_json
from conf.errors import InputError

FILE = "canary.json"
CONFIG = "config.json"  # which every model folder has

State = Literal["asked", "serving", "switching", "promoted", "rolled back"]


@dataclass(frozen=True)
class Taken:
    """A model that was promoted."""

    model: str  # its folder
    name: str  # that it is served under
    asked: float  # unix seconds; when its trial was


@dataclass(frozen=True)
class Trial:
    model: str  # the candidate's folder
    version: str  # of its weights, which votes name
    incumbent: str  # the version that is served beside it; "" before the server has taken the trial up
    share: float  # of the conversations
    votes: int  # conversations of each model that people have judged, after which it is decided
    confidence: float  # with which the candidate must be worse to be rolled back before
    tolerance: float  # by how much less often it may be liked
    asked: float  # unix seconds
    state: State = "asked"
    why: str = ""  # it is in this state
    name: str = ""  # that it is served under, the incumbent's
    began: float = 0.0  # unix seconds; votes from then on count
    before: Taken | None = None  # the newest that an earlier trial has promoted

    @property
    def over(self) -> bool:
        return self.state in ("promoted", "rolled back")

    @property
    def taken(self) -> Taken | None:
        """The newest that was promoted, by this trial or before it."""
        mine = self.state in ("promoted", "switching")
        return Taken(self.model, self.name, self.asked) if mine else self.before

    @property
    def routed(self) -> float:
        """The share of the conversations that the candidate has now."""
        return self.share if self.state == "serving" else 1.0 if self.state == "switching" else 0.0


def path(run: Path) -> Path:
    return run / FILE


def read(run: Path) -> Trial | None:
    """The newest trial of a run; None where there was none. Raises `InputError` for a file that is none."""
    place = path(run)
    if not place.is_file():
        return None
    try:
        told = read_json(place)
        before = told.pop("before", None)
        return Trial(**told, before=Taken(**before) if before else None)
    except (Damaged, TypeError, AttributeError) as error:
        raise InputError(f"{place}: {error}; remove it to begin anew") from None


def promoted(run: Path, stages: Iterable[Path]) -> tuple[Path, str] | None:
    """(folder, name) of the model that a run's trials have promoted last, whatever became of later candidates; None
    where there is none, or one of the run's `stages` was made since."""
    trial = read(run)
    taken = trial.taken if trial else None
    if taken is None or not (Path(taken.model) / CONFIG).is_file():
        return None
    if any(stage.stat().st_mtime > taken.asked for stage in stages if stage.is_file()):
        return None
    return Path(taken.model), taken.name


def write(run: Path, trial: Trial) -> None:
    """Whole or not at all; readers see the one before or this one."""
    run.mkdir(parents=True, exist_ok=True)
    write_json(path(run), asdict(trial))

"""The weight of the distance from the first model, the statistics of the reward's terms, and the answers that are not
done: read, moved and saved.

An iteration is a function of it and the actors' state, so that it lies in the same checkpoint.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cluster.storage import read_json, write_json
from conf.errors import InputError
from conf.knobs.reinforcement import KlIn, Ppo
from rlhf.carried.segments import Segments
from rlhf.rewards import Running

FILE = "carried.json"
_MOST = 0.2  # of the weight, by which one horizon of answers moves it


@dataclass
class Carried:
    kl_coef: float  # of the distance in the reward
    terms: dict[str, Running] = field(default_factory=dict)
    segments: Segments = field(default_factory=Segments)

    @classmethod
    def of(cls, cfg: Ppo, checkpoint: Path | None) -> "Carried":
        """As the checkpoint has it; of one from before there was such a file, and without one, as it begins."""
        begins = cls(cfg.kl_coef if cfg.kl_in is KlIn.reward else 0.0)
        if checkpoint is None or not (checkpoint / FILE).is_file():
            return begins
        saved = read_json(checkpoint / FILE)
        # a weight that nobody moves is the knob's
        coefficient = saved["kl_coef"] if cfg.kl_target else begins.kl_coef
        segments = Segments.of(saved["segments"]) if "segments" in saved else Segments()
        return cls(coefficient, {name: Running(**of) for name, of in saved["terms"].items()}, segments)

    def beside(self, write: Callable[[Path], None]) -> Callable[[Path], None]:
        """`write`, which writes a checkpoint's folder, with this as it is now in it."""
        terms = {name: asdict(of) for name, of in self.terms.items()}
        now = {"kl_coef": self.kl_coef, "terms": terms, "segments": self.segments.plain}

        def both(folder: Path) -> None:
            write(folder)
            write_json(folder / FILE, now)

        return both

    def learnt(self, terms: dict[str, Running], kl: float, answers: int, cfg: Ppo) -> dict[str, float]:
        """After an iteration: the statistics with it in them, and the weight moved by how far its `answers` were, `kl`
        nats each in the mean. What is logged of it. Raises `InputError` where that is more than `ppo.max_kl`."""
        if 0 < cfg.max_kl < kl:
            raise InputError(
                f"ppo.max_kl={cfg.max_kl:g}: the answers are {kl:.3g} nats from the model that it starts from; lower "
                "ppo.lr, raise ppo.kl_coef or let ppo.kl_target move it. What was saved before is kept"
            )
        self.terms, used = terms, self.kl_coef
        if cfg.kl_target:
            self.kl_coef = moved(used, kl, answers, target=cfg.kl_target, horizon=cfg.kl_horizon)
        return {"actor/kl_coef": used} if cfg.kl_target else {}


def moved(coefficient: float, kl: float, answers: int, *, target: float, horizon: float) -> float:
    """The weight of the KL that brings it nearer to `target` (Ziegler et al. 2019, section 2.2): answers that are too
    far raise it, such that are too near lower it, by a fifth at most for `horizon` answers."""
    error = min(max(kl / target - 1.0, -_MOST), _MOST)
    return coefficient * (1.0 + error * answers / horizon)

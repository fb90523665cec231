"""HFFT, human feedback fine-tuning: tune the chat model on the best of each query's answers.

Best of K, or rejection sampling fine-tuning: RAFT (Dong et al. 2023, arXiv 2304.06767), Llama 2 (Touvron et al. 2023,
arXiv 2307.09288). It needs rankings and no reward model. Which answer is the best, and which query is left out, is said
in `trainers.files.hindsight`.
"""

from conf.entry import early, job

early(__name__)

from collections.abc import Collection
from typing import Any

from conf.schema import Config
from trainers import preferred
from trainers.files.hindsight import PLAIN, plain


def reads(cfg: Config, there: Collection[str]) -> list[str]:
    return preferred.reads(cfg, cfg.hfft, there)


def check(cfg: Config) -> None:
    """Raise `InputError` for rankings that are not there."""
    preferred.check(cfg, "hfft", cfg.hfft)


@job
def main(cfg: Config) -> dict[str, Any]:
    """Read the chat (or parent) and tasks stages and rankings, write the hfft model; returns what the stage chat does,
    with what was kept of the chat model's text, and how many queries were left out."""
    return preferred.learn(cfg, "hfft", cfg.hfft, preferred.Method(lambda record, _: [plain(record)], {PLAIN: 1.0}))


if __name__ == "__main__":
    main()

"""A checkpoint saved by one process."""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from cluster.checkpoints import checkpoint_path
from cluster.saver import Saver
from conf.knobs.training import Checkpoints


def save_checkpoint(
    folder: Path, step: int, write: Callable[[Path], None], keep: int, *, asynchronous: bool = False
) -> Path:
    """Commit the checkpoint of `step` as filled by `write`, then drop all but the newest `keep`. Returns its path."""
    cfg = Checkpoints(asynchronous=asynchronous)
    with Saver(folder, cfg, keep=keep, rank=0, world=1, attempt=uuid4().hex) as saver:
        saver.save(step, write)
    return checkpoint_path(folder, step)

"""What Ray's feed and checkpoints cost a stage, against the same loop without them; each run is a process of its own.

    python -m tests.bench.test_training <ray|bare> <threads> <steps between checkpoints> <folder>

trains and prints its tokens per second.
"""

import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from tests.bench.measure import record, sized

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
ROUNDS, STEPS, WARM = sized((3, 50, 10), (1, 10, 2))  # the first steps are not counted
VOCABULARY, LENGTH = sized((4608, 256), (256, 32))
PRESET = sized(["preset=demo"], ["preset=test", "pretrain.batch_rows=2"])
EVERY, NEVER = sized(50, 4), 10**6  # steps between checkpoints


def speed(kind: str, folder: Path, *, threads: int, every: int = NEVER) -> float:
    command = [sys.executable, "-m", "tests.bench.test_training", kind, str(threads), str(every), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("threads", sized([1, 2], [1]))
def test_feed(tmp_path: Path, threads: int) -> None:
    found: dict[str, list[float]] = {"ray": [], "bare": []}
    for number in range(ROUNDS):
        for kind, speeds in found.items():
            speeds.append(speed(kind, tmp_path / f"{kind} {number}", threads=threads))
    record(f"feed/{threads} threads", "tok/s", median(found["ray"]), {"the loop without Ray": median(found["bare"])})


def test_checkpoints(tmp_path: Path) -> None:
    found: dict[int, list[float]] = {EVERY: [], NEVER: []}
    for number in range(ROUNDS):
        for every, speeds in found.items():
            speeds.append(speed("bare", tmp_path / f"{every} {number}", threads=1, every=every))
    record(f"checkpoint/{EVERY} steps", "tok/s", median(found[EVERY]), {"without checkpoints": median(found[NEVER])})


def train(kind: str, threads: int, every: int, folder: Path) -> float:
    """The demo's model on random rows."""
    from conf.entry import compose
    from moe.decoder import new_decoder
    from moe.kernels.allocator import keep_buffers
    from moe.training.objectives import LANGUAGE_MODEL
    from trainers.loop.loop import fit, learn
    from trainers.loop.recipe import Plan
    from trainers.rows.feed import DirectFeed
    from trainers.rows.mixture import Course
    from trainers.rows.packing import Row
    from trainers.rows.rows import write_rows

    dice = np.random.default_rng(0)
    segments, loss = np.ones(LENGTH, np.int32), (np.arange(LENGTH) > 0).astype(np.uint8)
    rows = [Row(dice.integers(0, VOCABULARY, LENGTH, np.int32), segments, loss) for _ in range(512)]
    write_rows(folder / "rows", rows, row_length=LENGTH, rows_per_shard=512, meta={"tokenizer": "none"})
    knobs = [f"pretrain.steps={STEPS + WARM}", f"pretrain.save_every={every}", f"pretrain.eval_every={NEVER}"]
    cfg = compose([*PRESET, f"run.dir={folder}", f"cluster.threads={threads}", "pretrain.eval_rows=1", *knobs])
    plan = Plan.of(
        cfg,
        "base",
        cfg.pretrain,
        start=partial(new_decoder, cfg.model, VOCABULARY),
        objective=LANGUAGE_MODEL,
        course=Course.of(folder / "rows"),
        held_out={"val": folder / "rows"},
        decode=str,
    )
    if kind == "ray":
        from cluster.connect import connect

        connect(cfg.cluster)
        fit(plan)
    else:
        keep_buffers()
        learn(plan.settled(), lambda at: DirectFeed(plan.course, seed=plan.seed, position=at))
    from cluster.tracking.tracker import read_metrics

    lines = [line for line in read_metrics(plan.folder) if line["step"] > WARM and "time/step" in line]
    taken = lines[-1]["tokens"] - lines[0]["tokens"]
    return taken / sum(line["time/step"] * plan.fit.log_every for line in lines[1:])


if __name__ == "__main__":
    print(train(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))

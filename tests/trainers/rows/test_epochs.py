"""Epochs in steps and steps in epochs: by hand, and by counting the rows that really come."""

from pathlib import Path

import numpy as np
import pytest

from conf.errors import InputError
from conf.knobs.training import Curriculum, Fit, Pretrain, Sft
from trainers.rows.epochs import Seen, in_steps
from trainers.rows.feed import rows_before
from trainers.rows.mixture import Course, Phase
from trainers.rows.packing import pack
from trainers.rows.rows import write_rows
from trainers.sft import easy_to_hard


def sets(place: Path, *counts: int) -> list[Path]:
    for number, count in enumerate(counts):
        rows = pack([([1] * 8, [1] * 8)] * count, 8)
        write_rows(place / str(number), rows, row_length=8, rows_per_shard=64, meta={"tokenizer": "none"})
    return [place / str(number) for number in range(len(counts))]


@pytest.mark.parametrize(
    ("fit", "rows", "share", "steps"),
    [
        (Pretrain(epochs=0.0), 100, 1.0, 400),  # off
        (Pretrain(epochs=1.0), 64, 1.0, 2),
        (Pretrain(epochs=1.0), 65, 1.0, 3),
        (Pretrain(epochs=0.1), 65, 1.0, 1),
        (Pretrain(epochs=2.5), 64, 1.0, 5),
        (Pretrain(epochs=3.0), 64, 0.75, 8),  # a quarter of the rows are others
        (Pretrain(epochs=1.0, batch_tokens=128), 64, 1.0, 4),  # 16 rows of 8
        (Pretrain(epochs=1.1, batch_rows=1), 10, 1.0, 11),  # 11.000000000000002
        (Pretrain(epochs=4.0, ramp=0.5, ramp_from=0.5), 64, 1.0, 10),  # see below
    ],
)
def test_epochs_in_steps(fit: Fit, rows: int, share: float, steps: int) -> None:
    made = in_steps(fit, rows, 8, share=share)
    assert made.steps == steps
    if fit.ramp:  # steps of 16, 19, 22, 26, 29, then 32 rows: nine hold 248, the tenth makes the 256 full
        assert [rows_before(in_steps(fit, wanted, 8), 8, made) for wanted, made in ((60, 9), (64, 10))] == [248, 272]


def test_how_often_each_sample_is_seen_is_told_before_training(tmp_path: Path) -> None:
    (own,) = sets(tmp_path, 24)
    seen = Seen.of("chat", Sft(steps=400, row_length=8), Course.of(own), own=1, seed=0)
    assert seen.epochs == 12800 / 24
    line = "chat: 400 steps of 32 rows: each of 50 samples is seen 533 times"
    assert seen.told(50, "samples") == line
    assert seen.told(50, "samples", remedy="sft.epochs=3") == (
        f"{line}\nchat: seen more than about 4 times they are learnt by heart; try sft.epochs=3"
    )
    few = Seen.of("chat", Sft(steps=3, row_length=8), Course.of(own), own=1, seed=0)
    assert few.told(50, "samples", remedy="sft.epochs=3") == (
        "chat: 3 steps of 32 rows: each of 50 samples is seen 4 times"
    )


def test_a_curriculum_and_a_replay_are_counted_as_they_come(tmp_path: Path) -> None:
    *own, text = sets(tmp_path, 30, 20, 50)
    cfg = Sft(epochs=3.0, batch_rows=4, row_length=8, replay=0.25, curriculum=Curriculum(stages=2, revisit=0.2))
    fit = in_steps(cfg, 50, 8, share=0.75)
    assert fit.steps == 50  # 150 rows of the own are three quarters of 200
    course = easy_to_hard(own, text, fit)
    came = np.bincount(course.places(7, 0, 200)[:, 0], minlength=3)
    assert course.drawn(7, 200).tolist() == came.tolist()
    assert [course.drawn(7, stop).sum() for stop in (0, 1, 39, 40, 41)] == [0, 1, 39, 40, 41]
    seen = Seen.of("chat", fit, course, own=2, seed=7)
    assert seen.each == (came[0] / 30, came[1] / 20)
    assert seen.epochs == pytest.approx((came[0] + came[1]) / 50) == pytest.approx(3.0, rel=0.05)
    told = seen.told(90, "samples")
    assert told.startswith("chat: 50 steps of 4 rows: each of 90 samples is seen ")
    assert told.endswith(f" times, by difficulty {min(seen.each):.3g} to {max(seen.each):.3g}")


def test_replayed_rows_are_not_the_runs_own(tmp_path: Path) -> None:
    own, old = sets(tmp_path, 20, 10)
    course = Course((own, old), (Phase(0, (0.5, 0.5)),))
    fit = in_steps(Pretrain(epochs=2.0, batch_rows=8), 20, 8, share=0.5)
    assert fit.steps == 10
    assert Seen.of("base", fit, course, own=1, seed=0).epochs == pytest.approx(2.0, rel=0.1)


def test_epochs_that_cannot_be_are_refused() -> None:
    for epochs in (-1.0, float("nan"), 1e6):
        with pytest.raises(InputError, match=r"^sft\.epochs=.* must lie in \[0, 10000\]; 0 means sft\.steps$"):
            Sft(epochs=epochs)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an epoch is no step short",
        "trainers/rows/epochs.py",
        "made.steps)) > 1e-6:",
        "made.steps)) >= full:",
        "test_epochs_in_steps",
    ),
    (
        "rows of another mix do not count",
        "trainers/rows/epochs.py",
        "fit.epochs * rows / share",
        "fit.epochs * rows",
        "test_epochs_in_steps",
    ),
    (
        "without epochs the steps stay",
        "trainers/rows/epochs.py",
        "    if not fit.epochs:",
        "    if fit.epochs < 0:",
        "test_epochs_in_steps",
    ),
    (
        "a warning comes above a few",
        "trainers/rows/epochs.py",
        "self.epochs <= MANY",
        "self.epochs >= MANY",
        "test_how_often_each_sample_is_seen_is_told_before_training",
    ),
    (
        "a curriculum's stages are counted each",
        "trainers/rows/mixture.py",
        "            begin = max(begin, end)",
        "            begin = begin",
        "test_a_curriculum_and_a_replay_are_counted_as_they_come",
    ),
]

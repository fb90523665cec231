"""Early stopping counted by hand."""

import json
from math import nan

from trainers.loop.stopping import Stopper


def test_it_stops_after_so_many_evaluations_without_a_lower_loss() -> None:
    stopper = Stopper(2)
    assert [stopper.see(loss) for loss in (3.0, 2.0, 2.0, 1.5, nan, 1.6)] == [False] * 5 + [True]
    assert stopper.best == 1.5


def test_without_patience_it_never_stops() -> None:
    stopper = Stopper(0)
    assert not any(stopper.see(float(loss)) for loss in range(100))


def test_a_continued_stage_stops_where_the_straight_one_does() -> None:
    first, second = Stopper(2), Stopper(2)
    second.load(json.loads(json.dumps(first.state())))
    assert [first.see(loss) for loss in (0.1 + 0.2, 0.4)] == [False, False]
    second.load(json.loads(json.dumps(first.state())))
    assert (second.best, second.see(0.3 + 1e-16 * 4)) == (0.1 + 0.2, True)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a lower loss restarts patience",
        "trainers/loop/stopping.py",
        "self.best, self.since = loss, 0",
        "self.best = loss",
        None,
    ),
]

"""SIGKILL at any moment of a supervised stage, and the same command again: bitwise the end of a run left alone.

Planted bugs these turn red: see tests/trainers/loop/test_loop.py, which breaks runs off within one process.
"""

import hashlib
import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from cluster.checkpoints import newest_checkpoint, newest_step
from cluster.storage import read_json
from cluster.tracking.tracker import read_metrics
from tests.faults.server import Server
from tests.faults.stages import stage_plan
from trainers.loop.state import State
from trainers.rows.feed import PROGRESS

pytestmark = pytest.mark.slow
POINTS = {  # how often a process that goes on from a checkpoint reaches it before it is killed
    "train.fed": 8,
    "train.gradients": 4,
    "train.stepped": 7,
    "train.logged": 3,
    "train.evaluated": 1,
    "save.begun": 2,
    "save.written": 1,
    "save.sealed": 2,
    "save.renamed": 1,
    "save.pruned": 1,
}
KILLS = {"base": 14, "chat": 8, "reward": 8}  # at random times, beside one at each point
STOPS = 10  # of each kind of stage, at random times
End = dict[str, dict[str, object]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="module")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[End, float]]:
    """How each stage ends when nothing happens to it, and how long that takes."""
    ends = {}
    for kind in KILLS:
        folder = tmp_path_factory.mktemp(kind)
        done = server.run(kind, folder)
        assert done.codes == [0]
        ends[kind] = end(folder), done.seconds
    return ends


def end(folder: Path) -> End:
    """All that a run leaves: the hash of each tensor of its last checkpoint, the exact numbers of every step."""
    found = newest_checkpoint(folder / "checkpoints")
    assert found is not None and read_json(found[1] / PROGRESS)["done"]
    tensors: dict[str, object] = {}  # by kind and name, whichever worker's file they lie in
    for path in sorted(found[1].glob("*.safetensors")):
        kind, worker = path.name.split(".")[0].split("-")[:2]
        if kind == "random" and int(worker):
            continue  # the first worker's dice are what every number of workers has
        named = load_file(path).items()
        tensors |= {f"{kind}/{name}": hashlib.sha256(tensor.numpy()).hexdigest() for name, tensor in named}
    lines = read_metrics(folder)
    names = ("loss", "grad_norm", "val/loss", "incident")
    steps = {f"{name} {line['step']}": line[name] for line in lines for name in names if name in line}
    exact = {name: value.hex() if isinstance(value, float) else value for name, value in steps.items()}
    incidents = {path.name: path.read_text() for path in sorted((folder / "incidents").glob("*.json"))}
    return {"tensors": tensors, "numbers": read_json(found[1] / PROGRESS), "steps": exact, "incidents": incidents}


def assert_same(got: End, expected: End, after: str = "") -> None:
    different = [
        f"{part}/{name}"
        for part in expected
        for name in expected[part].keys() | got[part].keys()
        if expected[part].get(name) != got[part].get(name)
    ]
    assert not different, f"{after}: {sorted(different)}"


def check_rows(folder: Path, kind: str) -> None:
    """Over all attempts: a position is always the same row, and those of the run are all there, none beyond."""
    seen: dict[int, list[int]] = {}
    for line in (folder / "rows.log").read_text().splitlines():
        for at, place in json.loads(line)["rows"].items():
            assert seen.setdefault(int(at), place) == place
    plan = stage_plan(kind, folder)
    found = newest_checkpoint(plan.checkpoints)
    assert found is not None
    position = read_json(found[1] / PROGRESS)["position"]
    assert sorted(seen) == list(range(position))
    np.testing.assert_array_equal([seen[at] for at in range(position)], plan.course.places(plan.seed, 0, position))


@pytest.mark.parametrize("kind", KILLS)
def test_sigkill_at_random_times_changes_no_bit(
    server: Server, undisturbed: dict[str, tuple[End, float]], tmp_path: Path, kind: str
) -> None:
    expected, seconds = undisturbed[kind]
    dice, killed, trial = random.Random(f"{kind} 1"), 0, 0
    while killed < KILLS[kind]:
        folder, trial = tmp_path / str(trial), trial + 1
        while killed < KILLS[kind] and server.run(kind, folder, kill_after=dice.uniform(0.2, 0.6) * seconds).killed:
            killed += 1
        assert server.run(kind, folder).codes == [0]
        assert_same(end(folder), expected)
        check_rows(folder, kind)


@pytest.mark.parametrize("kind", KILLS)
def test_sigkill_at_every_named_point_changes_no_bit(
    server: Server, undisturbed: dict[str, tuple[End, float]], tmp_path: Path, kind: str
) -> None:
    for point, count in POINTS.items():
        assert server.run(kind, tmp_path, fault=f"{point}:{count}:kill").killed, f"{point} not reached {count} times"
    assert server.run(kind, tmp_path).codes == [0]
    assert_same(end(tmp_path), undisturbed[kind][0])
    check_rows(tmp_path, kind)


@pytest.mark.parametrize("kind", KILLS)
def test_sigterm_at_random_times_changes_no_bit(
    server: Server, undisturbed: dict[str, tuple[End, float]], tmp_path: Path, kind: str
) -> None:
    """Each ends within the step that it is in, with 143, and the same command goes on from there."""
    expected, seconds = undisturbed[kind]
    dice, stopped, trial = random.Random(f"{kind} 2"), 0, 0
    while stopped < STOPS:
        folder, trial = tmp_path / str(trial), trial + 1
        while stopped < STOPS:
            before = newest_step(folder / "checkpoints")
            ended = server.run(kind, folder, stop_after=dice.uniform(0.15, 0.7) * seconds)
            if ended.codes == [0]:
                break
            # before the signals are ours it is a kill like any other
            assert ended.codes == [128 + signal.SIGTERM] or ended.codes == [-signal.SIGTERM]
            if ended.codes == [128 + signal.SIGTERM]:
                stopped += 1
                there = newest_step(folder / "checkpoints")
                # all steps may be done, or the chat stage may just have gone back
                assert there > before or before == stage_plan(kind, folder).fit.steps or kind == "chat"
        assert server.run(kind, folder).codes == [0]
        assert_same(end(folder), expected)
        check_rows(folder, kind)


def test_sigterm_of_several_workers_changes_no_bit(server: Server, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert server.run("base", whole, workers=2).codes == [0, 0]
    for workers, point in ((2, "train.fed:8"), (4, "train.stepped:7"), (2, "train.gradients:11")):
        ended = server.run("base", stopped, workers=workers, fault=f"{point}:term")
        assert sorted(ended.codes) == [0] * (workers - 1) + [128 + signal.SIGTERM]
    assert server.run("base", stopped, workers=2).codes == [0, 0]
    assert_same(end(stopped), end(whole))
    check_rows(stopped, "base")


def test_the_runs_have_what_a_checkpoint_must_not_lose(
    undisturbed: dict[str, tuple[End, float]], tmp_path: Path
) -> None:
    for kind in KILLS:
        assert 1 <= len(undisturbed[kind][0]["incidents"]) < 30, f"{kind}: no step was left out, or nearly all"
        assert State.new(stage_plan(kind, tmp_path / kind)).model.cfg.jitter > 0


def test_any_number_of_workers_in_turn_gives_the_same_bits(server: Server, tmp_path: Path) -> None:
    """1, 2 and 4 workers, and a run that is killed and goes on with another number each time."""
    ends = []
    for workers in (1, 2, 4):
        done = server.run("base", tmp_path / str(workers), workers=workers)
        assert done.codes == [0] * workers
        ends.append(end(tmp_path / str(workers)))
        check_rows(tmp_path / str(workers), "base")
    mixed = tmp_path / "mixed"
    for workers in (1, 2, 4, 2, 1, 4):
        assert server.run("base", mixed, workers=workers, fault="train.stepped:9:kill").killed
    assert server.run("base", mixed, workers=2).codes == [0, 0]
    ends.append(end(mixed))
    check_rows(mixed, "base")
    for other in ends[1:]:
        assert_same(other, ends[0])

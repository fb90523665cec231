"""Checkpoints of several ranks: whole or not there, the right ones kept, errors told where the policy says."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from cluster import checkpoints, fault, storage
from cluster.saver import Saver
from conf.errors import InputError
from conf.knobs.training import Checkpoints, OnError
from tests.cluster.saving import save_checkpoint


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    fault.arm("")


def saver(folder: Path, rank: int = 0, world: int = 1, *, keep: int = 2, **knobs: Any) -> Saver:
    own = {name: knobs.pop(name) for name in ("attempt", "deadline") if name in knobs}
    return Saver(folder, Checkpoints(**knobs), keep=keep, rank=rank, world=world, **{"attempt": "a", **own})


def content(text: str, *, name: str = "weights") -> Callable[[Path], None]:
    return lambda folder: storage.write_file(folder / name, text)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def together(*ranks: Callable[[], None]) -> list[BaseException | None]:
    """What the ranks raise, each in a thread of its own."""
    with ThreadPoolExecutor(len(ranks)) as pool:
        return [future.exception() for future in [pool.submit(rank) for rank in ranks]]


def save_once(made: Saver, write: Callable[[Path], None], step: int = 7) -> None:
    with made:
        made.save(step, write)


def test_two_ranks_make_one_checkpoint(tmp_path: Path) -> None:
    ranks = [partial(save_once, saver(tmp_path, r, 2), content(f"of {r}", name=f"weights-{r}")) for r in (0, 1)]
    assert together(*ranks) == [None, None]
    assert checkpoints.newest_checkpoint(tmp_path) == (7, tmp_path / "step-00000007")
    made = {path.name: path.read_text() for path in (tmp_path / "step-00000007").iterdir()}
    manifest = json.loads(made.pop("manifest.json"))
    assert made == {"weights-0": "of 0", "weights-1": "of 1"}
    assert (manifest["step"], manifest["score"], manifest["bytes"]) == (7, None, {"weights-0": 4, "weights-1": 4})
    assert manifest["files"]["weights-1"] == storage.sha256(tmp_path / "step-00000007" / "weights-1")
    assert steps(tmp_path) == [7]


def test_a_state_too_large_to_copy_is_written_before_training_goes_on(tmp_path: Path) -> None:
    with saver(tmp_path, copy_gb=0.5) as made:
        assert made.beside(500_000_000) and not made.beside(500_000_001)
        made.save(7, content("large"), beside=False)
        assert steps(tmp_path) == [7] and made._running is None
    assert not saver(tmp_path, asynchronous=False).beside(1)


def test_a_folder_to_each_role(tmp_path: Path) -> None:
    def roles(folder: Path) -> None:
        for role in ("learner", "critic"):
            (folder / role).mkdir()
            storage.write_file(folder / role / "weights", role)
        storage.write_file(folder / "cursor", "7")

    save_once(saver(tmp_path), roles)
    final = tmp_path / "step-00000007"
    assert checkpoints.newest_checkpoint(tmp_path) == (7, final)
    assert sorted(path.name for path in final.iterdir()) == ["critic", "cursor", "learner", "manifest.json"]
    assert (final / "learner" / "weights").read_text() == "learner"
    assert (final / "critic" / "weights").read_text() == "critic"
    assert json.loads((final / "manifest.json").read_text())["bytes"] == {
        "critic/weights": 6,
        "cursor": 1,
        "learner/weights": 7,
    }
    (final / "critic" / "weights").write_text("cretic")
    assert checkpoints.newest_checkpoint(tmp_path) is None


def test_two_ranks_share_a_roles_folder(tmp_path: Path) -> None:
    def role(folder: Path, rank: int) -> None:
        (folder / "learner").mkdir()
        storage.write_file(folder / "learner" / f"weights-{rank}", str(rank))

    ranks = [partial(save_once, saver(tmp_path, r, 2), partial(role, rank=r)) for r in (0, 1)]
    assert together(*ranks) == [None, None]
    made = tmp_path / "step-00000007" / "learner"
    assert {path.name: path.read_text() for path in made.iterdir()} == {"weights-0": "0", "weights-1": "1"}
    storage.verify(made.parent)


def test_nothing_is_hashed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    whole = storage.sha256

    def noted(path: Path) -> str:
        hashed.append(path.name)
        return whole(path)

    monkeypatch.setattr(storage, "sha256", noted)
    together(*[partial(save_once, saver(tmp_path, r, 2), content("x", name=f"weights-{r}")) for r in (0, 1)])
    assert sorted(hashed) == ["weights-0", "weights-1"]


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, content("before"), keep=2)
    save_once(saver(tmp_path, 2, 4), content("", name="w2"))
    with pytest.raises(InputError) as refused:
        save_once(saver(tmp_path, 0, 4, deadline=0.3), content("", name="w0"))
    assert "step-00000007 failed: no files from rank 1, 3 (deadline 0.3 s); make room, or" in str(refused.value)
    assert steps(tmp_path) == [1]


def test_a_rank_that_fails_is_named_at_once(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        (folder / "part").write_text("half")
        raise OSError(28, "No space left on device")

    ranks = [partial(save_once, saver(tmp_path, 0, 2), content("0")), partial(save_once, saver(tmp_path, 1, 2), full)]
    before = time.monotonic()
    first, second = together(*ranks)
    assert time.monotonic() - before < 300  # of the deadline's 600
    assert isinstance(first, InputError) and "rank 1: [Errno 28] No space left on device" in str(first)
    assert isinstance(second, InputError)
    assert [*tmp_path.iterdir()] == []


def test_ranks_must_not_write_the_same_name(tmp_path: Path) -> None:
    ranks = [partial(save_once, saver(tmp_path, rank, 2, deadline=600), content(str(rank))) for rank in (0, 1)]
    first, _ = together(*ranks)
    assert isinstance(first, AssertionError) and "two ranks write the same name" in str(first)
    assert checkpoints.newest_checkpoint(tmp_path) is None


def test_what_a_killed_attempt_left_is_removed_and_never_used(tmp_path: Path) -> None:
    left = tmp_path / "step-00000007.before-1.tmp"
    left.mkdir()
    storage.write_file(left / "weights-1", "old")
    storage.write_json(left / ".rank-00001.json", {"files": {"weights-1": "0"}, "bytes": {"weights-1": 3}})
    (tmp_path / "ray-1").mkdir()  # not ours
    ranks = [partial(save_once, saver(tmp_path, r, 2), content("new", name=f"weights-{r}")) for r in (0, 1)]
    assert together(*ranks) == [None, None]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ray-1", "step-00000007"]
    assert (tmp_path / "step-00000007" / "weights-1").read_text() == "new"


def test_the_newest_the_best_and_every_nth_are_kept_also_by_a_resumed_run(tmp_path: Path) -> None:
    scores = {10: 3.0, 20: 1.0, 30: 2.0, 40: float("nan"), 50: 2.5, 60: None, 70: 1.5}
    for step, score in scores.items():  # a new one each time: all it knows is on the disk
        with saver(tmp_path, keep=2, best=True, every=30) as made:
            made.save(step, content(str(step)), score=score)
    assert steps(tmp_path) == [20, 30, 60, 70]
    with saver(tmp_path, keep=1, best=True) as made:
        made.save(80, content("80"), score=0.5)
    assert steps(tmp_path) == [80]


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    go = threading.Event()

    def slow(folder: Path) -> None:
        assert go.wait(600)
        storage.write_file(folder / "weights", "slow")

    with saver(tmp_path) as made:
        made.save(1, slow)
        assert checkpoints.newest_checkpoint(tmp_path) is None
        threading.Timer(0.1, go.set).start()
        made.save(2, content("next"))  # waits for the one before
        assert (tmp_path / "step-00000001" / "weights").read_text() == "slow"
    assert steps(tmp_path) == [1, 2]


def test_without_asynchronous_it_is_there_when_save_returns(tmp_path: Path) -> None:
    made = saver(tmp_path, asynchronous=False)
    made.save(1, content("here"))
    assert checkpoints.newest_checkpoint(tmp_path) == (1, tmp_path / "step-00000001")


@pytest.mark.parametrize("point", ["begun", "written", "sealed"])
def test_an_error_is_raised_at_the_next_save_or_told(
    tmp_path: Path, point: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with saver(tmp_path) as made:
        made.save(1, content("one"))
        made.wait()
        fault.arm(f"save.{point}:1:enospc")
        made.save(2, content("two"))
        with pytest.raises(
            InputError, match=r"saving .*step-00000002 failed: \[Errno 28\] No space left .*on_error=go_on"
        ):
            made.save(3, content("three"))
        made.save(3, content("three"))
    assert fault.reached() and steps(tmp_path) == [1, 3]
    fault.arm(f"save.{point}:1:enospc")
    with saver(tmp_path, on_error=OnError.go_on) as made:
        made.save(4, content("four"))
        made.wait()
        assert fault.reached() and steps(tmp_path) == [1, 3]
        made.save(5, content("five"))
    assert steps(tmp_path) == [3, 5]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and f"saving {tmp_path}/step-00000004 failed: [Errno 28] No space left on device" in told[0]


def test_a_bug_is_raised_whatever_the_policy(tmp_path: Path) -> None:
    def wrong(folder: Path) -> None:
        raise KeyError("a bug")

    made = saver(tmp_path, on_error=OnError.go_on)
    with pytest.raises(KeyError, match="a bug"), made:
        made.save(1, wrong)
    assert [*tmp_path.iterdir()] == []


def test_leaving_by_an_error_does_not_wait_for_ranks_that_may_be_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = time.monotonic()
    with pytest.raises(RuntimeError, match="the loop broke"), saver(tmp_path, 0, 2) as made:
        made.save(1, content("one"))
        raise RuntimeError("the loop broke")
    assert time.monotonic() - before < 300  # of the deadline's 600
    assert "no files from rank 1" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="the loop broke"), saver(tmp_path) as made:
        made.save(2, content("two"))  # but what can be finished, is
        raise RuntimeError("the loop broke")
    assert steps(tmp_path) == [2]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a copy takes no more memory than it may",
        "cluster/saver.py",
        "and size <= self._cfg.copy_gb * 1e9",
        "and size >= 0",
        None,
    ),
    (
        "the best checkpoint is kept",
        "cluster/checkpoints.py",
        "kept.add(min(scores)[2])",
        "kept.add(max(scores)[2])",
        None,
    ),
    (
        "a resumed run knows its best",
        "cluster/saver.py",
        '"score": score if score is not None and math.isfinite(score) else None',
        '"score": None',
        None,
    ),
    ("a failing rank is named at once", "cluster/saver.py", 'raise OSError("; ".join(failed))', "continue", None),
    (
        "a role's files lie in the role's folder",
        "cluster/saver.py",
        "place = aside / name",
        "place = aside / Path(name).name",
        "test_a_folder_to_each_role",
    ),
    (
        "ranks may share a role's folder",
        "cluster/saver.py",
        "place.parent.mkdir(exist_ok=True)",
        "place.parent.mkdir(exist_ok=place.parent == aside)",
        "test_two_ranks_share_a_roles_folder",
    ),
]

"""The cluster starts, and a user's error comes out of it as it went in."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.connect import connect, each_on_worker, on_worker, user_error
from conf.errors import InputError, NotStarted, cluster_failure
from conf.knobs.running import Cluster

ROOT = Path(__file__).parents[2]


def test_a_long_session_folder_is_refused() -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("a cluster is up")
    with pytest.raises(InputError, match=r"cluster.temp_dir=/tmp/x+ is \d+ bytes too long for Ray's sockets; try"):
        connect(Cluster(temp_dir="/tmp/" + "x" * 80))


def test_nothing_answers_at_ray_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("a cluster is up")
    for address in ("not-an-address", "127.0.0.1:1"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(InputError, match=f"RAY_ADDRESS={address}: no Ray cluster answers there"):
            connect(Cluster())


def test_user_error_follows_chains_and_leaves_our_own_faults_alone() -> None:
    def raised(error: BaseException, cause: BaseException | None) -> BaseException:
        try:
            raise error from cause
        except BaseException as caught:
            return caught

    user = InputError("corpus.files=[x]: no such file; try y")
    assert user_error(raised(RuntimeError("outer"), raised(KeyError("inner"), user))) is user
    assert user_error(raised(RuntimeError("outer"), KeyError("inner"))) is None
    assert user_error(ExceptionGroup("two", [KeyError("a"), user])) is user


def test_a_disk_that_refuses_is_told_as_itself() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "/run/metrics.jsonl")
    wrapped = RuntimeError("Training failed due to worker errors")
    wrapped.worker_failures = {1: full}  # type: ignore[attr-defined]
    assert str(user_error(wrapped)) == (
        "[Errno 28] No space left on device: '/run/metrics.jsonl'; make room, and the same command continues"
    )
    denied = PermissionError(errno.EACCES, "Permission denied", "/run")
    assert str(user_error(denied)).endswith("'/run'; give the right to it, and the same command continues")
    told = InputError("saving /run/step-1 failed: no space; make room")
    told.__cause__ = full
    assert user_error(told) is told
    assert user_error(ConnectionResetError(errno.ECONNRESET, "reset")) is None
    assert user_error(FileNotFoundError(errno.ENOENT, "no such file")) is None


def test_a_lost_nodes_log_is_not_shown() -> None:
    told = "Raylet is terminated. Termination is unexpected. Last 20 lines of the Raylet logs:\n    [state-dump] x: 1\n"
    code = f"""
import cluster.connect
from ray._private.ray_logging import stdout_deduplicator as shown
for text in ({told!r}, "The node was marked dead"):
    print([batch["lines"] for batch in shown.deduplicate({{"lines": [text], "pid": "raylet", "is_err": False}})])"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["[[]]", "[['The node was marked dead']]"]


def test_what_of_rays_own_failed_is_found_inside() -> None:
    from ray.exceptions import ActorDiedError, LocalRayletDiedError, NodeDiedError

    outer = RuntimeError("outer")
    outer.__cause__ = NodeDiedError("node 12 was marked dead\nmore lines")
    assert cluster_failure(outer) == "a node of the Ray cluster died (node 12 was marked dead)"
    assert cluster_failure(LocalRayletDiedError()).startswith("a process of Ray's (raylet) died (")
    assert cluster_failure(ActorDiedError()).startswith("an actor's process died (")
    assert cluster_failure(ValueError("ours")) == ""


def test_a_cluster_that_does_not_start_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    def late(**settings: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because\nmore")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", late)
    with pytest.raises(NotStarted) as error:
        connect(Cluster())
    assert cluster_failure(error.value) == (
        "Ray did not start on this machine (The current node timed out during startup. This could happen because)"
    )


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "told"), [("raylet", "this node's Ray process"), ("gcs_server", "Ray's head process")]
)
def test_a_process_of_rays_that_dies_ends_the_command_in_a_line(name: str, told: str) -> None:
    code = f"""
import time, psutil
from cluster.connect import connect
from conf.knobs.running import Cluster
connect(Cluster(object_store_mb=100))
[process] = [p for p in psutil.Process().children(recursive=True) if p.name() == {name!r}]
process.kill()
time.sleep(60)"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.stderr.strip().splitlines()[-1] == f"error: {told} ({name}) died; the same command continues"
    assert ended.returncode == 1


@pytest.mark.ray
def test_user_error_out_of_a_task_and_a_dataset(ray_cluster: None) -> None:
    import ray

    def refuse(batch: Any = None) -> None:
        raise InputError("poems.jsonl line 3: no field 'text'; try corpus.template={body}")

    with pytest.raises(Exception) as task:
        ray.get(ray.remote(refuse).remote())
    with pytest.raises(Exception) as data:
        ray.data.range(4).map_batches(refuse).materialize()
    for caught in (task.value, data.value):
        found = user_error(caught)
        assert type(found) is InputError
        assert str(found) == "poems.jsonl line 3: no field 'text'; try corpus.template={body}"


@pytest.mark.ray
@pytest.mark.slow
def test_user_error_out_of_a_train_worker(ray_cluster: None, tmp_path: Path) -> None:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    def loop() -> None:
        raise InputError("optim.lr=1e9 diverged; try optim.lr=1e-3")

    trainer = TorchTrainer(
        loop,
        scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(storage_path=str(tmp_path)),
    )
    with pytest.raises(Exception) as caught:
        trainer.fit()
    assert str(user_error(caught.value)) == "optim.lr=1e9 diverged; try optim.lr=1e-3"
    assert type(user_error(caught.value)) is InputError


@pytest.mark.ray
def test_work_on_a_worker_is_done_in_another_process_with_its_threads(ray_cluster: None) -> None:
    def where(word: str) -> tuple[str, int, str]:
        return word, os.getpid(), os.environ["OMP_NUM_THREADS"]

    word, process, threads = on_worker(Cluster(threads=3), where, "here", within=120)
    assert (word, threads) == ("here", "3") and process != os.getpid()


@pytest.mark.ray
def test_work_on_a_worker_has_a_deadline(ray_cluster: None) -> None:
    def forever() -> None:
        time.sleep(600)

    began = time.monotonic()
    with pytest.raises(InputError) as error:
        on_worker(Cluster(cpus_per_worker=0.25), forever, within=1.0)
    assert str(error.value).startswith(
        "forever: no answer from a worker within 1 seconds; it asks for {'num_cpus': 0.25, 'num_gpus': 0.0}, and the "
        "cluster has {'CPU': "
    )
    assert time.monotonic() - began < 30


@pytest.mark.ray
def test_what_a_worker_yields_comes_one_by_one(ray_cluster: None) -> None:
    def halves(number: int) -> Iterator[int]:
        while number:
            yield number
            number //= 2
            if number == 1:
                raise InputError("number=1: cannot be halved")

    found = []
    with pytest.raises(InputError) as error:
        for half in each_on_worker(Cluster(threads=1), halves, 10, within=120):
            found.append(half)
    assert found == [10, 5, 2] and str(user_error(error.value)) == "number=1: cannot be halved"


@pytest.mark.ray
def test_each_thing_that_a_worker_yields_has_a_deadline(ray_cluster: None) -> None:
    def slower() -> Iterator[int]:
        yield 1
        time.sleep(600)

    found = each_on_worker(Cluster(cpus_per_worker=0.25), slower, within=5.0)
    assert next(found) == 1
    with pytest.raises(InputError, match="^slower: no answer from a worker within 5 seconds; it asks for"):
        next(found)


@pytest.mark.ray
def test_a_worker_whose_work_nobody_waits_for_is_ended(ray_cluster: None, tmp_path: Path) -> None:
    def endless() -> Iterator[int]:
        while True:
            (tmp_path / "at work").touch()
            yield 1
            time.sleep(0.05)

    found = each_on_worker(Cluster(cpus_per_worker=0.25), endless, within=120)
    assert next(found) == 1
    found.close()  # type: ignore[attr-defined]
    until = time.monotonic() + 20
    while (tmp_path / "at work").exists() and time.monotonic() < until:
        (tmp_path / "at work").unlink()
        time.sleep(2)
    assert not (tmp_path / "at work").exists()


@pytest.mark.ray
def test_a_users_error_on_a_worker_stays_one(ray_cluster: None) -> None:
    def refuse() -> None:
        raise InputError("evaluate.files=[x]: no such file; try y")

    with pytest.raises(InputError) as error:
        on_worker(Cluster(), refuse, within=120)
    found = user_error(error.value)
    assert type(found) is InputError and str(found) == "evaluate.files=[x]: no such file; try y"


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a worker whose work nobody waits for is ended",
        "cluster/connect.py",
        "        ray.cancel(made, force=True)\n        raise\n",
        "        raise\n",
        "test_a_worker_whose_work_nobody_waits_for_is_ended",
    ),
    (
        "a full disk is told as itself",
        "conf/errors.py",
        '    errno.ENOSPC: "make room",\n',
        "",
        "test_a_disk_that_refuses_is_told_as_itself",
    ),
]

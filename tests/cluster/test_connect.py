"""The cluster starts, and a user's error comes out of it as it went in."""

from pathlib import Path
from typing import Any

import pytest

from cluster.connect import connect, user_error
from conf.schema import Cluster, InputError


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

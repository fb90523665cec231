"""Fixtures for every test: one Ray cluster a session, and one whole run."""

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.pop("RAY_ADDRESS", None)  # the tests never join somebody's cluster
os.environ.pop("CI", None)  # with it pytest looks for every difference, and of two files of weights that takes hours
os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # a loaded machine must not get workers killed under a test
KERNELS = "CONCLAVE_TEST_KERNELS"  # the folder that they are built into


def pytest_configure(config: pytest.Config) -> None:
    """The C kernels are built once a session, by whichever of its processes needs them first: tests/moe/conftest.py."""
    if KERNELS not in os.environ:
        os.environ[KERNELS] = tempfile.mkdtemp(prefix="conclave-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(KERNELS), ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with Ray come last: while it runs, its processes take a tenth of a small machine from the others."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)


@pytest.fixture(autouse=True)
def no_other_ray(request: pytest.FixtureRequest) -> Iterator[None]:
    """A call of Ray's starts a cluster where there is none: seconds, and nobody asked for it."""
    before = _has_ray()
    yield
    assert _has_ray() == before or request.node.get_closest_marker("ray"), "a test that is not marked ray started one"


def _has_ray() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A local Ray with its own session folder, shared by all tests of the session."""
    import ray

    from cluster.connect import connect
    from conf.knobs.running import Cluster

    folder = tempfile.mkdtemp(prefix="conclave-")
    connect(Cluster(temp_dir=folder, object_store_mb=256))
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def whole_run(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run of all stages at test size; nobody changes it."""
    from cluster.pipeline import main
    from conf.entry import compose

    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "whole"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the processes of one test session make one run
        if not (place / "done").exists():
            main(compose(["preset=test", f"run.dir={place}"]))
            (place / "done").touch()
    return place / "test"

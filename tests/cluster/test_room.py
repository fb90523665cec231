"""What the cluster has room for, and what is said where it has none."""

import time

import pytest

from cluster import room
from cluster.connect import on_worker
from conf.errors import InputError
from conf.knobs.running import Cluster


@pytest.mark.parametrize(
    ("asked", "nodes", "fit"),
    [
        ([{"CPU": 5.0}, {"CPU": 5.0}], [{"CPU": 8.0}], False),
        ([{"CPU": 5.0}, {"CPU": 5.0}], [{"CPU": 5.0}, {"CPU": 5.0}], True),
        ([{"CPU": 5.0}], [{"CPU": 4.0}, {"CPU": 4.0}], False),  # all of it from one node
        ([{"CPU": 0.1}] * 10, [{"CPU": 1.0}], True),  # ten times 0.1 is no more than 1
        ([{"CPU": 1.0}, {"CPU": 4.0}], [{"CPU": 1.0}, {"CPU": 4.0}], True),  # the larger one first
        ([{"CPU": 0.5, "GPU": 1.0}] * 3, [{"CPU": 8.0, "GPU": 2.0}], False),
        ([{"CPU": 1.0, "GPU": 1.0}, {"CPU": 2.0}], [{"CPU": 2.0, "GPU": 1.0}, {"CPU": 2.0}], True),
    ],
)
def test_what_fits(asked: list[room.Bundle], nodes: list[dict[str, float]], fit: bool) -> None:
    assert room.fits(asked, nodes) is fit


def test_what_is_asked_and_there_in_words() -> None:
    assert room.in_words([{"CPU": 5.0, "GPU": 1.0}, {"CPU": 5.0, "GPU": 1.0}, {"CPU": 0.25}]) == (
        "2 x CPU 5 GPU 1, 1 x CPU 0.25"
    )
    assert room.there([{"CPU": 8.0, "memory": 1e9}, {"CPU": 4.0, "GPU": 2.0}]) == "CPU 8 GPU 0, CPU 4 GPU 2 on 2 nodes"


def test_too_little_is_told_at_once_or_after_the_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    have = [[{"CPU": 8.0}]]
    monkeypatch.setattr(room, "nodes", lambda: have[-1])
    asked = [{"CPU": 5.0}] * 2
    with pytest.raises(InputError) as error:
        room.check_room(Cluster(), asked, "stage base", less="cluster.workers")
    assert str(error.value) == (
        "stage base asks for 2 x CPU 5, and the cluster has CPU 8 GPU 0; ask for less by cluster.workers, give it more "
        "nodes, or wait for them by cluster.wait=600"
    )

    class Wanted:  # an autoscaler that brings a node while it is waited for
        def wait(self, seconds: float) -> bool:
            time.sleep(0.1)
            have.append([{"CPU": 8.0}] * 2)
            return False

    wanted: list[object] = []

    def want(bundles: list[room.Bundle]) -> Wanted:
        wanted.append(bundles)
        return Wanted()

    monkeypatch.setattr(room, "placement_group", want)
    monkeypatch.setattr(room, "remove_placement_group", lambda group: wanted.append(type(group)))
    room.check_room(Cluster(wait=5.0), asked, "stage base", less="cluster.workers")
    assert wanted == [[{"CPU": 5.0}, {"CPU": 5.0}], Wanted]
    assert capsys.readouterr().err == (
        "stage base asks for 2 x CPU 5, and the cluster has CPU 8 GPU 0; waiting up to 5 seconds for more nodes\n"
    )


@pytest.mark.ray
def test_a_worker_that_no_node_has_room_for_is_not_waited_for(ray_cluster: None) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match=r"^forever asks for 1 x CPU 500, and the cluster has CPU \d+ GPU 0; ask for"):
        on_worker(Cluster(cpus_per_worker=500.0), forever, within=600.0)
    with pytest.raises(InputError, match=r"^forever asks for 1 x CPU 0.5 GPU 1, and the cluster has CPU"):
        on_worker(Cluster(gpus_per_worker=1.0, wait=1.0), forever, within=600.0)
    assert time.monotonic() - began < 30


def forever() -> None:
    time.sleep(600)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what is asked for must fit on single nodes, all of it at once",
        "cluster/room.py",
        "place.get(name, 0.0) - much",
        "place.get(name, 0.0)",
        "test_what_fits",
    ),
    (
        "nodes that come in time end the wait",
        "cluster/room.py",
        "if wanted.wait(1) or fits(asked, nodes()):",
        "if wanted.wait(1):",
        "test_too_little_is_told_at_once_or_after_the_wait",
    ),
]

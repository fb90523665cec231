"""Our own endpoint as a judge, and the same model in a folder: the same replies, and no guess from noise."""

from pathlib import Path
from typing import Any

import pytest

from conf.knobs.alignment import Compare, Judge
from conf.knobs.running import Cluster, Run
from conf.schema import Config
from rlhf.judges import ai, endpoint, local
from rlhf.judges.replies import Question, Reply
from tests.rlhf.judges.scripted import asked
from tests.serving.conftest import Tiny

QUESTIONS = [Question(prompt, 0.0, 1, 24) for prompt in ("A?", "床前明月光", "B or A?\nA")]


def config(place: Path, **judge: Any) -> Config:
    knobs: dict[str, Any] = {"max_new_tokens": 24, "retries": 0, "concurrency": 2, "max_missing": 1.0}
    return Config(
        run=Run(dir=str(place), name="r"),
        judge=Judge(**knobs | judge),
        cluster=Cluster(threads=1, cpus_per_worker=0.2),
    )


@pytest.mark.ray
def test_a_model_replies_the_same_behind_our_endpoint_and_in_its_folder(
    served_address: str, tiny: Tiny, tmp_path: Path
) -> None:
    served = config(tmp_path, url=f"{served_address}/v1", model="tiny")
    ours = dict(endpoint.ask(QUESTIONS, served.judge, seed=1))
    assert len({reply.text for reply in ours.values() if isinstance(reply, Reply)}) == 3
    in_folder = list(local.ask(QUESTIONS, config(tmp_path, folder=str(tiny.folder))))
    assert [question for question, _ in in_folder] == QUESTIONS and dict(in_folder) == ours


@pytest.mark.ray
@pytest.mark.parametrize("where", ["endpoint", "folder"])
def test_noise_ranks_nothing(served_address: str, tiny: Tiny, tmp_path: Path, where: str) -> None:
    """Two of the questions are also longer than the model's context."""
    judge = {"folder": str(tiny.folder)} if where == "folder" else {"url": f"{served_address}/v1", "model": "tiny"}
    cfg = config(tmp_path, compare=Compare.pairwise, **judge)
    queries = [asked("月", "光", query="Write."), asked("月" * 2000, "光", query="Write.")]
    made, metrics = ai.opinions(queries, ("clear",), cfg)
    assert [one.scores for one in made] == [{}, {}]
    assert made[0].missing == {"clear": "none of 1 replies had the form that was asked for"}
    assert "context" in made[1].missing["clear"]
    assert metrics == {"ai/questions": 4, "ai/unparsable": 2, "ai/contradictions": 0, "ai/missing": 2}

"""Grades worked by hand: the loss of an answer alone, and where it stands among those of its task."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from conf.knobs.model import Model
from conf.knobs.running import Cluster
from conf.schema import Config
from moe.decoder import Decoder, new_decoder
from moe.formats import hugging_face
from moe.tasks.task import Sample
from moe.text.defaults import Defaults
from trainers.rows.difficulty import GRADES, SUMMARY, answer_losses, grade, ranks, read_ranks

CFG = Model(hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=4, expert_size=32, context=32)


@pytest.fixture(scope="module")
def model() -> Decoder:
    made = new_decoder(CFG, 128, seed=3).eval()
    made.lm_head.weight.data *= 20  # answers far apart
    return made


@pytest.fixture
def base(model: Decoder, tmp_path: Path) -> Path:
    hugging_face.save(model, tmp_path / "base", Defaults({}, (), None))
    return tmp_path / "base"


def conversations(count: int) -> list[tuple[list[int], list[int]]]:
    """Ids of two turns and their mask: the answers carry loss, the questions between them do not."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(count):
        lengths = generator.integers(2, 7, size=4)
        mask = np.repeat([0, 1, 0, 1], lengths).tolist()
        made.append((generator.integers(10, 128, size=len(mask)).tolist(), mask))
    return made


def test_a_grade_is_the_mean_loss_of_the_answers_tokens(model: Decoder, base: Path) -> None:
    pieces = conversations(40)
    losses = np.concatenate(list(answer_losses(base, [pieces[:30], pieces[30:]], Cluster())))
    for (ids, mask), loss in zip(pieces, losses, strict=True):
        with torch.no_grad():
            logprobs = model.logits(model(torch.tensor([ids]), torch.ones(1, len(ids)).long()).states).log_softmax(-1)
        wanted = [-logprobs[t - 1, ids[t]].item() for t in range(1, len(ids)) if mask[t]]
        assert loss == pytest.approx(np.mean(wanted), abs=1e-3)
    assert losses.std() > 0.3


def sample(number: int, task: str, answer: str) -> Sample:
    messages = [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": answer}]
    return Sample(id=f"s{number}", task=task, messages=messages)


def test_ranks_are_within_the_task() -> None:
    samples = [sample(n, "poem" if n % 2 else "name", f"answer {n}") for n in range(7)]
    losses = np.array([0.3, 5.0, 0.1, 4.0, 0.2, 90.0, 0.2])  # every poem is harder than every name
    assert ranks(samples, losses).tolist() == [7 / 8, 1 / 2, 1 / 8, 1 / 6, 3 / 8, 5 / 6, 5 / 8]


def test_an_unlikely_label_is_not_a_hard_sample() -> None:
    samples = [sample(n, "form", answer) for n, answer in enumerate(("rare", "rare", "often", "often"))]
    assert ranks(samples, np.array([8.0, 9.0, 1.0, 2.0])).tolist() == [3 / 8, 7 / 8, 1 / 8, 5 / 8]


@pytest.mark.ray
def test_what_is_written(
    ray_cluster: None, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainers.rows.difficulty._TOGETHER", 5)
    pieces = conversations(14)
    samples = [sample(n, "ab"[n % 2], f"answer {n}") for n in range(14)]
    grade(tmp_path, base, samples, pieces, Config(cluster=Cluster(threads=1, cpus_per_worker=0.2)))
    assert "difficulty  14/14  100%" in capfd.readouterr().out
    (losses,) = answer_losses(base, [pieces], Cluster())
    lines = [json.loads(line) for line in (tmp_path / GRADES).read_text("utf-8").splitlines()]
    assert [(made["id"], made["loss"]) for made in lines] == [(f"s{n}", losses[n]) for n in range(14)]
    assert read_ranks(tmp_path) == ranks(samples, losses).tolist()
    told = json.loads((tmp_path / SUMMARY).read_text("utf-8"))["b"]
    own = losses[1::2]
    assert (told["samples"], told["mean"], told["spread"]) == (7, pytest.approx(own.mean()), pytest.approx(own.std()))
    order = np.argsort(own)
    assert [made["id"] for made in told["easiest"]] == [f"s{2 * n + 1}" for n in order[:5]]
    assert told["hardest"][0] == {"id": f"s{2 * order[-1] + 1}", "loss": own.max()}


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "easy comes before hard",
        "trainers/rows/difficulty.py",
        "np.lexsort((*reversed(keys), codes))",
        "np.lexsort((*(-key for key in reversed(keys)), codes))",
        None,
    ),
    (
        "difficulty is relative to the task",
        "trainers/rows/difficulty.py",
        "tasks = [sample.task for sample in samples]",
        'tasks = ["" for sample in samples]',
        None,
    ),
    (
        "a grade is of the answer alone",
        "trainers/rows/difficulty.py",
        "-(np.array(scored.logprobs) * learnt).sum() / learnt.sum()",
        "-np.array(scored.logprobs).mean()",
        None,
    ),
]

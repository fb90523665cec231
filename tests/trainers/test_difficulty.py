"""Grades worked by hand: the loss of an answer alone, and where it stands among those of its task."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conf.schema import Model
from moe.decoder import Decoder, new_decoder
from trainers.difficulty import GRADES, SUMMARY, answer_losses, grade, ranks, read_ranks

CFG = Model(hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=4, expert_size=32, context=32)


@pytest.fixture(scope="module")
def model() -> Decoder:
    made = new_decoder(CFG, 128, seed=3).eval()
    made.lm_head.weight.data *= 20  # answers far apart
    return made


def conversations(count: int) -> list[tuple[list[int], list[int]]]:
    """Ids of two turns and their mask: the answers carry loss, the questions between them do not."""
    generator = np.random.default_rng(0)
    made = []
    for _ in range(count):
        lengths = generator.integers(2, 7, size=4)
        mask = np.repeat([0, 1, 0, 1], lengths).tolist()
        made.append((generator.integers(10, 128, size=len(mask)).tolist(), mask))
    return made


def test_a_grade_is_the_mean_loss_of_the_answers_tokens(model: Decoder) -> None:
    pieces = conversations(40)
    losses = answer_losses(model, pieces)
    for (ids, mask), loss in zip(pieces, losses, strict=True):
        with torch.no_grad():
            logprobs = model.logits(model(torch.tensor([ids]), torch.ones(1, len(ids)).long()).states).log_softmax(-1)
        wanted = [-logprobs[t - 1, ids[t]].item() for t in range(1, len(ids)) if mask[t]]
        assert loss == pytest.approx(np.mean(wanted), abs=1e-3)
    assert losses.std() > 0.3


def sample(number: int, task: str, answer: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": answer}]
    return {"id": f"s{number}", "task": task, "messages": messages}


def test_ranks_are_within_the_task() -> None:
    samples = [sample(n, "poem" if n % 2 else "name", f"answer {n}") for n in range(7)]
    losses = np.array([0.3, 5.0, 0.1, 4.0, 0.2, 90.0, 0.2])  # every poem is harder than every name
    assert ranks(samples, losses).tolist() == [7 / 8, 1 / 2, 1 / 8, 1 / 6, 3 / 8, 5 / 6, 5 / 8]


def test_an_unlikely_label_is_not_a_hard_sample() -> None:
    samples = [sample(n, "form", answer) for n, answer in enumerate(("rare", "rare", "often", "often"))]
    assert ranks(samples, np.array([8.0, 9.0, 1.0, 2.0])).tolist() == [3 / 8, 7 / 8, 1 / 8, 5 / 8]


def test_what_is_written(model: Decoder, tmp_path: Path) -> None:
    pieces = conversations(14)
    samples = [sample(n, "ab"[n % 2], f"answer {n}") for n in range(14)]
    grade(tmp_path, model, samples, pieces)
    losses = answer_losses(model, pieces)
    lines = [json.loads(line) for line in (tmp_path / GRADES).read_text("utf-8").splitlines()]
    assert [(made["id"], made["loss"]) for made in lines] == [(f"s{n}", losses[n]) for n in range(14)]
    assert read_ranks(tmp_path) == ranks(samples, losses).tolist()
    told = json.loads((tmp_path / SUMMARY).read_text("utf-8"))["b"]
    own = losses[1::2]
    assert (told["samples"], told["mean"], told["spread"]) == (7, pytest.approx(own.mean()), pytest.approx(own.std()))
    order = np.argsort(own)
    assert [made["id"] for made in told["easiest"]] == [f"s{2 * n + 1}" for n in order[:5]]
    assert told["hardest"][0] == {"id": f"s{2 * order[-1] + 1}", "loss": own.max()}

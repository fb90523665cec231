"""An iteration that was written is read again to the bit, takes bounded room, and shows why its answers earned."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conf.errors import InputError
from conf.knobs.reinforcement import Actors, Advantages, KlIn
from moe.tasks.task import Sample, Verdict
from moe.text.tokenizer import Tokenizer
from rlhf.inspect import GREEN, RED, lines
from rlhf.messages import Assessed, Batch, Key, Response, Scored, pad
from rlhf.record import Answered, Recorder, read, recorded
from tests.rlhf.tiny import CFG

ABOUT = {"seed": 3, "precision": "fp32", "threads": 1, "policy": "chat", "critic": "reward"}
KEPT = [0, 2, 3]
TEXTS = ["春 ab", "x", "好诗", "no"]


def answered(tokenizer: Tokenizer, *, routed: bool = False) -> Answered:
    asked = [
        Sample(id=f"q{n // 2}", task="say", messages=[{"role": "user", "content": f"? {n // 2}"}]) for n in range(4)
    ]
    responses = []
    for n, text in enumerate(TEXTS):
        ids = [*tokenizer.encode(text), tokenizer.im_end]
        logprobs = (-torch.rand(len(ids), generator=torch.Generator().manual_seed(n))).tolist()
        routes = torch.arange((1 + n + len(ids)) * 6, dtype=torch.int16).view(-1, 3, 2) if routed else None
        responses.append(Response(Key(6, f"q{n // 2}", n % 2, 6), [5] * (2 + n), ids, logprobs, n != 1, routes))
    verdicts = [Verdict({"clear": 0.5}, n / 4, measures={"letters": 1.0}, reasons=("too short",)[:n]) for n in range(4)]
    return Answered(asked, responses, verdicts, TEXTS)


def tensors(batch: Batch) -> list[Tensor]:
    dice = torch.Generator().manual_seed(4)
    return [torch.randn(batch.mask.shape, generator=dice) * batch.mask for _ in range(4)]


def write(folder: Path, tokenizer: Tokenizer, step: int = 7, *, critic: bool = True, **knobs: Any) -> Any:
    every = answered(tokenizer, routed=not critic)
    batch = pad([every.responses[place] for place in KEPT])
    reference, values, advantages, returns = tensors(batch)
    cfg = replace(CFG, advantages=Advantages.gae if critic else Advantages.group, kl_in=KlIn.loss, **knobs)
    terms = {"rules": torch.tensor([0.0, 0.5, 0.75]), "model": torch.tensor([1.0, -1.0, 2.0])}
    scored = Scored(terms["model"], torch.zeros(3))
    said = Assessed(reference, scored, values if critic else None)
    recorder = Recorder(folder, cfg, ABOUT)
    recorder.write(step, every, KEPT, batch, said, advantages, returns if critic else None, terms)
    return cfg, batch, reference, values, advantages, returns


@pytest.mark.parametrize("critic", [True, False])
def test_what_was_learnt_from_is_read_again_to_the_bit(chat: Path, tmp_path: Path, critic: bool) -> None:
    cfg, batch, reference, values, advantages, returns = write(tmp_path, Tokenizer.load(chat), critic=critic)
    found = read(tmp_path, 7)
    lesson = found.lesson
    assert (
        found.ppo == replace(cfg, actors=Actors())
        and found.about["step"] == 7
        and {**found.about, **ABOUT} == found.about
    )
    assert lesson.batch.version == batch.version == 6
    for name in ("tokens", "segments", "mask", "logprobs"):
        assert torch.equal(getattr(lesson.batch, name), getattr(batch, name))
    if critic:
        assert lesson.batch.routes is batch.routes is None
    else:
        assert lesson.batch.routes is not None and batch.routes is not None
        assert torch.equal(lesson.batch.routes, batch.routes) and lesson.batch.routes.shape[2:] == (3, 2)
    assert torch.equal(lesson.reference, reference) and torch.equal(lesson.advantages, advantages)
    if critic:
        assert lesson.values is not None and lesson.returns is not None
        assert torch.equal(lesson.values, values) and torch.equal(lesson.returns, returns)
    else:
        assert lesson.values is lesson.returns is None


def test_every_answer_is_there_with_what_was_said_of_it(chat: Path, tmp_path: Path) -> None:
    write(tmp_path, Tokenizer.load(chat))
    rows = read(tmp_path, 0).rows
    assert [(row["query"], row["sample"], row["version"], row["text"]) for row in rows] == [
        ("q0", 0, 6, "春 ab"),
        ("q0", 1, 6, "x"),
        ("q1", 0, 6, "好诗"),
        ("q1", 1, 6, "no"),
    ]
    assert [row["learnt"] for row in rows] == [True, False, True, True]
    assert rows[2]["terms"] == {"rules": 0.5, "model": -1.0} and rows[1]["terms"] is rows[1]["advantages"] is None
    assert [row["reasons"] for row in rows] == [[], ["too short"], ["too short"], ["too short"]]
    assert rows[3]["rules"] == 0.75 and rows[3]["scores"] == {"clear": 0.5} and not rows[1]["finished"]


def test_old_iterations_make_room(chat: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(chat)
    for step in range(1, 6):
        write(tmp_path, tokenizer, step, keep_samples=3)
    assert [step for step, _ in recorded(tmp_path)] == [3, 4, 5]
    size = (tmp_path / "step-00000005.parquet").stat().st_size
    write(tmp_path, tokenizer, 6, keep_samples=9, keep_samples_mb=2.5 * size / 1e6)
    assert [step for step, _ in recorded(tmp_path)] == [5, 6]
    write(tmp_path, tokenizer, 7, keep_samples_mb=1e-9)  # the newest in any case
    assert [step for step, _ in recorded(tmp_path)] == [7]
    write(tmp_path, tokenizer, 8, keep_samples=0)
    assert [path.name for path in tmp_path.iterdir() if path != chat] == ["step-00000007.parquet"]


def test_what_is_not_there_or_broken_is_named(chat: Path, tmp_path: Path) -> None:
    folder = tmp_path / "iterations"
    with pytest.raises(InputError, match=r"iterations: no iteration was kept; ppo.keep_samples says how many are"):
        read(folder, 0)
    for step in (1, 2, 3, 7):
        write(folder, Tokenizer.load(chat), step)
    with pytest.raises(InputError, match=r"iterations has no step 5; there are 1-3, 7$"):
        read(folder, 5)
    path = folder / "step-00000007.parquet"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"step-00000007.parquet: not an iteration of the stage rl \("):
        read(folder, 0)


def test_answers_are_shown_in_the_colours_of_their_advantages(chat: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(chat)
    advantages = write(tmp_path, tokenizer)[4]
    shown = lines(read(tmp_path, 7), tokenizer, queries=9)
    assert shown[0].plain == "step 7: 4 answers to 2 queries by version 6, 3 of them learnt from"
    told = [line.plain for line in shown]
    assert told[2:5] == ["q0 (say): ? 0", told[3], "    春 ab"] and "model 1  kl " in told[3]
    assert told[5].startswith("  #1  rules 0.25  2 tokens  cut off  not learnt from") and told[6] == "    x"
    assert told[7] == "    - too short" and len(told) == 16
    first = advantages[0][advantages[0] != 0].tolist()
    # 春 is three tokens of a byte each: it has the colour of the last of them
    ids = read(tmp_path, 7).rows[0]["answer"]
    complete = next(place for place, end in enumerate(tokenizer.written(ids)) if end == 1)
    span = next(span for span in shown[4].spans if shown[4].plain[span.start : span.end] == "春")
    largest = float(advantages.abs().max())
    assert str(span.style).removeprefix("on ") in (GREEN if first[complete] > 0 else RED)
    assert abs(first[complete]) / largest > 0.1 and not shown[6].spans  # not learnt from: no colour
    assert [line.plain for line in lines(read(tmp_path, 7), tokenizer, queries=1, only="q1")][2] == "q1 (say): ? 1"
    assert lines(read(tmp_path, 7), tokenizer, queries=1)[-1].plain == "1 more queries: inspect.queries=2"
    with pytest.raises(InputError, match=r"^inspect.query=q7: not in this iteration; it has q0, q1"):
        lines(read(tmp_path, 7), tokenizer, queries=1, only="q7")


PLANTED = [  # promise, file, right code, bug, test
    (
        "what was learnt from is kept to the bit",
        "rlhf/record.py",
        '("advantages", _FLOATS)',
        '("advantages", pa.list_(pa.decimal128(9, 4)))',
        "test_what_was_learnt_from_is_read_again_to_the_bit",
    ),
    (
        "kept iterations take bounded room",
        "rlhf/record.py",
        "if place and (place >= self._cfg.keep_samples or left < 0):",
        "if place and left < 0:",
        "test_old_iterations_make_room",
    ),
    (
        "green is what there shall be more of",
        "rlhf/inspect.py",
        "(GREEN if advantage > 0 else RED)",
        "(RED if advantage > 0 else GREEN)",
        "test_answers_are_shown_in_the_colours_of_their_advantages",
    ),
]

"""What SFT trains on, and when: masks over several turns, the stages of a curriculum, replay, the tasks' own sets."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from conf.errors import InputError
from conf.knobs.model import Model
from conf.knobs.running import Cluster
from conf.knobs.text import Tokenizer as Settings
from conf.knobs.training import Curriculum, Sft
from conf.schema import Config
from moe.decoder import new_decoder
from moe.formats import hugging_face
from moe.tasks.task import Sample
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from trainers.closing import forgetting
from trainers.files.samples import read_samples
from trainers.loop.tuning import remedy
from trainers.rows.difficulty import GRADES
from trainers.rows.mixture import Course, Phase
from trainers.rows.packing import pack
from trainers.rows.rows import Rows, write_rows
from trainers.sft import buckets, easy_to_hard, graded, shares, weigh

CFG = Model(hidden_size=32, layers=1, heads=2, kv_heads=1, head_dim=16, experts=2, top_k=1, expert_size=32, context=64)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["user assistant system\n abcdefgh"] * 4, Settings(vocab_size=450))


def sample(number: int, task: str = "say", answer: str = "a") -> Sample:
    messages = [{"role": "user", "content": "b"}, {"role": "assistant", "content": answer}]
    return Sample(id=f"{task}-{number}", task=task, messages=messages)


def sets(place: Path, counts: list[int]) -> list[Path]:
    """Sets of so many rows each."""
    for number, count in enumerate(counts):
        rows = pack([([1] * 8, [1] * 8)] * count, 8)
        write_rows(place / str(number), rows, row_length=8, rows_per_shard=64, meta={"tokenizer": "none"})
    return [place / str(number) for number in range(len(counts))]


def came(course: Course, start: int, stop: int) -> list[float]:
    """The share of each set at the positions from `start` to `stop`."""
    numbers = course.places(0, start, stop)[:, 0]
    return (np.bincount(numbers, minlength=len(course.sets)) / len(numbers)).tolist()


def test_weights_are_how_often_a_sample_comes() -> None:
    samples = [sample(n, task) for n in range(4) for task in ("twice", "half", "never", "once")]
    chosen = weigh(samples, Sft(weights={"twice": 2.0, "half": 0.5, "never": 0.0}))
    assert Counter(s.task for s in chosen) == {"twice": 8, "half": 2, "once": 4}
    with pytest.raises(InputError, match=r"^sft\.weights\.nice: no sample of this task; there are half, never, once"):
        weigh(samples, Sft(weights={"nice": 1.0}))


def test_without_curriculum_and_replay_the_rows_are_one_shuffled_set(tmp_path: Path) -> None:
    (only,) = sets(tmp_path, [20])
    assert easy_to_hard([only], tmp_path / "no text", Sft(steps=10, batch_rows=4)) == Course.of(only)
    assert buckets([sample(n) for n in range(3)], {}, 1) == [[sample(0), sample(1), sample(2)]]


@pytest.mark.ray
def test_buckets_hold_each_tasks_easy_samples_first(ray_cluster: None, tokenizer: Tokenizer, tmp_path: Path) -> None:
    base = tmp_path / "base"
    hugging_face.save(new_decoder(CFG, tokenizer.padded_size, seed=0), base, Defaults.of(tokenizer, chat=True))
    samples = [sample(n, "ab"[n % 2], answer="abcdefgh"[n % 7] * (1 + n // 2)) for n in range(12)]
    cfg = Config(
        sft=Sft(row_length=64, curriculum=Curriculum(stages=3)), cluster=Cluster(threads=1, cpus_per_worker=0.2)
    )
    found = buckets(samples, graded(samples, tmp_path, base, tokenizer, cfg), 3)
    losses = {made["id"]: made["loss"] for made in map(json.loads, lines(tmp_path / GRADES))}
    for task in "ab":
        ordered = sorted((s.id for s in samples if s.task == task), key=lambda name: losses[name])
        assert [{s.id for s in bucket if s.task == task} for bucket in found] == [
            set(ordered[:2]),
            set(ordered[2:4]),
            set(ordered[4:]),
        ]
    # What an earlier attempt graded is taken as it is.
    (tmp_path / GRADES).write_text("".join(f'{{"rank": {(n + 0.5) / 12}}}\n' for n in range(12)))
    again = buckets(samples, graded(samples, tmp_path, base, tokenizer, cfg), 3)
    assert [[s.id for s in bucket] for bucket in again] == [[s.id for s in samples[n : n + 4]] for n in (0, 4, 8)]


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def test_stages_go_from_easy_to_hard_and_revisit(tmp_path: Path) -> None:
    cfg = Sft(steps=700, batch_rows=4, row_length=8, curriculum=Curriculum(stages=3, revisit=0.5, pace=2.0))
    course = easy_to_hard(sets(tmp_path, [30, 30, 30]), tmp_path, cfg)
    assert [phase.until for phase in course.phases] == [400, 1200, 0]  # of 2800 rows: 1, 2 and 4 parts of 7
    assert [phase.shares for phase in course.phases] == [(1.0, 0.0, 0.0), (0.5, 0.5, 0.0), (0.25, 0.25, 0.5)]
    assert came(course, 0, 400) == [1.0, 0.0, 0.0]
    assert came(course, 400, 1200) == pytest.approx([0.5, 0.5, 0.0], abs=0.02)
    assert came(course, 1200, 2800) == pytest.approx([0.25, 0.25, 0.5], abs=0.02)


def test_replay_takes_its_share_of_every_stage(tmp_path: Path) -> None:
    *tasks, text = sets(tmp_path, [30, 30, 50])
    cfg = Sft(
        steps=512, batch_rows=4, row_length=8, replay=0.25, curriculum=Curriculum(stages=2, revisit=0.2, pace=1.0)
    )
    course = easy_to_hard(tasks, text, cfg)
    assert course.sets == (*tasks, text)
    assert came(course, 0, 1024) == pytest.approx([0.75, 0.0, 0.25], abs=0.01)
    assert came(course, 1024, 2048) == pytest.approx([0.15, 0.6, 0.25], abs=0.01)
    alone = easy_to_hard(tasks[:1], text, Sft(steps=8, batch_rows=4, row_length=8, replay=0.25))
    assert alone.phases == (Phase(0, (0.75, 0.25)),)


def test_shares_of_a_stage_sum_to_one() -> None:
    cfg = Sft(replay=0.1, curriculum=Curriculum(stages=4, revisit=0.3))
    assert [sum(shares(stage, cfg)) for stage in range(4)] == pytest.approx([1.0] * 4)
    assert shares(3, cfg) == pytest.approx((0.09, 0.09, 0.09, 0.63, 0.1))


@pytest.mark.parametrize("pace", [0.1, 10.0])
def test_a_stage_without_rows_is_refused(tmp_path: Path, pace: float) -> None:
    cfg = Sft(steps=10, batch_rows=4, row_length=8, curriculum=Curriculum(stages=4, pace=pace))
    words = rf"^sft\.curriculum\.stages=4 with sft\.curriculum\.pace={pace}: the 40 rows of the run leave a stage"
    with pytest.raises(InputError, match=words):
        easy_to_hard(sets(tmp_path, [9] * 4), tmp_path, cfg)
    with pytest.raises(InputError, match=r"^sft\.curriculum\.pace=0\.05 must lie in \[0\.1, 10\]"):
        Curriculum(pace=0.05)


def test_a_stage_without_samples_is_refused() -> None:
    with pytest.raises(InputError, match=r"^sft\.curriculum\.stages=3: no sample for stage 1 of the 2 that there are"):
        buckets([sample(0), sample(1)], {"say-0": 0.4, "say-1": 0.9}, 3)


@pytest.mark.parametrize("task", ["../up", "a/b", ".hidden", "n" * 81, "nul\\u0000", ""])
def test_a_task_that_could_be_no_folder_is_refused(tmp_path: Path, task: str) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(f'{{"task": "{task}", "instruction": "a", "output": "b"}}\n')
    with pytest.raises(InputError, match=r"own\.jsonl:1: task='.*' must be a name, of a folder too"):
        read_samples(path)


def test_forgetting_is_the_ratio_of_perplexities(tokenizer: Tokenizer, tmp_path: Path) -> None:
    knows, forgot = (new_decoder(CFG, tokenizer.padded_size, seed=seed).eval() for seed in (0, 1))
    forgot.lm_head.weight.data *= 300
    ids = tokenizer.encode("abcdefgh" * 3)
    text = [(ids, [1] * len(ids))] * 3
    meta = {"tokenizer": tokenizer.digest}
    write_rows(tmp_path / "val", pack(text, 8), row_length=8, rows_per_shard=64, meta=meta)
    told = forgetting(knows, forgot, tokenizer, Rows(tmp_path / "val"), limit=10)
    assert told["base_perplexity_before"] == pytest.approx(tokenizer.padded_size, rel=0.1)
    assert told["forgetting"] == told["base_perplexity_after"] / told["base_perplexity_before"] > 1.5
    assert remedy({"base_perplexity_before": 68.123, "base_perplexity_after": 190.06}, "chat", Sft(replay=0.1)) == (
        "chat: the perplexity of the base model's held-out text went from 68.12 to 190.1; "
        "sft.replay=0.2 would keep more of it"
    )
    write_rows(tmp_path / "none", [], row_length=8, rows_per_shard=64, meta=meta)
    assert forgetting(knows, forgot, tokenizer, Rows(tmp_path / "none"), limit=10) == {}


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "easy and hard are not swapped",
        "trainers/sft.py",
        "int(ranks[sample.id] * stages)",
        "stages - 1 - int(ranks[sample.id] * stages)",
        None,
    ),
    ("later stages revisit", "trainers/sft.py", "old = cfg.curriculum.revisit if stage else 0.0", "old = 0.0", None),
    ("replay has its share", "trainers/sft.py", "share * (1.0 - cfg.replay) for", "share for", None),
    (
        "forgetting is after over before",
        "trainers/closing.py",
        '"forgetting": new / old',
        '"forgetting": old / new',
        None,
    ),
]

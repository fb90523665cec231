"""What is known of a parent before it is trained, and told when it forgets."""

from collections.abc import Callable
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.tracking.tracker import read_metrics
from conf.entry import compose
from conf.errors import InputError
from conf.knobs.model import Parent
from conf.knobs.text import Tokens
from conf.knobs.training import Optim, Pretrain
from conf.schema import Config
from moe.decoder import Decoder
from moe.formats import checkpoints
from moe.text.tokenizer import Tokenizer
from tests.moe.formats.foreign_models import foreign
from tests.trainers.training import plan_for, run
from trainers import opening, pretrain
from trainers.closing import general_loss, kept
from trainers.loop.retention import Retention
from trainers.pretrain import first_weights
from trainers.rows.rows import Rows

TEXTS = {"short": "the cat sat on the mat", "long": "a dog ran over the hill and did not stop for a long while"}


def config(folder: Path, **knobs: Any) -> Config:
    files = []
    for name, text in TEXTS.items():
        (folder / f"{name}.txt").write_text(text)
        files.append(str(folder / f"{name}.txt"))
    parent = Parent(model=str(foreign("llama", folder / "parent")), experts=4, top_k=2)
    return Config(parent=parent, tokens=Tokens(row_length=32), pretrain=Pretrain(retention=files), **knobs)


def at_once(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Work that would be a worker's is done here; whether each worker's process was to end."""
    asked: list[bool] = []

    def here(_: Any, work: Callable[..., Any], *arguments: Any, within: float, ends: bool = False) -> Any:
        asked.append(ends)
        return work(*arguments)

    monkeypatch.setattr(opening, "on_worker", here)
    return asked


def test_a_parent_is_measured_before_step_1_by_a_process_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, asked = config(tmp_path), at_once(monkeypatch)
    folder, tokenizer = tmp_path / "base", Tokenizer.load(tmp_path / "parent")
    folder.mkdir()

    def start() -> Decoder:
        return first_weights(cfg, tokenizer)

    found = opening.retention(cfg, "base", folder, tmp_path / "parent", start)
    general = general_loss(start().eval(), tokenizer, found.rows)
    # by hand: the mean over both texts' targets, and nats per byte of what these stand for
    targets = {name: Rows(path).about["targets"] for name, path in found.rows.items()}
    nats = {name: general[f"{name}/loss"] * targets[name] for name in TEXTS}
    assert general["loss"] == pytest.approx(sum(nats.values()) / sum(targets.values()))
    text_only = nats["long"] * (1 - 1 / targets["long"])  # about: the end of a document stands for no bytes
    assert general["long/per_byte"] == pytest.approx(text_only / len(TEXTS["long"].encode()), rel=0.1)
    assert found.before == {name: pytest.approx(general[f"{name}/loss"]) for name in TEXTS}
    said = capsys.readouterr().out.splitlines()
    assert "the logits differ from the parent's by at most" in said[0]
    assert said[1].startswith(
        f"base: loss on general text, nats per token (per byte): short {general['short/loss']:.3f}"
    )
    assert said[1].endswith(" before step 1; it is trained by adamw with optim.lr=5e-05")
    assert opening.retention(cfg, "base", folder, tmp_path / "parent", start) == found  # an attempt that goes on
    assert asked == [True]


def test_first_weights_that_are_not_the_parent_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(tmp_path)
    assert opening.distance(cfg) < 1e-4
    right = checkpoints.new_from

    def other(parent: Parent, seed: int) -> Decoder:
        model = right(parent, seed)
        with torch.no_grad():
            model.lm_head.weight.mul_(1.01)
        return model

    monkeypatch.setattr(checkpoints, "new_from", other)
    with pytest.raises(InputError, match="the logits differ by"):
        opening.distance(cfg)


def test_what_cannot_be_is_refused_before_a_worker_is_asked(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.tokens.row_length = 100
    with pytest.raises(InputError, match="tokens.row_length=100 must be at most the 64 positions of parent.model="):
        pretrain.check(cfg)
    cfg = config(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "long.txt").write_text("x")
    cfg.pretrain.retention[:] = [str(tmp_path / "long.txt"), str(tmp_path / "sub" / "long.txt")]
    with pytest.raises(InputError, match=r"pretrain.retention: two files are called long"):
        opening.general_rows(cfg, tmp_path, Tokenizer.load(tmp_path / "parent"))
    with pytest.raises(InputError, match=r"pretrain.retention=\[\] names no file"):
        compose(["pretrain.retention=[]"])


def test_a_learning_rate_that_ruins_a_parent_is_told(tmp_path: Path) -> None:
    assert opening.gently(Config(parent=Parent(model="x"))) == "it is trained by adamw with optim.lr=5e-05"
    loud = Config(parent=Parent(model="x"), optim=Optim())
    assert opening.gently(loud) == (
        "it is trained by muon with optim.lr=0.002, which is likely to make it forget: 5e-05 suits a trained parent"
    )


def test_what_was_kept_is_in_the_metrics() -> None:
    before = {"loss": 2.0, "per_byte": 0.5, "en/loss": 1.0, "en/per_byte": 0.25}
    after = {"loss": 2.0 + log(1.5), "per_byte": 0.75, "en/loss": 1.5, "en/per_byte": 0.3}
    assert kept(before, after) == {
        "retention/before": 2.0,
        "retention/before_per_byte": 0.5,
        "retention/en/before": 1.0,
        "retention/en/before_per_byte": 0.25,
        "retention/after": after["loss"],
        "retention/after_per_byte": 0.75,
        "retention/en/after": 1.5,
        "retention/en/after_per_byte": 0.3,
        "forgetting": pytest.approx(1.5),
    }


def test_a_rise_while_training_is_told_with_its_remedies(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, fit={"steps": 4, "eval_every": 2})
    rows = {"numbers": tmp_path / "rows"}
    for folder, before, told in (("calm", 9.0, 0), ("ill", 0.1, 2)):
        watched = Retention(rows, {"numbers": before}, 0.3)
        there = replace(plan, folder=tmp_path / folder, retention=watched)
        there.folder.mkdir()
        run(there)
        lines = [line for line in read_metrics(there.folder) if "retention/loss" in line]
        assert [line["step"] for line in lines] == [2, 4]
        assert lines[-1]["retention/numbers/loss"] == lines[-1]["retention/loss"] == lines[-1]["val/loss"]
        assert sum("incident" in line for line in lines) == told
    value = lines[-1]["retention/loss"]
    assert lines[-1]["incident"] == (
        f"the parent is forgetting: its loss on the general text numbers rose from 0.100 to {value:.3f} nats per "
        "token; lower optim.lr, or mix in older text by pretrain.replay"
    )


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a parent that forgets is told of",
        "trainers/loop/retention.py",
        "if rises[name] <= self.rise:",
        "if rises[name] <= 100 * self.rise:",
        "test_a_rise_while_training_is_told_with_its_remedies",
    ),
    (
        "no second copy of a parent stays in memory",
        "trainers/opening.py",
        "within=cfg.evaluate.timeout, ends=True",
        "within=cfg.evaluate.timeout",
        None,
    ),
    (
        "first weights that are not the parent are refused",
        "trainers/opening.py",
        "certificate.check(found, str(source))",
        "pass",
        None,
    ),
]

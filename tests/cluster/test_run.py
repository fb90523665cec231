"""Stages: finished, skipped, refused, set aside, locked."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.run import Stage, newest_model, open_stage, read_manifest
from conf.schema import Config, InputError, Run


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    return Config(run=Run(dir=str(tmp_path), name="r", seed=7))


def make(cfg: Config, name: str = "corpus", reads: tuple[str, ...] = (), **settings: Any) -> Stage:
    with open_stage(cfg, name, reads=reads, settings=settings or {"optim": cfg.optim}) as stage:
        if not stage.done:
            (stage.folder / "out").write_text(name)
            (stage.folder / "checkpoints").mkdir()
            stage.finish({"loss": 1.5, "worst": float("inf")})
        return stage


def test_a_finished_stage_is_skipped_with_its_metrics(cfg: Config) -> None:
    folder = make(cfg).folder
    manifest = read_manifest(folder)
    assert manifest["metrics"] == {"loss": 1.5, "worst": float("inf")}
    assert manifest["seed"] == 7 and manifest["config"]["optim"]["lr"] == cfg.optim.lr
    assert manifest["files"] == {"out": hashlib.sha256(b"corpus").hexdigest()}
    assert not (folder / "checkpoints").exists()
    with open_stage(cfg, "corpus", reads=[], settings={"optim": cfg.optim}) as stage:
        assert stage.done and stage.metrics == {"loss": 1.5, "worst": float("inf")}


def test_a_stage_cut_short_keeps_its_files(cfg: Config) -> None:
    with pytest.raises(KeyboardInterrupt), open_stage(cfg, "base", reads=[], settings={}) as stage:
        (stage.folder / "half").write_text("x")
        raise KeyboardInterrupt
    with open_stage(cfg, "base", reads=[], settings={}) as stage:
        assert not stage.done and (stage.folder / "half").read_text() == "x"


def test_another_setting_is_refused_by_name_or_set_aside(cfg: Config) -> None:
    folder = make(cfg).folder
    cfg.optim.lr = 0.5
    with pytest.raises(InputError) as refused:
        make(cfg)
    assert str(refused.value) == (
        f"{folder}: made with optim.lr=0.002, now optim.lr=0.5; "
        "choose another run.name, or run.rebuild=true to set the old one aside"
    )
    cfg.run.rebuild = True
    assert make(cfg).done
    assert (folder.parent / "corpus.replaced-1" / "out").read_text() == "corpus"
    assert read_manifest(folder)["config"]["optim"]["lr"] == 0.5
    assert not (folder.parent / "corpus.replaced-2").exists()
    assert make(cfg).done and not (folder.parent / "corpus.replaced-2").exists()  # rebuild leaves what agrees alone


def test_a_knob_that_cannot_alter_the_result_may_change(cfg: Config) -> None:
    make(cfg, pretrain={"keep": 2, "steps": 5})
    assert make(cfg, pretrain={"keep": 9, "steps": 5}).done
    with pytest.raises(InputError, match="pretrain.steps=5, now pretrain.steps=6"):
        make(cfg, pretrain={"keep": 2, "steps": 6})
    cfg.run.seed = 8
    with pytest.raises(InputError, match="run.seed=7, now run.seed=8"):
        make(cfg, pretrain={"keep": 2, "steps": 5})


def test_inputs_must_be_there_whole_and_the_same(cfg: Config) -> None:
    with pytest.raises(InputError) as refused:
        make(cfg, "tokens", reads=("corpus",))
    assert str(refused.value) == (
        f"stage tokens reads stage corpus, which {cfg.run.folder}/corpus does not have; "
        "make it first: python -m trainers.corpus run.name=r"
    )
    make(cfg)
    tokens = make(cfg, "tokens", reads=("corpus",))
    assert tokens.input("corpus") == cfg.run.folder / "corpus"
    (cfg.run.folder / "corpus" / "out").write_text("CORPUS")  # same size
    with pytest.raises(InputError, match="corpus/out was changed after it was written"):
        make(cfg, "tokenizer", reads=("corpus",))
    (cfg.run.folder / "corpus" / "out").write_text("x")
    with pytest.raises(InputError, match="corpus/out has 1 bytes, 6 were written"):
        make(cfg)
    cfg.run.rebuild = True
    make(cfg)
    cfg.run.rebuild = False
    with pytest.raises(InputError, match="tokens: made from another corpus stage than the one that is there now"):
        make(cfg, "tokens", reads=("corpus",))


def test_two_processes_cannot_hold_one_stage(cfg: Config) -> None:
    code = (
        "import sys; from cluster.run import open_stage; from conf.schema import Config, Run\n"
        "cfg = Config(run=Run(dir=sys.argv[1], name='r', seed=7))\n"
        "with open_stage(cfg, 'base', reads=[], settings={}): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, cfg.run.dir], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin and holder.stdout
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"in use by process {holder.pid} on {os.uname().nodename}"):
            make(cfg, "base")
    finally:
        holder.kill()
        holder.communicate()
    with open_stage(cfg, "base", reads=[], settings={}) as stage:  # the kernel let go
        assert not stage.done


def test_the_newest_model_is_of_the_last_finished_stage(cfg: Config, tmp_path: Path) -> None:
    def newest(given: str = "") -> Path:
        return newest_model(cfg, given, among=("rl", "chat"), knob="serve.model")

    with pytest.raises(InputError, match=r"run.name=r: .*/r has no finished stage rl or chat; run python -m"):
        newest()
    chat = make(cfg, "chat").folder
    (cfg.run.folder / "rl").mkdir()  # begun, not finished
    assert newest() == chat
    rl = make(cfg, "rl").folder
    assert newest() == rl
    (rl / "out").write_text("XX")
    with pytest.raises(InputError, match="rl/out was changed"):
        newest()
    with pytest.raises(InputError, match=f"serve.model={tmp_path}: no model here"):
        newest(str(tmp_path))

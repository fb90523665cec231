"""Stages: finished, skipped, refused, set aside, locked."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.checkpoints import checkpoint_path
from cluster.run import Stage, model_stage, newest_model, open_stage, present, read_manifest
from cluster.storage import committed
from conf.errors import InputError
from conf.knobs.running import Run
from conf.knobs.training import SpikeAction, Spikes
from conf.schema import Config


def make(cfg: Config, name: str = "corpus", reads: tuple[str, ...] = (), **settings: Any) -> Stage:
    with open_stage(cfg, name, reads=reads, settings=settings or {"optim": cfg.optim}) as stage:
        if not stage.done:
            (stage.folder / "out").write_text(name)
            (stage.folder / "checkpoints").mkdir(exist_ok=True)
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
    often = {"steps": 5, "log_every": 5, "eval_every": 5, "save_every": 5, "keep": 2, "patience": 0}
    make(cfg, pretrain=often)
    before = (cfg.run.folder / "corpus" / "manifest.json").read_bytes()
    assert make(cfg, pretrain=often | {"log_every": 1, "eval_every": 1, "save_every": 1, "keep": 9}).done
    assert (cfg.run.folder / "corpus" / "manifest.json").read_bytes() == before
    with pytest.raises(InputError) as refused:
        make(cfg, pretrain=often | {"steps": 6})
    assert str(refused.value) == (
        f"{cfg.run.folder}/corpus: made with pretrain.steps=5, now pretrain.steps=6: it is done, and keeps no "
        f"checkpoint to go on from; another run can train on from its model: parent.model={cfg.run.folder}/corpus; "
        "choose another run.name, or run.rebuild=true to set the old one aside"
    )
    cfg.run.seed = 8
    with pytest.raises(InputError, match="run.seed=7, now run.seed=8"):
        make(cfg, pretrain=often)


def test_the_same_knob_decides_where_something_hangs_on_it(cfg: Config) -> None:
    make(cfg, "base", pretrain={"eval_every": 5, "patience": 1})
    with pytest.raises(InputError, match="made with pretrain.eval_every=5, now pretrain.eval_every=6; choose"):
        make(cfg, "base", pretrain={"eval_every": 6, "patience": 1})
    make(cfg, "chat", sft={"save_every": 5}, spikes=Spikes(action=SpikeAction.rollback))
    with pytest.raises(InputError, match="made with sft.save_every=5, now sft.save_every=6; choose"):
        make(cfg, "chat", sft={"save_every": 6}, spikes=Spikes(action=SpikeAction.rollback))


def begin(cfg: Config, *, saved: bool, longer: Any = None, **settings: Any) -> Path:
    """Cut a stage short, with a checkpoint of step 20 or without one; its folder."""
    with pytest.raises(KeyboardInterrupt), open_stage(cfg, "base", reads=[], settings=settings, longer=longer) as stage:
        (stage.folder / "half").write_text("x")
        (stage.folder / "checkpoints").mkdir(exist_ok=True)
        if saved:
            with committed(checkpoint_path(stage.folder / "checkpoints", 20)):
                pass
        raise KeyboardInterrupt
    return stage.folder


def test_a_stage_of_which_nothing_was_saved_begins_anew(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    folder = begin(cfg, saved=False, sft={"files": {}})
    with open_stage(cfg, "base", reads=[], settings={"sft": {"files": {"a": "1"}}}) as stage:
        assert not stage.done and [path.name for path in folder.iterdir()] == ["stage.json"]
    assert capsys.readouterr().out == (
        "base: begins anew, for nothing of it was saved: made with sft.files.a=none, now sft.files.a=1\n"
    )
    begin(cfg, saved=True, sft={"files": {"a": "1"}})
    with pytest.raises(InputError, match="made with sft.files.a=1, now sft.files.a=2; choose another run.name"):
        begin(cfg, saved=False, sft={"files": {"a": "2"}})
    assert (folder / "half").exists()


def test_a_stage_that_was_begun_goes_on_to_another_length_where_it_can(cfg: Config) -> None:
    asked: list[tuple[Any, int]] = []

    def longer(before: Any, step: int) -> str:
        asked.append((before["pretrain.steps"], step))
        return why

    begin(cfg, saved=True, pretrain={"steps": 40})
    why = "it has saved step 20, which lies in the decay of 40 steps"
    with pytest.raises(InputError, match="pretrain.steps=40, now pretrain.steps=60: it has saved step 20, which lies"):
        begin(cfg, saved=True, longer=longer, pretrain={"steps": 60})
    why = ""
    begin(cfg, saved=True, longer=longer, pretrain={"steps": 60})
    assert asked == [(40, 20), (40, 20)]
    assert make(cfg, "base", pretrain={"steps": 60}).done
    assert read_manifest(cfg.run.folder / "base")["config"]["pretrain"] == {"steps": 60}


def test_what_changes_the_last_bits_only_is_told(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    begin(cfg, saved=True, ppo={"rollouts": 2})  # as older versions called it
    begin(cfg, saved=True, ppo={"actors": {"rollout": {"count": 2}}})
    assert capsys.readouterr().out == ""
    begin(cfg, saved=True, ppo={"actors": {"rollout": {"count": 3}}})
    knob = "ppo.actors.rollout.count"
    told = f"base: made with {knob}=2, now {knob}=3: the result is the same to rounding, not to the bit\n"
    assert capsys.readouterr().out == told
    make(cfg, "base", ppo={"actors": {"rollout": {"count": 3}}})
    assert make(cfg, "base", ppo={"actors": {"rollout": {"count": 4}}}).done and capsys.readouterr().out == ""


def test_what_is_refused_leaves_nothing_behind(cfg: Config) -> None:
    with pytest.raises(InputError, match="stage chat reads stage base"):
        make(cfg, "chat", reads=("base",))
    assert not cfg.run.folder.exists()
    with pytest.raises(InputError, match="no room"), open_stage(cfg, "corpus", reads=[], settings={}):
        raise InputError("no room")
    assert not cfg.run.folder.exists()
    make(cfg)
    with pytest.raises(InputError, match="no room"), open_stage(cfg, "base", reads=["corpus"], settings={}):
        raise InputError("no room")
    assert sorted(path.name for path in cfg.run.folder.iterdir()) == [".base.lock", ".corpus.lock", "corpus"]


def test_where_a_model_comes_from(cfg: Config) -> None:
    assert model_stage(cfg, "base", ()) == "base" and model_stage(cfg, "chat", ()) == "chat"
    cfg.parent.model = "elsewhere"
    assert model_stage(cfg, "base", ()) == "parent" and model_stage(cfg, "chat", ("tasks",)) == "parent"
    assert model_stage(cfg, "base", {"base"}) == "base" and model_stage(cfg, "chat", {"chat"}) == "chat"
    assert model_stage(cfg, "chat", {"base"}) == "chat"  # which is to be made of it first
    begin(cfg, saved=False)
    assert present(cfg) == {"base"} and present(cfg, finished=True) == set()


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
    assert make(cfg, "tokens", reads=("corpus",)).done  # made anew, and the same
    cfg.optim.lr, cfg.run.rebuild = 0.5, True
    make(cfg, optim=cfg.optim)
    cfg.run.rebuild = False
    with pytest.raises(InputError, match="tokens: made from another corpus stage than the one that is there now"):
        make(cfg, "tokens", reads=("corpus",), optim=Config().optim)


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


def test_an_address_is_no_folder() -> None:
    with pytest.raises(InputError, match="run.dir=s3://bucket/x is an address, and a run lives in a folder of a file"):
        Run(dir="s3://bucket/x")


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a run that has a knob by its old name goes on",
        "cluster/agreement.py",
        "RENAMED.get(knob, knob): value",
        "knob: value",
        "test_what_changes_the_last_bits_only_is_told",
    ),
    (
        "a stage with a checkpoint is not thrown away",
        "cluster/agreement.py",
        "return bool(saved) or",
        "return",
        None,
    ),
    ("a refused stage leaves no folder", "cluster/run.py", "shutil.rmtree(folder)  # refused", "pass  # refused", None),
    ("a refused command leaves no run", "cluster/locks.py", "path.parent.rmdir()", "pass", None),
]

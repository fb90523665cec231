"""The pipeline: stages in order, skipped when done, continued when cut short, one line for a user's error."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.memory import PeakMemory
from cluster.pipeline import _key_metrics, planned
from conf.entry import compose
from conf.errors import InputError

# Two small stages in place of the first two, as real job modules.
FIRST = '''
"""first"""
from conf.entry import job
from conf.errors import InputError
@job
def main(cfg):
    import os, time
    from cluster.run import open_stage
    with open_stage(cfg, "corpus", reads=[], settings={"corpus": cfg.corpus}) as stage:
        if stage.done: return stage.metrics
        (stage.folder / "out").write_text("x")
        return stage.finish({"documents": 3})
'''
SECOND = '''
"""second"""
from conf.entry import job
from conf.errors import InputError
@job
def main(cfg):
    import os, ray, time
    from cluster.run import open_stage
    def work(how):
        if how == "refuse": raise InputError("poems.jsonl line 2: no field 'text'; add it")
        while how == "wait": time.sleep(0.1)
        return 2.5
    with open_stage(cfg, "tokenizer", reads=["corpus"], settings={}) as stage:
        if stage.done: return stage.metrics
        print("working", flush=True)
        return stage.finish({"loss": ray.get(ray.remote(work).remote(os.environ.get("HOW", "")))})
'''
ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "__init__.py").touch()
    (tmp_path / "small" / "first.py").write_text(FIRST)
    (tmp_path / "small" / "second.py").write_text(SECOND)
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]\n"
        "import cluster.run, cluster.pipeline\n"
        "cluster.run.JOBS.update(corpus='small.first', tokenizer='small.second')\n"
        "cluster.pipeline.main()"
    )
    words = ["pipeline.stages=[corpus,tokenizer]", f"run.dir={tmp_path}/runs", "cluster.object_store_mb=100"]
    return [sys.executable, "-c", code, *words]


def environment(how: str) -> dict[str, str]:
    return {**os.environ, "HOW": how, "RAY_memory_monitor_refresh_ms": "0"}


@pytest.mark.ray
@pytest.mark.slow
def test_a_users_error_then_a_kill_then_the_end(command: list[str], tmp_path: Path) -> None:
    refused = subprocess.run(command, env=environment("refuse"), capture_output=True, text=True, check=False)
    assert refused.stderr == "error: poems.jsonl line 2: no field 'text'; add it\n"
    assert refused.returncode == 2
    assert re.search(r"corpus +│ done .*documents 3", refused.stdout)
    assert re.search(r"tokenizer +│ failed", refused.stdout)

    waiting = subprocess.Popen(
        command, env=environment("wait"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert waiting.stdout
    while waiting.stdout.readline() != "working\n":
        assert waiting.poll() is None
    waiting.send_signal(signal.SIGTERM)
    shown, told = waiting.communicate(timeout=600)
    assert waiting.returncode == 128 + signal.SIGTERM
    assert re.search(r"tokenizer +│ stopped", shown)
    assert "stopped by SIGTERM; the same command continues: python -m cluster.pipeline 'pipeline.stages" in told

    ended = subprocess.run(command, env=environment(""), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert re.search(r"corpus +│ skipped .*documents 3", ended.stdout)
    assert re.search(r"tokenizer +│ continued .*loss 2.5", ended.stdout)
    record = json.loads((tmp_path / "runs" / "default" / "pipeline.json").read_text())
    assert [stage["state"] for stage in record["stages"]] == ["skipped", "continued"]
    assert 50 * 2**20 < record["peak_memory_bytes"] < 4 * 2**30


def test_an_unknown_stage_is_named(tmp_path: Path) -> None:
    words = ["pipeline.stages=[corpus,chatt]", f"run.dir={tmp_path}"]
    code = "from cluster.pipeline import main; main()"
    ended = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: pipeline.stages names 'chatt'; there are: corpus, tokenizer, tokens,")
    assert ended.stderr.count("\n") == 1


def asked(tmp_path: Path, *words: str) -> list[str]:
    """The stages that the pipeline would run."""
    return list(planned(compose([f"run.dir={tmp_path}", *words])))


def test_every_stages_needs_are_checked_before_the_first(tmp_path: Path) -> None:
    (tmp_path / "any.jsonl").write_text('{"text": "a", "title": "b"}\n')
    files = f"corpus.files=[{tmp_path}/any.jsonl]"
    wrong = {
        "tasks.domain=data.verse corpus.files=[any]": "corpus: record 0 has no field 'author': tasks.domain=data.verse",
        "sft.files=[none.jsonl]": "sft.files: none.jsonl: no such file",
        "tasks.queries=[none.jsonl]": "tasks.queries: none.jsonl: no such file",
        "rank.principles=[helpful,kind]": "rank.principles: 'kind' is none of tasks.domain=moe.tasks.general",
        "ppo.rewards.modle=1": "ppo.rewards.modle: no such term; there are model, rules, length",
        "compute.precision=fp16": "compute.precision=fp16: the stage rl scales no losses",
        "reward.files=[none.jsonl]": "reward.files: none.jsonl: no such file",
        "pretrain.replay=none": "pretrain.replay=none: no packed rows here",
        "tokenizer.extend=5": "tokenizer.extend=5 tokenizer.merge='' need an existing tokenizer",
        "pipeline.stages=[corpus,tokenizer,tokens,chat]": "stage chat reads stage base, which",
        "pipeline.stages=[corpus,tokenizer,tokens,tasks,base,chat,rl]": "make it first: python -m trainers.reward "
        "run.name=default; or leave the reward model out: ppo.rewards.model=0",
    }
    for words, told in wrong.items():
        with pytest.raises(InputError) as refused:
            asked(tmp_path, *words.replace("corpus.files=[any]", files).split())
        assert told in str(refused.value), words
    ended = subprocess.run(
        [sys.executable, "-m", "cluster.pipeline", f"run.dir={tmp_path}/runs", "sft.files=[none.jsonl]"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: sft.files: none.jsonl: no such file\n"
    assert not (tmp_path / "runs").exists()
    assert asked(tmp_path) == "corpus tokenizer tokens tasks base chat ranked reward rl report".split()


def test_a_parent_is_a_stage_where_nothing_else_makes_the_model(tmp_path: Path) -> None:
    from tests.moe.formats.foreign_models import foreign

    given = [f"parent.model={foreign('llama', tmp_path / 'model')}", "sft.row_length=64", "tokens.row_length=64"]
    own = tmp_path / "own.jsonl"
    own.write_text('{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}\n')
    files = f"sft.files=[{own}]"
    assert asked(tmp_path, *given, files, "pipeline.stages=[tasks,chat]") == ["tasks", "parent", "chat"]
    stages = ["tasks", "parent", "ranked", "reward", "rl"]
    assert asked(tmp_path, *given, files, "pipeline.stages=[tasks,ranked,reward,rl]") == stages
    whole = "corpus tokenizer tokens tasks base chat ranked reward rl report".split()
    assert asked(tmp_path, *given) == whole  # which base begins with
    with pytest.raises(InputError, match="stage tasks reads stage corpus, .*; or give sft.files="):
        asked(tmp_path, *given, "pipeline.stages=[tasks,chat]")
    with pytest.raises(InputError, match="sft.row_length=65 must be at most the base model's 64 positions"):
        asked(tmp_path, *given, files, "pipeline.stages=[tasks,chat]", "sft.row_length=65")
    with pytest.raises(
        InputError, match="tokenizer.extend=9 changes the vocabulary, whose new rows only the stage base"
    ):
        asked(tmp_path, *given, files, "pipeline.stages=[tasks,chat]", "tokenizer.extend=9")
    with pytest.raises(InputError, match="the run has no corpus: tasks.domain=data.verse needs poems"):
        asked(tmp_path, *given, files, "pipeline.stages=[tasks,chat]", "tasks.domain=data.verse")


def test_peak_memory_counts_the_children() -> None:
    code = "x = bytearray(200_000_000); print(flush=True); input()"
    with PeakMemory() as peak:
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert child.stdout
        child.stdout.readline()
        from cluster.memory import used

        held = used()
        child.communicate(b"\n")
        left = used()
    assert 190e6 < held - left < 300e6
    assert peak.bytes > 0


def test_key_metrics_come_first() -> None:
    shown = _key_metrics({"seconds": 12.0, "rhyme_ok": 0.25, "a": 1, "b": 2, "form_ok": 0.961, "name": "x"})
    assert shown == "rhyme_ok 0.25  form_ok 0.961  seconds 12  a 1"


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "needs are checked before the first stage",
        "cluster/pipeline.py",
        "            body.check(cfg)\n",
        "            pass\n",
        "test_every_stages_needs_are_checked_before_the_first",
    ),
    (
        "what reads a stage that nothing makes is refused",
        "cluster/pipeline.py",
        "raise missing(cfg, stage, read)",
        "pass",
        "test_every_stages_needs_are_checked_before_the_first",
    ),
]

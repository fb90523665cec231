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
from cluster.pipeline import _key_metrics

# Two small stages in place of the first two, as real job modules.
FIRST = '''
"""first"""
from conf.entry import job
from conf.schema import InputError
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
from conf.schema import InputError
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
    _, told = waiting.communicate(timeout=30)
    assert waiting.returncode == 128 + signal.SIGTERM
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
    assert shown == "form_ok 0.961  rhyme_ok 0.25  seconds 12  a 1"

"""`ray job submit` on a head node of its own: the words are those of the command line, and so is the error."""

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.checkpoints import newest_step
from cluster.tracking.tracker import read_metrics
from tests import readme

pytestmark = [pytest.mark.slow, pytest.mark.ray]
ROOT = Path(__file__).parents[2]
BIN = ROOT / ".venv" / "bin"


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """A head node with a job server; yields the environment that finds it."""
    ray = shutil.which("ray", path=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    assert ray, "the ray command is not installed"
    folder, port, jobs = tempfile.mkdtemp(prefix="conclave-"), free_port(), free_port()
    auth, mode = readme.command("export RAY_AUTH_MODE").words[1].split("=")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {
        "PATH": f"{Path(ray).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        auth: mode,
    }
    start = [ray, *readme.command("ray start").words[1:], "--block", f"--port={port}", f"--temp-dir={folder}"]
    start += ["--num-cpus=8"]
    start += ["--include-dashboard=true", f"--dashboard-port={jobs}", "--object-store-memory=200000000"]
    start += [f"--dashboard-agent-listen-port={free_port()}"]  # the session's own cluster may have the usual one
    process = subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "Ray runtime started" in line:
            break
    yield environment | {
        "RAY_ADDRESS": f"http://127.0.0.1:{jobs}",
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{jobs}",
    }
    process.terminate()  # --block ends every process of the node with itself
    process.wait(timeout=600)
    shutil.rmtree(folder, ignore_errors=True)


def submit(head: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [*readme.command("ray job submit").words, *words]
    done = subprocess.run(command, cwd=ROOT, env=head, capture_output=True, text=True, timeout=1200)
    return subprocess.CompletedProcess(
        command, done.returncode, re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the jobs write, one going on from the other's stages."""
    return tmp_path_factory.mktemp("runs")


def test_a_job_runs_on_the_cluster_it_was_submitted_to(head: dict[str, str], runs: Path) -> None:
    done = submit(head, f"run.dir={runs}", "pipeline.stages=[corpus,tokenizer,tokens]")
    assert done.returncode == 0, done.stdout[-3000:]
    assert "succeeded" in done.stdout
    assert (runs / "test" / "tokens" / "manifest.json").exists()


def test_a_job_that_is_stopped_saves_first(head: dict[str, str], runs: Path) -> None:
    """`ray job stop` sends SIGTERM, and SIGKILL when the time is up that the job was submitted with."""
    words = readme.command("ray job submit").words
    patience = '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "300"}}'
    asked = ["--no-wait", "--submission-id=stopped", f"--runtime-env-json={patience}"]
    more = [f"run.dir={runs}", "pipeline.stages=[corpus,tokenizer,tokens,base]", "pretrain.steps=5000"]
    subprocess.run([*words[:3], *asked, *words[3:], *more], cwd=ROOT, env=head, check=True, timeout=600)
    base, until = runs / "test" / "base", time.monotonic() + 900
    while not any("loss" in line for line in read_metrics(base)):
        assert time.monotonic() < until, "no step was logged"
        time.sleep(0.5)
    subprocess.run(["ray", "job", "stop", "stopped"], env=head, check=True, timeout=600)
    (saved,) = (base / "checkpoints").glob("step-*-stop")
    logs = subprocess.run(["ray", "job", "logs", "stopped"], env=head, capture_output=True, text=True, timeout=600)
    step = newest_step(base / "checkpoints")
    assert saved.name == f"step-{step:08d}-stop" and step > 0
    assert (
        f"stopped by SIGTERM at step {step}; saved; the same command continues: python -m cluster.pipel" in logs.stdout
    )
    assert re.search(r"base +│ stopped", logs.stdout)


def test_a_bad_word_fails_the_job_with_the_one_line_error(head: dict[str, str]) -> None:
    done = submit(head, "optim.lrr=1e-3")
    assert done.returncode != 0
    lines = {line for line in done.stdout.splitlines() if line.startswith("error:")}  # Ray shows it twice
    assert len(lines) == 1 and "did you mean optim.lr?" in lines.pop()

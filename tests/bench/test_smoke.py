"""Every benchmark still runs: at toy size, in a process of its own, and without a word in the user's bench.json."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.test_corpus import THERE
from tests.bench.test_ppo import PHASES, TRL

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench.json"
HERE = {"corpus/datatrove"} if THERE else set[str]()
EXPECTED = {
    "bench and not slow": {
        "moe_layer/64,4,2,64",
        "moe_layer_bf16/64,4,2,64",
        "train_step/eager",
        "train_step_bf16/eager",
        "train_step/memory",
        "decode/batch-2",
        "checkpoint/4 steps",
        *HERE,
        *({"ppo_step/trl", *(f"ppo_step/trl/{phase}" for phase in PHASES)} if TRL.is_dir() else ()),
    },
    "bench and slow": {"train_step/compiled", "feed/1 threads"},
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("which", EXPECTED)
def test_every_benchmark_runs(tmp_path: Path, which: str) -> None:
    before = RESULTS.read_bytes() if RESULTS.exists() else b""
    made = tmp_path / "toy.json"
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which, "tests/bench"]
    environment = os.environ | {"CONCLAVE_BENCH_TOY": str(made)}
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    found = json.loads(made.read_text())
    assert {line["name"] for line in found} == EXPECTED[which]
    assert all(line["ours"] > 0 and line["ratio"] == line["ours"] / line["peer"] > 0 for line in found)
    assert (RESULTS.read_bytes() if RESULTS.exists() else b"") == before

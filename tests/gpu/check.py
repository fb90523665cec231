"""What only a GPU can show, as steps in processes of their own: `python -m tests.gpu.check`, in under 6 minutes.

A step is a module beside this one with `run(toy) -> figures`: it raises where something is wrong, and `Skipped` where
something is missing. Each has a limit of its own, and one that hangs or dies costs nothing but itself. On standard
output there is one JSON line a step: {"step", "status": "passed" | "failed" | "skipped", "seconds", "figures", "why"}.
The exit code is 0 if all passed, 1 if one failed, 2 if none failed but one was skipped.

It needs Python, torch with CUDA, Triton and transformers; steps that need more say so. `--cpu` goes through the same
steps at a size that says nothing, with Triton interpreted, so that none is found broken when a GPU is at hand.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STEPS = {  # in the order of their worth: seconds that each may take on a GPU
    "card": 40,
    "kernels": 60,
    "gradients": 60,
    "training": 100,
    "layer": 80,
    "decoding": 70,
    "megablocks": 60,
    "resume": 60,
    "ppo": 100,
}
TOGETHER = 350  # seconds for all of them on a GPU; there is no limit for the dry run but those of the steps
DRY = 600  # seconds for a step of the dry run, on a machine that does other things too
EXTRAS = ROOT / ".venv" / "megablocks-cpu"  # MegaBlocks (`make megablocks-cpu`), with a Triton for the CPU beside it


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.check", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help=f"steps to take, of {','.join(STEPS)}")
    parser.add_argument("--cpu", action="store_true", help="a dry run without a GPU, at toy size")
    parser.add_argument("--out", default="", help="a JSON file for the figures, with the card and the date")
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)  # the step that this process is
    given = parser.parse_args(words)
    if given.inside:
        print(json.dumps(inside(given.inside, toy=given.cpu)), flush=True)
        return 0
    chosen = given.only.split(",") if given.only else list(STEPS)
    if unknown := [step for step in chosen if step not in STEPS]:
        parser.error(f"--only: no step {unknown[0]!r}; there are {', '.join(STEPS)}")
    if given.cpu and given.out:
        parser.error("--out: figures of a dry run say nothing; leave out --cpu or --out")
    begun, lines = time.monotonic(), []
    for step in chosen:
        left = DRY if given.cpu else min(STEPS[step], TOGETHER - (time.monotonic() - begun))
        lines.append(taken(step, toy=given.cpu, limit=left))
        print(json.dumps(lines[-1]), flush=True)
    if given.out:
        write(Path(given.out), lines)
    statuses = {line["status"] for line in lines}
    return 1 if "failed" in statuses else 2 if "skipped" in statuses else 0


def taken(step: str, *, toy: bool, limit: float) -> dict[str, Any]:
    """The line of a step that is taken in a process of its own, which is killed after `limit` seconds."""
    if limit <= 0:
        return line(step, "failed", 0.0, why=f"no time left: the steps before it took {TOGETHER} s")
    command = [sys.executable, "-m", "tests.gpu.check", "--inside", step, *(["--cpu"] if toy else [])]
    begun = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(toy=toy),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # what it starts dies with it
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        return line(step, "failed", limit, why=f"not done after {limit:.0f} s")
    finally:
        kill_group(process)
    try:
        said = json.loads(out.splitlines()[-1])
    except (IndexError, ValueError):
        last = (err.strip().splitlines() or ["no message"])[-1]
        said = line(step, "failed", 0.0, why=f"exit code {process.returncode}: {last}")
    return said | {"seconds": round(time.monotonic() - begun, 1)}


def kill_group(process: "subprocess.Popen[str]") -> None:
    """End the step's process and all that it has started."""
    with suppress(ProcessLookupError):  # the usual end
        os.killpg(process.pid, 9)
    process.wait()


def environment(*, toy: bool) -> dict[str, str]:
    changed = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    found = [os.environ.get("PYTHONPATH", ""), str(ROOT)]
    if toy or not (EXTRAS / "triton").exists():  # a GPU has a Triton of its own: carry only what stands beside this one
        found.insert(1, str(EXTRAS))
    changed["PYTHONPATH"] = os.pathsep.join(filter(None, found))
    if toy:
        changed |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # nobody else's cluster
    return kept | changed


def inside(step: str, *, toy: bool) -> dict[str, Any]:
    """Take a step in this process; its line."""
    begun = time.monotonic()

    def said(status: str, **more: Any) -> dict[str, Any]:
        return line(step, status, time.monotonic() - begun, **more)

    try:
        import torch

        from tests.gpu.machine import Skipped
    except ImportError as error:
        return said("failed", why=f"torch cannot be imported: {error}")
    try:
        if not toy and not torch.cuda.is_available():
            return said("failed", why="torch sees no CUDA device; --cpu is the dry run")
        return said("passed", figures=import_module(f"tests.gpu.{step}").run(toy))
    except Skipped as missing:
        return said("skipped", why=str(missing))
    except Exception as error:  # whatever a step ran into is its line
        traceback.print_exc()
        return said("failed", why=f"{type(error).__name__}: {str(error)[:500]}")


def line(step: str, status: str, seconds: float, *, figures: Any = None, why: str = "") -> dict[str, Any]:
    return {"step": step, "status": status, "seconds": round(seconds, 1), "figures": figures or {}, "why": why}


def write(path: Path, lines: list[dict[str, Any]]) -> None:
    """The figures, which mean nothing without the card and the date."""
    names = [step["figures"]["name"] for step in lines if step["step"] == "card" and step["figures"]]
    record = {
        "card": names[0] if names else "not asked: take the step card too",
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | {"steps": lines}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    sys.exit(main())

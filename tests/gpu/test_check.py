"""The GPU check without a GPU: each of its steps at toy size, and what becomes of one that fails, hangs or lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import check, ppo
from tests.gpu.check import ROOT, STEPS, line, main, taken
from tests.gpu.machine import Skipped

# What the machines that the check is for do not have (ray and the like only where somebody carries them there).
ABSENT = "ray hydra omegaconf rich wandb fastapi gguf pypinyin datasets megablocks stk grouped_gemm hypothesis".split()


def dry(*steps: str, path: str = "") -> tuple[int, dict[str, dict[str, Any]]]:
    """(exit code, line of each step) of a dry run."""
    command = [sys.executable, "-m", "tests.gpu.check", "--cpu", "--only", ",".join(steps)]
    ended = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=1500
    )
    lines = [json.loads(text) for text in ended.stdout.splitlines()]
    return ended.returncode, {said["step"]: said for said in lines}


@pytest.fixture
def lacking(tmp_path: Path) -> str:
    """A PYTHONPATH on which what such a machine does not have cannot be imported."""
    for name in ABSENT:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} is not on such a machine')")
    return str(tmp_path)


def test_steps_pass_at_toy_size_with_what_such_a_machine_has(lacking: str) -> None:
    code, lines = dry("card", "gradients", path=lacking)
    assert {name: said["why"] for name, said in lines.items() if said["status"] != "passed"} == {}
    assert code == 0 and list(lines) == ["card", "gradients"]
    assert lines["card"]["figures"]["name"] == "cpu"
    found = lines["gradients"]["figures"]
    assert found["equal_repeats"] == 20 and all(1e-4 < e < 1e-2 for e in found["worst_relative_error"].values())


@pytest.mark.slow
@pytest.mark.parametrize("step", ["kernels", "layer", "training", "decoding", "resume"])
def test_a_step_passes_at_toy_size_with_what_such_a_machine_has(step: str, lacking: str) -> None:
    code, lines = dry(step, path=lacking)
    assert (code, lines[step]["status"]) == (0, "passed"), lines[step]["why"]
    assert lines[step]["figures"]


@pytest.mark.slow
def test_megablocks_passes_at_toy_size_where_it_is() -> None:
    code, lines = dry("megablocks")
    assert (code, lines["megablocks"]["status"]) == (0, "passed"), lines["megablocks"]["why"]


@pytest.mark.slow
@pytest.mark.ray
def test_three_iterations_of_ppo_pass_on_the_cpu() -> None:
    code, lines = dry("ppo")
    assert code == 0, lines["ppo"]["why"]
    roles = lines["ppo"]["figures"]["roles"]
    assert len(roles) == 6 and set(roles.values()) == {"cpu"}
    assert lines["ppo"]["figures"]["rollout_logprob_abs_diff"] < 1e-4


def test_without_ray_ppo_is_skipped_and_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppo, "find_spec", lambda name: None if name in ("ray", "hydra") else name)
    with pytest.raises(Skipped, match="^not installed: ray, hydra$"):
        ppo.run(False)
    monkeypatch.setattr(check, "import_module", lambda name: ppo)
    said = check.inside("ppo", toy=True)
    assert (said["status"], said["why"]) == ("skipped", "not installed: ray, hydra")


def test_a_machine_without_a_gpu_fails_the_check() -> None:
    said = taken("card", toy=False, limit=300)
    assert said["status"] == "failed" and said["why"] == "torch sees no CUDA device; --cpu is the dry run"


def test_a_step_that_hangs_is_killed_at_its_limit() -> None:
    said = taken("card", toy=True, limit=0.2)
    assert (said["status"], said["why"]) == ("failed", "not done after 0 s")
    assert taken("card", toy=True, limit=0.0)["why"] == "no time left: the steps before it took 350 s"


def test_a_step_that_dies_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "environment", lambda toy: os.environ | {"PYTHONPATH": "", "PYTHONHOME": "/nowhere"})
    said = taken("card", toy=True, limit=60)
    assert said["status"] == "failed" and said["why"].startswith("exit code 1: ")


@pytest.mark.parametrize(
    ("statuses", "code"),
    [(("passed", "passed"), 0), (("failed", "passed"), 1), (("skipped", "passed"), 2), (("skipped", "failed"), 1)],
)
def test_all_steps_are_taken_and_the_exit_code_is_0_only_if_all_passed(
    statuses: tuple[str, str],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    left = dict(zip(("card", "layer"), statuses, strict=True))
    figures = {"name": "NVIDIA H100"}
    monkeypatch.setattr(check, "taken", lambda step, toy, limit: line(step, left[step], 1.0, figures=figures))
    out = tmp_path / "bench" / "gpu.json"
    assert main(["--only", "card,layer", "--out", str(out)]) == code
    said = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [(each["step"], each["status"]) for each in said] == list(left.items())
    written = json.loads(out.read_text())
    assert written["card"] == "NVIDIA H100" and written["date"].startswith("20") and written["steps"] == said


def test_the_steps_have_six_minutes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: dict[str, float] = {}
    now = [0.0]

    def slow(step: str, toy: bool, limit: float) -> dict[str, Any]:
        limits[step] = limit
        now[0] += max(0.0, limit)
        return line(step, "passed", limit)

    monkeypatch.setattr(check, "taken", slow)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    main([])
    assert list(limits) == list(STEPS) and sum(max(0.0, limit) for limit in limits.values()) == 350


@pytest.mark.parametrize(
    ("words", "why"), [("--only card,cart", "no step 'cart'; there are card, "), ("--cpu --out x", "say nothing")]
)
def test_words_that_make_no_sense_are_refused(words: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words.split())
    assert ended.value.code == 2 and why in capsys.readouterr().err


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a GPU check that fails says so by its exit code",
        "tests/gpu/check.py",
        'return 1 if "failed" in statuses else',
        'return 0 if "passed" in statuses else',
        "test_all_steps_are_taken_and_the_exit_code_is_0_only_if_all_passed",
    ),
    (
        "a step of the GPU check that is not possible is skipped and not passed",
        "tests/gpu/check.py",
        'return said("skipped", why=str(missing))',
        'return said("passed")',
        "test_without_ray_ppo_is_skipped_and_says_what_is_missing",
    ),
    (
        "the GPU check needs a GPU",
        "tests/gpu/check.py",
        "if not toy and not torch.cuda.is_available():",
        "if not toy and torch.cuda.is_available():",
        "test_a_machine_without_a_gpu_fails_the_check",
    ),
]

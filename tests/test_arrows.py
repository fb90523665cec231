"""Imports point down only: conf <- moe and cluster <- trainers, rlhf and serving, inside functions too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("conf", "moe", "cluster", "trainers", "rlhf", "serving")
MAY_IMPORT = {
    "conf": {"conf"},
    "moe": {"conf", "moe"},
    "cluster": {"conf", "cluster"},
    "trainers": {"conf", "moe", "cluster", "trainers"},
    "rlhf": {"conf", "moe", "cluster", "rlhf"},
    "serving": {"conf", "moe", "cluster", "serving"},
}
MAY_NOT_LOAD = {"conf": {"torch", "ray"}, "moe": {"ray"}, "cluster": {"torch"}}


def imported(source: str, package: str) -> Iterator[tuple[str, int]]:
    """(top-level name, line) of every import in `source`, a module of `package`, relative ones resolved."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (package if node.level else (node.module or "").partition(".")[0]), node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value).partition(".")[0], node.lineno


def wrong(source: str, package: str) -> list[str]:
    return [
        f"line {line}: {package} imports {name}"
        for name, line in imported(source, package)
        if (name in OURS and name not in MAY_IMPORT[package]) or name in MAY_NOT_LOAD.get(package, ())
    ]


@pytest.mark.parametrize("package", OURS)
def test_imports_point_down(package: str) -> None:
    found = {str(path): wrong(path.read_text(), package) for path in sorted((ROOT / package).rglob("*.py"))}
    assert found, f"no module in {package}"
    assert {path: lines for path, lines in found.items() if lines} == {}


def test_an_arrow_that_points_up_is_seen() -> None:
    assert wrong("def f():\n    from trainers.loop import x", "rlhf") == ["line 2: rlhf imports trainers"]
    assert wrong("import ray.data", "moe") == ["line 1: moe imports ray"]
    assert wrong("import importlib\nimportlib.import_module('serving.app')", "cluster") == [
        "line 2: cluster imports serving"
    ]
    assert wrong("from . import schema\nimport hydra", "conf") == []


def loaded(code: str, names: set[str]) -> str:
    """Which of `names` a fresh interpreter has loaded after `code`."""
    code += f"\nimport sys; print(sorted({names!r} & sys.modules.keys()))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return ended.stdout.strip().splitlines()[-1]


def test_the_schema_loads_nothing_heavy() -> None:
    assert loaded("import conf.schema", {"torch", "ray", "hydra", "omegaconf"}) == "[]"
    assert loaded("import conf.entry", {"torch", "ray", "hydra"}) == "['hydra']"


def test_the_model_does_not_load_ray() -> None:
    modules = [f"moe.{path.stem}" for path in (ROOT / "moe").glob("*.py") if path.stem != "__init__"]
    assert modules
    assert loaded(f"import moe, {', '.join(modules)}", {"ray"}) == "[]"


def test_jobs_load_nothing_heavy_before_they_run() -> None:
    from cluster.run import JOBS

    jobs = [*JOBS.values(), "cluster.pipeline", "serving.serve", "moe.convert", "moe.plan", "trainers.prune"]
    there = [job for job in jobs if (ROOT / (job.replace(".", "/") + ".py")).exists()]
    assert loaded(f"import {', '.join(there)}", {"torch", "ray", "transformers"}) == "[]"

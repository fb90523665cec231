"""Imports point down only, inside functions too; no circle; nobody imports a job; what must start fast loads little."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("conf", "data", "moe", "cluster", "trainers", "rlhf", "serving")
TOP = {"moe.decoder", "moe.experts", "moe.router", "moe.losses", "moe.footprint"}  # the model, which has no room
# What a module may import of ours: the line with the longest name that it lies under. A name stands for all under it.
MAY_IMPORT: dict[str, set[str]] = {
    "conf": {"conf"},
    "cluster": {"conf", "cluster"},
    "cluster.tracking": {"conf", "cluster.code", "cluster.storage", "cluster.tracking"},
    "moe": {"conf", "moe"},
    **{part: {"conf", "moe.kernels"} | TOP for part in TOP},
    "moe.kernels": {"conf", "moe.kernels"},
    "moe.text": {"conf", "moe.text"},
    "moe.formats": {"conf", "moe.text", "moe.formats"} | TOP,
    "moe.training": {"conf", "moe.kernels", "moe.text", "moe.training"} | TOP,
    "moe.generation": {"conf", "moe.kernels", "moe.text", "moe.generation"} | TOP,
    # an engine is opened on a folder, and answers are judged: the two files through which others generate
    "moe.generation.engines": {"conf", "moe.text", "moe.formats", "moe.generation"} | TOP,
    "moe.generation.answers": {"conf", "moe.text", "moe.tasks", "moe.generation"} | TOP,
    "moe.tasks": {"conf", "moe.tasks"},
    "trainers": {"conf", "moe", "cluster", "trainers"},
    "trainers.files": {"conf", "moe.text", "moe.tasks", "cluster", "trainers.files"},
    "trainers.clean": {"conf", "cluster", "moe.tasks", "trainers.files", "trainers.clean"},
    "trainers.rows": {"conf", "moe", "cluster", "trainers.files", "trainers.rows"},
    "trainers.trail": {"conf", "moe.tasks.task", "cluster", "trainers.files", "trainers.rows", "trainers.trail"},
    "trainers.proxy": {"conf", "moe", "cluster", "trainers"},
    "trainers.loop": {"conf", "moe", "cluster", "trainers.rows", "trainers.loop"},
    "rlhf": {"conf", "moe", "cluster", "rlhf"},
    "rlhf.actors": {"conf", "moe", "rlhf.actors", "rlhf.forward", "rlhf.losses", "rlhf.messages", "rlhf.objectives"}
    | {"rlhf.rewards", "cluster.fault"},
    "rlhf.actors.placement": {"conf", "cluster.room"},  # on the driver's side
    "rlhf.judges": {"conf", "moe", "cluster", "rlhf.judges"},
    "rlhf.graph": {"conf", "moe", "cluster.room", "rlhf.actors", "rlhf.messages", "rlhf.rewards", "rlhf.supervisor"}
    | {"rlhf.losses", "rlhf.rollouts"},
    "serving": {"conf", "moe", "cluster", "serving"},
    "data": {"data"},
    "data.verse": {"conf", "moe.tasks.task", "data.verse"},
}
JOB_OF_A_JOB = {("trainers.twin", "trainers.pretrain")}  # the same job with another shape
# Imports of others that a folder may not even write down, and what its modules may not have loaded in the end.
MAY_NOT_WRITE = {"conf": {"torch", "ray"}, "moe": {"ray"}, "cluster": {"torch"}}
MAY_NOT_LOAD = {
    "conf": {"torch", "ray"},
    "cluster": {"torch"},
    "moe": {"ray"},
    "moe.tasks": {"torch"},
    "moe.text": {"torch"},
    "trainers.files": {"torch", "ray"},
    **{f"trainers.clean.{name}": {"torch", "ray"} for name in ("blocks", "gather", "report")},
    **{f"trainers.rows.{name}": {"torch"} for name in ("rows", "packing", "mixture", "feed", "names", "way")},
}


def sources() -> dict[str, str]:
    """Every module of ours by its dotted name; a folder stands for its `__init__`."""
    files = [path.relative_to(ROOT) for package in OURS for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): (ROOT / path).read_text() for path in files}


SOURCES = sources()


def under(name: str, folders: Iterable[str]) -> str:
    """The longest of `folders` that a dotted name lies under, itself included; "" if there is none."""
    return max((folder for folder in folders if f"{name}.".startswith(f"{folder}.")), key=len, default="")


def imported(source: str, package: str) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every import in `source`, a module right in `package`, relative ones resolved. A name
    that comes from a module has it in front: `from a import b` is a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value), node.lineno


def arrows(module: str, source: str, modules: Iterable[str] = SOURCES) -> dict[str, int]:
    """{module of ours: line} that a module imports."""
    package = module if module in OURS else module.rpartition(".")[0]
    found = [(under(name, modules), line) for name, line in imported(source, package)]
    return {target: line for target, line in found if target and target != module}


def wrong(module: str, source: str) -> list[str]:
    """Imports of `module` that its line of the table does not allow, as "line 2: rlhf.ppo imports trainers.sft"."""
    allowed = MAY_IMPORT[under(module, MAY_IMPORT)]
    banned = MAY_NOT_WRITE.get(module.partition(".")[0], set())
    up = [(line, target) for target, line in arrows(module, source).items() if not under(target, allowed)]
    heavy = [(line, name) for name, line in imported(source, module) if under(name, banned)]
    return [f"line {line}: {module} imports {name}" for line, name in [*up, *heavy]]


def jobs(texts: Mapping[str, str]) -> set[str]:
    """The modules that one runs: those with a function under `@job`."""
    return {
        module
        for module, source in texts.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(mark, ast.Name) and mark.id == "job" for mark in node.decorator_list)
    }


def into_jobs(texts: Mapping[str, str]) -> set[tuple[str, str]]:
    """(module, job that it imports)."""
    run = jobs(texts)
    return {(module, job) for module, source in texts.items() for job in arrows(module, source, texts) if job in run}


def circle(texts: Mapping[str, str]) -> list[str]:
    """Modules that import each other in a ring, the first again at the end; [] if none do."""
    try:
        TopologicalSorter({module: arrows(module, source, texts) for module, source in texts.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


@pytest.mark.parametrize("folder", OURS)
def test_imports_point_down(folder: str) -> None:
    found = {module: wrong(module, source) for module, source in SOURCES.items() if under(module, [folder])}
    assert found, f"no module in {folder}"
    assert {module: lines for module, lines in found.items() if lines} == {}


def test_nobody_imports_a_job() -> None:
    assert into_jobs(SOURCES) == JOB_OF_A_JOB


def test_no_modules_import_each_other() -> None:
    assert circle(SOURCES) == []


@pytest.mark.parametrize(
    ("module", "source", "seen"),
    [
        ("rlhf.ppo", "def f():\n    from trainers.loop import loop", "line 2: rlhf.ppo imports trainers.loop.loop"),
        ("moe.decoder", "import ray.data", "line 1: moe.decoder imports ray.data"),
        (
            "cluster.run",
            "import importlib\nimportlib.import_module('serving.app')",
            "line 2: cluster.run imports serving.app",
        ),
        ("moe.kernels.gemm", "from moe.decoder import Decoder", "line 1: moe.kernels.gemm imports moe.decoder"),
        ("moe.kernels.gemm", "from moe import router", "line 1: moe.kernels.gemm imports moe.router"),
        ("moe.kernels.gemm", "from ..text import chat", "line 1: moe.kernels.gemm imports moe.text.chat"),
        ("moe.decoder", "import moe.formats.config", "line 1: moe.decoder imports moe.formats.config"),
        ("moe.text.chat", "from moe.decoder import Decoder", "line 1: moe.text.chat imports moe.decoder"),
        ("moe.formats.gguf", "from moe.kernels import int8", "line 1: moe.formats.gguf imports moe.kernels.int8"),
        (
            "moe.training.step",
            "import moe.generation.engine",
            "line 1: moe.training.step imports moe.generation.engine",
        ),
        ("moe.generation.engine", "import moe.formats.gguf", "line 1: moe.generation.engine imports moe.formats.gguf"),
        ("moe.tasks.task", "from moe.text import chat", "line 1: moe.tasks.task imports moe.text.chat"),
        ("serving.app", "from data.verse import rules", "line 1: serving.app imports data.verse.rules"),
        ("data.verse.rules", "import moe.tasks.measure", "line 1: data.verse.rules imports moe.tasks.measure"),
        ("trainers.rows.rows", "import trainers.loop.state", "line 1: trainers.rows.rows imports trainers.loop.state"),
    ],
)
def test_an_arrow_that_points_up_is_seen(module: str, source: str, seen: str) -> None:
    assert wrong(module, source) == [seen]


def test_arrows_that_point_down_are_let_through() -> None:
    assert wrong("conf.entry", "from . import schema\nimport hydra") == []
    assert wrong("moe.kernels.gemm", "from . import native\nfrom conf.errors import InputError") == []
    assert wrong("data.verse.rules", "from moe.tasks.task import Verdict") == []
    assert wrong("moe.training.step", "from moe.decoder import Decoder\nimport torch") == []


def test_a_job_that_is_imported_is_seen() -> None:
    run = "from conf.entry import job\n@job\ndef main(cfg): ..."
    texts = {"trainers.a": run, "trainers.b": run, "trainers.c": "def f():\n    from trainers.a import main"}
    assert into_jobs(texts) == {("trainers.c", "trainers.a")}
    texts["trainers.b"] += "\nfrom trainers import a"
    assert into_jobs(texts) == {("trainers.b", "trainers.a"), ("trainers.c", "trainers.a")}


def test_a_circle_is_seen() -> None:
    texts = {"moe.a": "import moe.b", "moe.b": "def f():\n    from moe.c import x", "moe.c": "from . import b"}
    assert set(circle(texts)) == {"moe.b", "moe.c"}
    assert circle(texts | {"moe.c": "import torch"}) == []


def loaded(code: str, names: set[str]) -> str:
    """Which of `names` a fresh interpreter has loaded after `code`."""
    code += f"\nimport sys; print(sorted({names!r} & sys.modules.keys()))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return ended.stdout.strip().splitlines()[-1]


def test_the_schema_loads_nothing_heavy() -> None:
    assert loaded("import conf.schema", {"torch", "ray", "hydra", "omegaconf"}) == "[]"
    assert loaded("import conf.entry", {"torch", "ray", "hydra"}) == "['hydra']"


ON_CUDA = ["moe.kernels.triton_passes"]  # it imports triton, which torch's CPU build does not bring along


@pytest.mark.parametrize("folder", MAY_NOT_LOAD)
def test_what_is_loaded_everywhere_stays_light(folder: str) -> None:
    modules = [module for module in SOURCES if under(module, [folder]) and module not in ON_CUDA]
    assert modules, f"no module in {folder}"
    assert loaded(f"import {', '.join(modules)}", MAY_NOT_LOAD[folder]) == "[]"


@pytest.mark.parametrize("job", sorted(jobs(SOURCES)))
def test_a_job_reads_its_words_before_its_imports(job: str) -> None:
    first = [ast.unparse(node) for node in ast.parse(SOURCES[job]).body[1:3]]  # after the docstring
    assert first == ["from conf.entry import early, job", "early(__name__)"]


def test_help_loads_nothing_heavy() -> None:
    code = """import runpy, sys
sys.argv = ["rlhf.ppo", "--help"]
try:
    runpy.run_module("rlhf.ppo", run_name="__main__")
except SystemExit:
    pass"""
    assert loaded(code, {"torch", "ray", "transformers"}) == "[]"

"""The READMEs' commands do what is promised: all are read, and what runs here runs at test size as it stands there.

A command that a README gains fails until `TABLE` says how it is made small.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.run import JOBS
from conf.entry import compose, sweep
from conf.knobs.alignment import Tasks
from conf.knobs.text import Corpus
from moe.tasks.domain import Domain
from moe.tasks.task import Sample
from tests.readme import READMES, ROOT, Command, blocks, lines
from trainers.clean.document import Document
from trainers.clean.steps import chain, taken
from trainers.files.samples import read_queries

OWN = ("conf", "moe", "cluster", "trainers", "rlhf", "serving")


@dataclass(frozen=True)
class Small:
    """Runs in a folder of its own that has the runs/demo of a whole run at test size."""

    words: str = ""  # what the command gets more; a knob that it has already is replaced
    makes: str = ""  # a file that is there afterwards
    quick: bool = False  # seconds, and needs no run


@dataclass(frozen=True)
class Elsewhere:
    """Run by a test with a server or a cluster, which asks `tests.readme.command` for it."""

    test: str


@dataclass(frozen=True)
class Installs:
    """Not run: it would change the environment that the tests run in, or is the tests. Its target is looked at."""

    why: str


NO_NETWORK = "tracker.mode=offline"
PARENT = "tokenizer.extend=50 tokens.row_length=64 parent.model=parent"
FEW_STEPS = "pretrain.steps=2 pretrain.batch_rows=2 pretrain.eval_every=2 sft.steps=2 sft.batch_rows=2"
FEW_ITERATIONS = "ppo.iterations=1 ppo.prompts=4 ppo.samples=2 ppo.keep=2 ppo.minibatches=2 ppo.epochs=1"
TABLE: dict[str, Small | Elsewhere | Installs] = {  # how a command starts; the longest that fits counts
    "make demo": Installs("whole_run is the same at test size"),
    "make demo-assistant": Elsewhere("tests/test_assistant.py::test_the_preset_goes_the_whole_way_at_a_small_size"),
    "make serve": Installs("tests/serving/test_serve.py runs the command"),
    "make test": Installs("these are the tests"),
    "make setup": Installs("the environment of the tests"),
    "make native": Installs("the kernels of the tests"),
    "make bench": Installs("an hour of both cores"),
    "make gpu": Installs("a package built for a GPU"),
    "make gpu-check": Installs("needs a GPU; tests/gpu/test_check.py takes its steps without one"),
    "make browser": Installs("packages beside the environment, which the tests of the chat page use where they are"),
    "make clients": Installs("packages beside the environment, which the tests of other APIs use where they are"),
    "make lm-eval": Installs("packages beside the environment"),
    "make datatrove": Installs("packages beside the environment, which a benchmark uses where they are"),
    "make trl": Installs("packages beside the environment, which a benchmark uses where they are"),
    "PYTHONPATH=.venv/lm-eval": Installs("needs make lm-eval and a task's data from the network"),
    "curl": Elsewhere("tests/serving/test_endpoint.py::test_the_readmes_curl_is_answered"),
    "from openai": Elsewhere("tests/serving/test_endpoint.py::test_the_readmes_client_is_answered"),
    "python -m serving.serve": Elsewhere("tests/serving/test_serve.py::test_the_command_answers_and_ends_when_asked"),
    "python -m serving.chat": Elsewhere("tests/serving/test_chat.py::test_the_command_talks_until_the_end_of_input"),
    "python -m serving.promote": Elsewhere(
        "tests/serving/canary/test_rollout.py::test_the_command_asks_for_a_trial_once_and_says_what_is_wrong"
    ),
    "python -m rlhf.rank run.name=demo rank.judges=[feedback]": Elsewhere(
        "tests/rlhf/judges/test_feedback.py::test_the_stage_ranks_what_people_said_and_forgets_what_they_forget"
    ),
    "python -m rlhf.teacher.teach": Elsewhere(
        "tests/rlhf/teacher/test_teach.py::test_a_real_server_teaches_and_nothing_wrong_enters"
    ),
    "python -m rlhf.judges.label": Elsewhere(
        "tests/rlhf/judges/test_people.py::test_jsonl_goes_out_and_comes_back_as_it_was"
    ),
    "export RAY_AUTH_MODE=token": Elsewhere("tests/cluster/test_job_submit.py::head"),
    "ray start --head": Elsewhere("tests/cluster/test_job_submit.py::head"),
    "ray job submit": Elsewhere("tests/cluster/test_job_submit.py::test_a_job_runs_on_the_cluster_it_was_submitted_to"),
    "from transformers": Small(),
    "# my_domain.py": Elsewhere("tests/test_readme.py::test_the_domain_of_the_readme_judges"),
    "python -m cluster.pipeline preset=minutes run.name=own": Small(
        f"evaluate.prompts=4 evaluate.rows=8 {FEW_STEPS}", "runs/own/chat/model.safetensors"
    ),
    "python -m cluster.pipeline preset=minutes run.name=aligned": Small(
        f"parent.model=runs/demo/chat evaluate.prompts=4 reward.steps=2 {FEW_ITERATIONS}",
        "runs/aligned/rl/model.safetensors",
    ),
    "python -m cluster.pipeline run.name=smol": Small(
        f"parent.model=parent sft.files=[short.jsonl] sft.row_length=64 {FEW_STEPS}",
        "runs/smol/chat/model.safetensors",
    ),
    "python -m moe.convert convert.source=runs/smol": Small("", "smol/certificate.json"),
    "python -m cluster.pipeline preset=demo": Small("preset=test run.name=demo", "runs/demo/report.html"),
    "python -m cluster.pipeline preset=demo run.name=wide": Small(
        f"preset=test pipeline.stages=[corpus,tokenizer,tokens,base] {FEW_STEPS}", "runs/wide/base/model.safetensors"
    ),
    "python -m trainers.pretrain run.name=wide": Small(
        f"preset=test model=tiny {FEW_STEPS} {NO_NETWORK}", "runs/wide/base/wandb"
    ),
    "python -m trainers.corpus run.name=clean": Small("corpus.max_documents=300", "runs/clean/corpus/report.html"),
    "python -m trainers.why": Small("", "runs/clean/corpus/report.json"),
    "python -m trainers.proxy.compare": Small(
        "preset=test run.name=demo proxy.tokens=20000 proxy.documents=50", "runs/demo/proxy/report.html"
    ),
    "python -m trainers.forget": Small("", "runs/clean/forgotten.jsonl"),
    "python -m trainers.forget run.name=demo forget.conversations": Elsewhere(
        "tests/trainers/trail/test_talks.py::test_what_is_forgotten_comes_neither_back_nor_into_rankings"
    ),
    "# my_steps.py": Elsewhere("tests/test_readme.py::test_the_step_of_the_readme_decides"),
    "python -m trainers.pretrain --help": Small(quick=True),
    "python -m trainers.pretrain -m": Small(
        f"preset=test run.name=demo optim.lr=1e-3,2e-3 {FEW_STEPS}", "runs/demo/sweeps/1-base/best.yaml"
    ),
    "python -m trainers.pretrain preset=demo run.config=": Small(
        f"preset=test run.name=demo run.rebuild=true {FEW_STEPS}", "runs/demo/base/model.safetensors"
    ),
    "python -m cluster.pipeline run.name=mine parent.model=": Small(
        f"preset=test corpus.max_documents=300 {PARENT} {FEW_STEPS}", "runs/mine/base/model.safetensors"
    ),
    "python -m moe.convert": Small("convert.source=parent", "out/certificate.json"),
    "python -m trainers.evaluate": Small(f"evaluate.model=runs/demo/chat {NO_NETWORK}", "result.json"),
    "python -m trainers.prune": Small("preset=test run.name=demo prune.keep=3 prune.target=pruned", "pruned"),
    "python -m moe.plan": Small(quick=True),
    # Stages that the whole run has made see that they are done; that they can be made, the whole run shows.
    **{f"python -m {module}": Small("preset=test run.name=demo", f"runs/demo/{s}") for s, module in JOBS.items()},
    "python -m trainers.parent": Small(
        "preset=test run.name=demo parent.model=parent", "runs/demo/parent/model.safetensors"
    ),
    "python -m cluster.report": Small("preset=test run.name=demo", "runs/demo/report.html"),
    "python -m trainers.hfft": Small(
        "preset=test run.name=demo hfft.steps=2 hfft.eval_every=2", "runs/demo/hfft/model.safetensors"
    ),
    "python -m trainers.cohft": Small(
        "preset=test run.name=demo cohft.steps=2 cohft.eval_every=2", "runs/demo/cohft/model.safetensors"
    ),
    "python -m rlhf.inspect": Small("run.name=demo inspect.step=2", "runs/demo/rl/iterations"),
    "python -m rlhf.replay": Small("run.name=demo replay.step=2", "runs/demo/rl/iterations"),
    "python -m rlhf.compare": Small("preset=test run.name=demo", "runs/demo/compared/comparison.json"),
    "python -m trainers.twin": Small(f"preset=test run.name=demo {FEW_STEPS}", "runs/demo/twin/model.safetensors"),
}
WITH_QUERIES = [readme for readme in READMES if lines(readme)]
BLOCKS = {tuple(block): block for readme in READMES for block in blocks(readme)}  # each once
COMMANDS = list({command: None for block in BLOCKS.values() for command in block})


def starts(command: Command) -> list[str]:
    return sorted((start for start in TABLE if command.text.startswith(start)), key=len)


def small(command: Command) -> Small | None:
    entry = TABLE[starts(command)[-1]]
    return entry if isinstance(entry, Small) else None


def short(text: str) -> str:
    return re.sub(r"\W+", "-", text)[:60].strip("-")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: short(command.text))
def test_every_command_has_an_entry_and_its_words_are_known(command: Command) -> None:
    assert starts(command), f"a README has a new command; say in TABLE how it is made small: {command.text}"
    entry = TABLE[starts(command)[-1]]
    if isinstance(entry, Elsewhere):
        file, name = entry.test.split("::")
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE)
    if command.text.startswith("make "):
        recipe = subprocess.run(["make", "-n", *command.words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert recipe.returncode == 0, recipe.stderr
        lines = [Command(line) for line in recipe.stdout.splitlines() if "bin/python -m" in line]
    else:
        lines = [] if command.python else [command]
    for words in (line.words for line in lines):
        if "-m" not in words:
            continue
        module, *rest = words[words.index("-m") + 1 :]
        if module.split(".")[0] in OWN:
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
            known = [word for word in rest if "=" in word and not word.startswith("run.config=")]
            _ = sweep(known, module=module) if "-m" in rest else compose(known)  # raises what the user would read


def test_no_entry_outlives_its_command() -> None:
    assert set(TABLE) - {starts(command)[-1] for command in COMMANDS} == set()


def arguments(command: Command, more: str) -> list[str]:
    if command.python:
        return [sys.executable, "-c", command.text]
    replaced = {word.partition("=")[0] for word in more.split()}
    kept = [word for word in command.words if word.partition("=")[0] not in replaced]
    assert kept[0] == "python"
    return [sys.executable, *kept[1:], *more.split()]


def run(command: Command, entry: Small, place: Path, **environment: str) -> str:
    words = arguments(command, entry.words)
    done = subprocess.run(words, cwd=place, env=os.environ | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    assert (place / entry.makes).exists(), f"{words} made no {entry.makes}"
    return done.stdout


QUICK = [command for command in COMMANDS if (entry := small(command)) and entry.quick]


@pytest.mark.parametrize("command", QUICK, ids=lambda command: short(command.text))
def test_a_quick_command_runs_as_it_stands(command: Command) -> None:
    entry = small(command)
    assert entry and run(command, entry, ROOT)


def test_the_step_of_the_readme_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = {command.text for command in COMMANDS if command.text.startswith("# my_steps.py")}
    (tmp_path / "my_steps.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    block = [Document("No!"), Document("Stop!!!!"), Document("Yes.")]
    taken(chain(Corpus(steps=["my_steps.calm"])), block, "{text}")
    assert [(one.text, one.verdict and (one.verdict.rule, one.verdict.value)) for one in block] == [
        ("No.", None), ("Stop!!!!", ("shouts", 4.0)), ("Yes.", None),
    ]  # fmt: skip


def test_the_domain_of_the_readme_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = {command.text for command in COMMANDS if command.text.startswith("# my_domain.py")}
    (tmp_path / "my_domain.py").write_text(text, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    domain = Domain.of(Tasks(domain="my_domain", options={"colour": 0.5}))
    query = Sample(id="q", task="t", messages=[{"role": "user", "content": "?"}])
    judge = domain.judge(tmp_path)
    assert [judge(query, text, True).reward for text in ("The sky is blue", "yes")] == [0.0, -1.0]
    assert len(text.splitlines()) <= 24


@pytest.mark.parametrize("readme", WITH_QUERIES)
def test_the_queries_of_the_readme_are_queries(readme: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text("\n".join(lines(readme)) + "\n", "utf-8")
    assert [sorted(query.fields) for query in read_queries(tmp_path / "q.jsonl")] == [
        ["choices"],
        ["checks"],
        ["reference"],
    ]


SLOW = [block for block in BLOCKS.values() if any((entry := small(each)) and not entry.quick for each in block)]


@pytest.fixture
def place(whole_run: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with what the READMEs' commands read."""
    from tests.moe.formats.foreign_models import foreign

    for name in (*OWN, "data"):  # as if it were the repository's root
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(whole_run, tmp_path / "runs" / "demo")
    foreign("llama", tmp_path / "parent")
    (tmp_path / "text.txt").write_text("举头望明月，低头思故乡。\n", "utf-8")
    short = [json.dumps({"instruction": f"{i}?", "output": f"{i}."}) + "\n" for i in range(40)]
    (tmp_path / "short.jsonl").write_text("".join(short), "utf-8")
    turns = [{"role": "user", "content": "一加一得几？"}, {"role": "assistant", "content": "二"}]
    (tmp_path / "questions.jsonl").write_text(json.dumps({"task": "sums", "messages": turns}) + "\n", "utf-8")
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("block", SLOW, ids=lambda block: short(block[0].text))
def test_a_block_runs_at_test_size(block: list[Command], place: Path) -> None:
    import ray

    for command in block:
        if (entry := small(command)) and not entry.quick:
            run(command, entry, place, RAY_ADDRESS=ray.get_runtime_context().gcs_address)

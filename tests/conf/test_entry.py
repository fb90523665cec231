"""The command line: every preset composes, every wrong word is one line that names it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from conf.entry import compose
from conf.errors import user_error
from conf.schema import Config, InputError, Principle
from conf.words import groups, knobs

ROOT = Path(__file__).parents[2]

WRONG = {  # word: the whole message
    "optim.lr=abc": "optim.lr=abc must be a number",
    "optim.lr=": "optim.lr= must be a number",
    "optim.lr=null": "optim.lr=null must be a value, not null",
    "optim.lrr=3": "optim.lrr: no such knob; did you mean optim.lr?; --help lists them all",
    "lr=3": "lr: no such knob; did you mean optim.lr?; --help lists them all",
    "+optim.lrr=3": "optim.lrr: no such knob; did you mean optim.lr?; --help lists them all",
    "+zzz=3": "zzz: no such knob; --help lists them all",
    "modle=small": "modle: no such knob; did you mean model?; --help lists them all",
    "model=smal": "model=smal: no such choice; there are base, demo, small, tiny",
    "preset=demmo": "preset=demmo: no such choice; there are demo, test, twin",
    "model": "model: which one? write model= and one of base, demo, small, tiny",
    "optim.lr": "optim.lr: a value is missing; write optim.lr=0.002",
    "=3": "=3: no knob is named; write knob=value",
    "tracker.kind=x": "tracker.kind=x must be one of none, wandb",
    "tokens.actors=1.5": "tokens.actors=1.5 must be a whole number",
    "run.rebuild=maybe": "run.rebuild=maybe must be true or false",
    "corpus.files=3": "corpus.files=3 must be a list: [a,b]",
    "rank.principles=[kind,clear]": (
        "rank.principles=[kind,clear] must be one of harmless, helpful, truthful, fluent, clear"
    ),
    "optim=3": "optim=3: optim is a section; set its knobs, such as optim.lr",
    "~optim.lr": "~optim.lr: a knob cannot be taken away, only set",
    "corpus.template={text": "corpus.template={text: the value cannot be read; quote it: 'corpus.template=\"{text\"'",
    "tasks.per_task.compose=x": "tasks.per_task.compose=x must be a whole number",
    "model.heads=7": "model.heads=7 must divide by model.kv_heads=3; try model.heads=9",
    "sft.weights.form=-1": "sft.weights.form=-1.0 must not be negative",
}


@pytest.mark.parametrize("word", WRONG)
def test_a_wrong_word_is_one_line_that_names_it(word: str) -> None:
    with pytest.raises(InputError) as refused:
        compose(["run.seed=3", word, "run.name=x"])
    assert str(refused.value) == WRONG[word]


def test_words_reach_the_tree() -> None:
    cfg = compose(
        ["model=tiny", "optim.lr=3e-4", "rank.principles=[helpful,clear]", "sft.weights.form=2", "preset=test"]
    )
    assert (cfg.model.hidden_size, cfg.optim.lr, cfg.run.name) == (64, 3e-4, "test")
    assert cfg.rank.principles == [Principle.helpful, Principle.clear]
    assert cfg.sft.weights == {"form": 2.0}
    assert compose(["tasks.per_task.dialogue=7"]).tasks.per_task["dialogue"] == 7


@pytest.mark.parametrize("word", [f"{group}={choice}" for group, choices in groups().items() for choice in choices])
def test_every_preset_composes(word: str) -> None:
    assert isinstance(compose([word]), Config)


def test_every_knob_takes_its_own_default_as_a_word() -> None:
    for name in ("optim.lr", "run.rebuild", "ppo.timeout", "corpus.max_line_bytes"):
        default, _ = knobs()[name]
        assert compose([f"{name}={str(default).lower()}"]) == compose([])


def test_a_wrapped_user_error_is_found() -> None:
    class TaskError(InputError):  # as Ray makes one: of both types, with the traceback for a text
        def __init__(self, cause: InputError) -> None:
            super().__init__("remote traceback\nover lines")
            self.cause = cause

    theirs = InputError("optim.lr=9 diverged; try 1e-3")
    assert user_error(TaskError(theirs)) is theirs
    assert user_error(ValueError("ours")) is None


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "cluster.pipeline", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_typo_ends_in_one_line_and_code_2() -> None:
    for words in (["optim.lrr=3"], ["--cfg", "job", "optim.lrr=3"]):
        ended = run(*words)
        assert ended.stderr == "error: optim.lrr: no such knob; did you mean optim.lr?; --help lists them all\n"
        assert (ended.returncode, ended.stdout) == (2, "")


def test_help_names_the_job_the_groups_and_the_knobs_at_once() -> None:
    took = []
    for _ in range(3):  # the best of three, for the machine may be busy
        began = time.monotonic()
        ended = run("--help")
        took.append(time.monotonic() - began)
    assert ended.returncode == 0
    assert ended.stdout.startswith("Run the stages of a preset in order")
    assert "usage: python -m cluster.pipeline [group=choice ...]" in ended.stdout
    assert "  model={base,demo,small,tiny}\n" in ended.stdout
    lines = {line.split("  ")[1]: line for line in ended.stdout.splitlines() if line.startswith("  ")}
    assert lines["tracker.kind=none"] == "  tracker.kind=none"
    assert lines["optim.clip=1.0"].endswith("  global gradient norm")
    assert min(took) < 2.0


def test_hydras_cfg_flag_prints_the_resolved_tree() -> None:
    ended = run("--cfg", "job", "optim.lr=0.5", "sft.weights.form=2")
    assert ended.returncode == 0, ended.stderr
    assert "  lr: 0.5\n" in ended.stdout and "    form: 2.0\n" in ended.stdout

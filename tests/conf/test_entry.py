"""The command line: every preset composes, every wrong word is one line that names it."""

import re
import shlex
import subprocess
import sys
from functools import reduce
from pathlib import Path
from typing import Any, cast

import pytest

from conf.entry import compose, sweep
from conf.errors import InputError, user_error
from conf.help import dict_knobs, groups, knobs, quoted
from conf.schema import Config

ROOT = Path(__file__).parents[2]

WRONG = {  # word: the whole message
    "optim.lr=abc": "optim.lr=abc must be a number",
    "optim.lr=": "optim.lr= must be a number",
    "optim.lr=null": "optim.lr=null must be a value, not null",
    "optim.lrr=3": "optim.lrr: no such knob; did you mean optim.lr?; --help all lists them",
    "ppo.rollouts=3": "ppo.rollouts: no such knob; it is called ppo.actors.rollout.count now; --help all lists them",
    "lr=3": "lr: no such knob; did you mean optim.lr?; --help all lists them",
    "+optim.lrr=3": "optim.lrr: no such knob; did you mean optim.lr?; --help all lists them",
    "+zzz=3": "zzz: no such knob; --help all lists them",
    "modle=small": "modle: no such knob; did you mean model?; --help all lists them",
    "model=smal": "model=smal: no such choice; there are base, demo, small, tiny",
    "preset=demmo": "preset=demmo: no such choice; there are assistant, demo, minutes, test, twin",
    "model": "model: which one? write model= and one of base, demo, small, tiny",
    "optim.lr": "optim.lr: a value is missing; write optim.lr=0.002",
    "=3": "=3: no knob is named; write knob=value",
    "tracker.kind=x": "tracker.kind=x must be one of none, wandb",
    "tokens.actors=1.5": "tokens.actors=1.5 must be a whole number",
    "run.rebuild=maybe": "run.rebuild=maybe must be true or false",
    "corpus.files=3": "corpus.files=3 must be a list: 'corpus.files=[3]'",
    "corpus.files=a,b": "corpus.files=a,b: a list is written 'corpus.files=[a,b]'",
    "optim.lr=1e-3,2e-3": "optim.lr=1e-3,2e-3: several values are a sweep, which -m runs",
    "optim.lr=(": "optim.lr=( must be a number",
    "tracker.kind=(": "tracker.kind=( must be one of none, wandb",
    "sft.weights={a}": "sft.weights={a}: names and values cannot be read; write sft.weights.<name>=<value>, "
    "a word for each",
    "run.config=none.yaml": "run.config=none.yaml: no such file; give the YAML of knobs that a sweep wrote",
    "rank.principles=[clear]": "rank.principles=[clear] must name at least two, or none for all",
    "ppo.rewards.model=x": "ppo.rewards.model=x must be a number",
    "ppo.lr=nan": "ppo.lr=nan must be greater than 0",
    "ppo.kl_coef=nan": "ppo.kl_coef=nan must not be negative",
    "ppo.advantages=groop": "ppo.advantages=groop must be one of gae, group, leave_one_out",
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
    assert cfg.rank.principles == ["helpful", "clear"]
    assert cfg.sft.weights == {"form": 2.0}
    assert compose(["tasks.per_task.dialogue=7"]).tasks.per_task["dialogue"] == 7


@pytest.mark.parametrize("name", dict_knobs())
def test_every_dict_is_given_whole_or_by_name_in_any_script(name: str) -> None:
    def of(config: Config) -> dict[str, Any]:
        return dict(reduce(getattr, name.split("."), cast(Any, config)))

    def added(*words: str) -> dict[str, float]:
        """What is there beside the defaults; some hold texts."""
        found = of(compose([*words]))
        assert {entry: found[entry] for entry in default} == default
        return {entry: float(value) for entry, value in found.items() if entry not in default}

    default = of(compose([]))
    assert added(f"{name}={{a:1,诗:2}}") == {"a": 1, "诗": 2}
    assert added(f"{name}.诗词=3", f"{name}.b=4") == {"诗词": 3, "b": 4}
    assert added(f"{name}={{}}") == {}


def test_a_text_of_any_script_needs_no_quotes() -> None:
    assert compose(["corpus.files=[数据/诗.txt, b.txt,'古 诗.txt']"]).corpus.files == [
        "数据/诗.txt",
        "b.txt",
        "古 诗.txt",
    ]
    assert compose(["run.name=唐诗"]).run.name == "唐诗"
    assert compose(['corpus.template="{form}：{text}"']).corpus.template == "{form}：{text}"


@pytest.mark.parametrize(
    "word",
    [
        "corpus.files=3",
        "corpus.files=数据/诗.txt",
        'corpus.files="[数据/诗.txt]"',
        "corpus.files=a b.txt,数据/诗.txt",
        "corpus.files=[poems(1).txt,诗(2).txt]",
        "corpus.files=[a=b.txt]",
        "corpus.template={form}《{title}》",
        'corpus.template={"text',
        "corpus.template=a,b",
        "run.name=a(1)",
        "run.name=it's",
        "sft.weights={form}",
        "steps=5",
        "lr=3",
        "weights={form:2}",
        "optim.lr",
        "model",
        "preset",
    ],
)
def test_who_follows_the_advice_gets_on(word: str) -> None:
    with pytest.raises(InputError) as refused:
        compose([word], module="trainers.sft")
    told = str(refused.value)
    if near := re.search(r"did you mean ([\w.]+)\?", told):
        advised = near[1] + word[word.index("=") :]
    elif one := re.search(r"write (\w+)= and one of (\w+)", told):
        advised = f"{one[1]}={one[2]}"
    elif "a word for each" in told:
        advised = told.rpartition("write ")[2].split(",")[0].replace("<name>", "a").replace("<value>", "1")
    else:
        [advised] = shlex.split(re.search(r"('[\w.]+=.*|[\w.]+=\S+)$", told)[0])  # type: ignore[index]
    config = compose([advised], module="trainers.sft")
    if word.startswith("corpus.files=") and "3" not in word:
        assert config.corpus.files == [text.strip() for text in word.partition("=")[2].strip('"[]').split(",")]
    elif word.startswith(("corpus.template=", "run.name=")):
        section, knob = word.partition("=")[0].split(".")
        assert getattr(getattr(config, section), knob) == word.partition("=")[2]


@pytest.mark.parametrize("text", ["", "a", '"', "\\", '\\"', "a\\", "{x}: [y], (z)", "床前'明月'", "a=b c"])
def test_a_quoted_text_is_read_as_it_was(text: str) -> None:
    assert compose([f"corpus.template={quoted(text)}", "run.seed=3"]).corpus.template == text


def test_a_knob_without_its_section_is_first_sought_where_the_job_reads() -> None:
    for module, knob in (("trainers.pretrain", "pretrain"), ("trainers.sft", "sft"), ("trainers.reward", "reward")):
        with pytest.raises(InputError, match=rf"steps: no such knob; did you mean {knob}.steps\?"):
            compose(["steps=5"], module=module)
    with pytest.raises(InputError, match=r"prompts: no such knob; did you mean ppo.prompts\?"):
        compose(["prompts=5"], module="rlhf.ppo")


def test_a_file_of_knobs_stands_before_the_words(tmp_path: Path) -> None:
    file = tmp_path / "最好.yaml"
    file.write_text(
        "model: tiny\noptim: {lr: 0.25, no_decay: ['*.a b*', 诗]}\nsft: {weights: {诗: 2, b: 1}}\n"
        "corpus: {template: '{form}: \"{text}\"\\n'}\npretrain: {steps: 7}\n",
        "utf-8",
    )
    config = compose(["preset=demo", f"run.config={file}", "pretrain.steps=9"])
    assert (config.model.hidden_size, config.optim.lr, config.pretrain.steps) == (64, 0.25, 9)
    assert (config.optim.no_decay, config.sft.weights) == (["*.a b*", "诗"], {"诗": 2.0, "b": 1.0})
    assert config.corpus.template == '{form}: "{text}"\\n' and config.sft.steps == 280
    file.write_text("optim: {lrr: 1}", "utf-8")
    with pytest.raises(InputError, match=r"^optim.lrr: no such knob; did you mean optim.lr\?"):
        compose([f"run.config={file}"])
    for content in ("3", "a: [", "a: b: c", "[optim]"):
        file.write_text(content, "utf-8")
        with pytest.raises(InputError, match="^run.config=.*") as refused:
            compose([f"run.config={file}", "run.seed=1"])
        assert "\n" not in str(refused.value)


def test_words_of_a_sweep_are_combined_as_hydra_has_them() -> None:
    def swept(*words: str) -> list[list[str]]:
        return [apart for _, apart in sweep(list(words), module="trainers.pretrain")]

    assert swept("run.name=x", "optim.lr=1e-3,2e-3", "model=tiny,demo") == [
        ["optim.lr=0.001", "model=tiny"],
        ["optim.lr=0.001", "model=demo"],
        ["optim.lr=0.002", "model=tiny"],
        ["optim.lr=0.002", "model=demo"],
    ]
    assert swept("pretrain.steps=range(1,6,2)") == [["pretrain.steps=1"], ["pretrain.steps=3"], ["pretrain.steps=5"]]
    assert swept("model=glob(*,exclude=b*)") == [["model=demo"], ["model=small"], ["model=tiny"]]
    assert swept("optim.kind=choice(muon,adamw)") == [["optim.kind=muon"], ["optim.kind=adamw"]]
    assert swept("optim.no_decay=[a,b],[诗]", "sft.weights.诗=1,2")[2] == ['optim.no_decay=["诗"]', "sft.weights.诗=1"]
    whole, apart = sweep(["run.name=x", "optim.lr=1,2", "run.seed=4"], module="trainers.pretrain")[1]
    assert (whole, apart) == (["run.name=x", "optim.lr=2", "run.seed=4"], ["optim.lr=2"])
    assert compose(sweep(["optim.no_decay=[a],[诗]"], module="")[1][0]).optim.no_decay == ["诗"]
    with pytest.raises(
        InputError, match=r"^optim.lr=interval\(0,1\): endless values; write some, such as optim.lr=a,b$"
    ):
        swept("optim.lr=interval(0,1)")
    with pytest.raises(InputError, match=r"^optim.lr=\(1 must be a number$"):
        swept("optim.lr=(1")


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
        assert ended.stderr == "error: optim.lrr: no such knob; did you mean optim.lr?; --help all lists them\n"
        assert (ended.returncode, ended.stdout) == (2, "")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run.seed=3", "--cgf", "job"], "unrecognized arguments: --cgf"),
        (["--cfg", "jbo"], "argument --cfg/-c: invalid choice: 'jbo'"),
        (["run.seed=3", "-m", "--cfg", "job"], "--cfg does not go with -m"),
    ],
)
def test_a_flag_that_is_none_ends_in_one_line(words: list[str], told: str) -> None:
    ended = run(*words)
    assert ended.returncode == 2 and ended.stderr.startswith(f"error: {told}"), ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and not ended.stdout


def test_hydras_cfg_flag_prints_the_resolved_tree() -> None:
    ended = run("optim.lr=0.5", "--cfg", "job", "sft.weights={诗:2}")
    assert ended.returncode == 0, ended.stderr
    assert "  lr: 0.5\n" in ended.stdout and "    诗: 2.0\n" in ended.stdout and "  kind: muon\n" in ended.stdout


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "who gives a knob its old name is told the new one",
        "conf/help.py",
        "    if name in RENAMED:\n",
        "    if name in ():\n",
        "test_a_wrong_word_is_one_line_that_names_it",
    ),
    ("a dict may be given whole", "conf/words.py", 'value.startswith("{")', 'value.startswith("<")', None),
    (
        "a word of the command line wins over a file's",
        "conf/entry.py",
        "words = [*file_words(overrides), *overrides]",
        "words = [*overrides, *file_words(overrides)]",
        "test_a_file_of_knobs_stands_before_the_words",
    ),
    (
        "advice about a list can be followed",
        "conf/help.py",
        "item if _PLAIN.fullmatch(item) else quoted(item)",
        "item",
        "test_who_follows_the_advice_gets_on",
    ),
    (
        "the job's own section comes first",
        "conf/help.py",
        'for section in SECTIONS.get(module, "").split():',
        'for section in ["sft"]:',
        "test_a_knob_without_its_section_is_first_sought_where_the_job_reads",
    ),
]

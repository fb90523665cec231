"""A sweep: which knobs may differ, who is hopeless, what becomes of failures, and what the best leaves."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cluster.run import JOBS, open_stage
from cluster.sweep import __main__ as command
from cluster.sweep.page import order, page
from cluster.sweep.shared import check, inputs
from cluster.sweep.trial import MEASURES, Trial, best, curve, hopeless
from conf.entry import compose
from conf.errors import InputError
from conf.help import SECTIONS

ROOT = Path(__file__).parents[2]
TOY = "tests.cluster.toy_stage"
LOSS, REWARD = MEASURES["base"], MEASURES["rl"]


def trial(number: int, *points: float, steps: int = 4, **fields: Any) -> Trial:
    """A job that measured `points` at steps 1, 2, ..."""
    return Trial(number=number, words=[f"optim.lr={number}"], steps=steps, curve=list(enumerate(points, 1)), **fields)


def test_who_is_worse_than_the_median_of_the_others_at_the_same_step_is_hopeless() -> None:
    others = [trial(1, 5.0, 4.0, 3.0), trial(2, 6.0, 5.0), trial(3, 9.0, 8.0)]  # medians 6.0, 5.0, and one alone
    assert hopeless(trial(4, 7.0), others, LOSS, grace=0.25) == (1, 6.0)
    assert hopeless(trial(4, 6.0), others, LOSS, grace=0.25) is None  # as good is not worse
    assert hopeless(trial(4, 1.0, 5.1), others, LOSS, grace=0.25) == (2, 5.0)  # the last step counts
    assert hopeless(trial(4, 9.0, 4.9), others, LOSS, grace=0.25) is None
    assert hopeless(trial(4, 7.0), others, LOSS, grace=0.3) is None  # within its grace
    assert hopeless(trial(4, 9.0, 9.0, 9.0), others, LOSS, grace=0.0) is None  # one other was there: no median
    assert hopeless(trial(4, 9.0, 9.0, steps=2), others, LOSS, grace=0.0) is None  # it has ended anyhow
    assert hopeless(trial(4, 7.0, steps=0), others, LOSS, grace=0.9) == (1, 6.0)  # nobody knows its length
    assert hopeless(trial(4, math.nan), others, LOSS, grace=0.0) == (1, 6.0)
    assert hopeless(trial(4), others, LOSS, grace=0.0) is None
    assert hopeless(trial(4, 7.0), others, REWARD, grace=0.0) is None  # more is better
    assert hopeless(trial(4, 5.0), others, REWARD, grace=0.0) == (1, 6.0)


def test_the_best_is_of_those_that_are_done_and_the_first_of_equals() -> None:
    jobs = [
        trial(1, 0.1, state="stopped"),
        trial(2, state="done", metric=2.0),
        trial(3, state="done", metric=math.nan),
        trial(4, state="done", metric=1.5),
        trial(5, state="done", metric=1.5),
        trial(6, state="failed"),
    ]
    assert best(jobs, LOSS) is jobs[3] and best(jobs, REWARD) is jobs[1]
    assert best(jobs[:1], LOSS) is None
    assert [job.number for job in order(jobs, LOSS)] == [4, 5, 2, 3, 1, 6]
    text = page("x: <sweep>", jobs, LOSS, jobs[3])
    assert (
        "x: &lt;sweep&gt;" in text
        and text.count("<tr>") == 7
        and "<svg" in text
        and "http" not in text.replace("http://www.w3.org", "")
    )


def test_a_step_taken_again_counts_as_it_was_last(tmp_path: Path) -> None:
    lines = [{"step": 2, "val/loss": 3.0}, {"step": 1, "loss": 4.0}, {"step": 4, "val/loss": "nan"}]
    lines += [{"step": 2, "val/loss": 2.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = curve(tmp_path, LOSS)
    assert first == (2, 2.5) and second[0] == 4 and math.isnan(second[1])


@pytest.mark.parametrize(
    ("stage", "words", "told"),
    [
        ("base", ["tokens.row_length=64", "tokens.row_length=96"], "tokens.row_length=64,96: decides the stage tokens, "
         "which the jobs of a sweep share; make a run of each, with a run.name of its own"),
        ("base", ["parent.model=a", "parent.model=b"], "parent.model=a,b: decides the stage tokenizer, which"),
        ("chat", ["sft.files=[a]", "sft.files=[b]"], "sft.files=['a'],['b']: decides the stage tasks, which"),
        ("chat", ["pretrain.steps=1", "pretrain.steps=2"], "pretrain.steps=1,2: decides the stage base, which"),
        ("base", ["sft.steps=1", "sft.steps=2"], "sft.steps=1,2: trainers.pretrain does not read it"),
        ("base", ["run.name=a", "run.name=b"], "run.name=a,b: the jobs of a sweep share one run; only run.seed may"),
        ("base", ["evaluate.rows=1", "evaluate.rows=2"], "evaluate.rows=1,2: jobs are only comparable if they are"),
        ("base", ["preset=demo", "preset=test"], "run.name=demo,test: the jobs of a sweep share one run"),
    ],
)  # fmt: skip
def test_knobs_that_may_not_differ_are_refused_by_name(stage: str, words: list[str], told: str) -> None:
    with pytest.raises(InputError) as refused:
        check(JOBS[stage], stage, [compose([word]) for word in words])
    assert str(refused.value).startswith(told)


def test_knobs_that_may_differ() -> None:
    for stage, *words in (
        ("base", "optim.lr=1", "run.seed=2", "model=tiny", "parent.experts=4", "pretrain.steps=9", "adapt.lora_rank=2"),
        ("chat", "sft.weights.form=2", "sft.curriculum.stages=2", "optim.lr=1", "sft.weights.form=1"),
        ("rl", "ppo.kl_coef=1", "ppo.rewards.model=0.5"),
    ):
        check(JOBS[stage], stage, [compose([]), *(compose([word]) for word in words)])


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a run whose stage base is a toy and whose stage tokens is there."""
    monkeypatch.setitem(JOBS, "base", TOY)
    monkeypatch.setitem(SECTIONS, TOY, SECTIONS["trainers.pretrain"])
    monkeypatch.setattr(command, "connect", lambda cluster: None)
    monkeypatch.setattr(command, "at_once", lambda cfg, jobs, own: (2, 1))
    monkeypatch.setattr(command, "_address", lambda: "none")
    monkeypatch.chdir(ROOT)
    words = [f"run.dir={tmp_path}", "run.name=x", "pretrain.steps=4", "evaluate.timeout=0.02", "sweep.stop=none"]
    with open_stage(compose(words), "tokens", reads=[], settings={}) as stage:
        (stage.folder / "rows").write_text("rows")
        stage.finish({})
    return words


def test_failures_are_told_the_others_go_on_and_the_best_is_a_file_of_knobs(
    toy: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*toy, "optim.lr=0.3,9,0.5,0.2,-1", "pretrain.batch_rows=7"]
    told = command.main(TOY, words)
    folder = tmp_path / "x" / "sweeps" / "1-base"
    assert [job["state"] for job in told["jobs"]] == ["done", "failed", "failed", "done", "failed"]
    assert [job["metric"] for job in told["jobs"]] == [3.0, None, None, 2.0, None] and told["best"] == 4
    errors = [job["error"] for job in told["jobs"]]
    assert errors[1] == f"{tmp_path}/x: optim.lr=9.0 diverged; try run.name=x"  # the run's, not the job's
    assert "(exit code 7; see " in errors[2] and errors[4] == "optim.lr=-1.0 must be greater than 0"
    assert told["jobs"][3]["curve"][0] == [1, 3.0] and told["jobs"][3]["steps"] == 4
    assert json.loads((folder / "sweep.json").read_text()) == told
    assert "best</td>" in (folder / "sweep.html").read_text("utf-8")
    shown = capsys.readouterr().out
    assert "[2/5] optim.lr=9: failed: " in shown and "best: optim.lr=0.2 (loss 2)" in shown
    # what the jobs read is the run's own, not a copy
    assert (folder / "x-1-4" / "tokens").is_symlink()
    assert (folder / "x-1-4" / "tokens" / "rows").samefile(tmp_path / "x" / "tokens" / "rows")
    again = compose([f"run.dir={tmp_path}", "run.name=x", f"run.config={folder / 'best.yaml'}"])
    assert (again.optim.lr, again.pretrain.steps, again.pretrain.batch_rows) == (0.2, 4, 7)
    # the best job's stage is what the run would make with these knobs: it can be taken as it is
    (tmp_path / "x" / "base").symlink_to(folder / "x-1-4" / "base")
    with open_stage(
        again, "base", reads=["tokens"], settings={"optim": again.optim, "pretrain": again.pretrain}
    ) as kept:
        assert kept.done and kept.metrics == {"loss": 2.0}


def test_the_same_command_goes_on_where_it_was(toy: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*toy, "optim.lr=0.3,9,0.2"]
    first = command.main(TOY, words)
    folder = tmp_path / "x" / "sweeps" / "1-base"
    record = json.loads((folder / "sweep.json").read_text())
    record["jobs"][2]["state"] = "running"  # as a killed sweep leaves it
    (folder / "sweep.json").write_text(json.dumps(record))
    (folder / "x-1-3" / "base" / "manifest.json").unlink()
    started, start = list[int](), command.Sweep.start

    def noted(sweep: Any, trial: Trial, *given: Any) -> Any:
        started.append(trial.number)
        return start(sweep, trial, *given)

    monkeypatch.setattr(command.Sweep, "start", noted)
    again = command.main(TOY, [*words, "sweep.concurrent=1"])
    attempts = [(folder / f"x-1-{number}" / "base" / "attempts").read_text().count("once") for number in (1, 3)]
    assert attempts == [1, 2] and again["best"] == first["best"] == 3 and again["number"] == 1
    assert 1 not in started and 3 in started
    other = command.main(TOY, [*toy, "optim.lr=0.1,0.2"])  # other words: another sweep
    assert other["number"] == 2 and other["best"] == 1


def test_a_hopeless_job_is_stopped_and_stays_so(toy: list[str], tmp_path: Path) -> None:
    words = [word for word in toy if not word.startswith("sweep.")] + ["sweep.grace=0.5", "optim.lr=0.1,0.2,0.9,0.12"]
    told = command.main(TOY, [*words, "evaluate.timeout=0.7"])  # slow enough to be seen between its steps
    assert [job["state"] for job in told["jobs"]] == ["done", "done", "stopped", "done"]
    stopped = told["jobs"][2]
    assert stopped["error"] in {
        f"worse at step {n} than the others' median of {whole + 1 / n:.4g}" for n in (2, 3) for whole in (1.5, 1.2)
    }
    assert 2 <= stopped["curve"][-1][0] < 4 and told["best"] == 1
    again = command.main(TOY, [*words, "evaluate.timeout=0.7"])
    assert [job["state"] for job in again["jobs"]] == ["done", "done", "stopped", "done"]
    assert (tmp_path / "x" / "sweeps" / "1-base" / "x-1-3" / "base" / "attempts").read_text().count("once") == 1


def test_a_stopped_sweep_ends_its_jobs_and_says_how_to_go_on(toy: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from conf.help import SECTIONS; from cluster.run import JOBS\n"
        "from cluster.sweep import __main__ as c\n"
        f"JOBS['base'] = {TOY!r}; SECTIONS[{TOY!r}] = SECTIONS['trainers.pretrain']; c.connect = lambda cluster: None;"
        "c.at_once = lambda cfg, jobs, own: (2, 1); c._address = lambda: 'none'; c.main(sys.argv[1], sys.argv[2:])"
    )
    words = [*toy, "optim.lr=0.1,0.2,0.3", "evaluate.timeout=60"]
    sweep = subprocess.Popen([sys.executable, "-c", code, TOY, *words], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    record = tmp_path / "x" / "sweeps" / "1-base" / "sweep.json"
    jobs: list[dict[str, Any]] = []
    for _ in range(600):
        jobs = json.loads(record.read_text())["jobs"] if record.exists() else []
        if sum(bool(job["curve"]) for job in jobs) == 2:
            break
        time.sleep(0.1)
    sweep.send_signal(signal.SIGTERM)
    _, err = sweep.communicate(timeout=60)
    assert sweep.returncode == 143
    assert f"stopped by SIGTERM; the same command continues: python -m {TOY} -m run.dir={tmp_path}" in err
    for job in jobs[:2]:
        with pytest.raises(ProcessLookupError):
            os.kill(job["process"], 0)
    assert [job["state"] for job in json.loads(record.read_text())["jobs"]] == ["waiting"] * 3


def test_what_cannot_be_swept_is_one_line(toy: list[str], tmp_path: Path) -> None:
    for module, words, told in (
        ("trainers.corpus", ["corpus.seed=1,2"], "trainers.corpus -m: nothing to sweep; -m goes with "),
        (TOY, [*toy, "optim.lr=1"], f"{TOY} -m: no word has several values; write one such as optim.lr=1e-3,2e-3"),
        (TOY, [*toy, "optim.lrr=1,2"], "optim.lrr: no such knob; did you mean optim.lr?"),
        (TOY, [*toy, "optim.lr=9,10"], f"no job of the sweep came to its end; the first: {tmp_path}/x: optim.lr=9.0"),
        (
            TOY,
            [*toy, "run.name=y", "optim.lr=1,2"],
            f"{tmp_path}/y: no finished stage for the jobs of a sweep to share",
        ),
    ):
        with pytest.raises(InputError) as refused:
            command.main(module, words)
        assert str(refused.value).startswith(told)
    assert not (tmp_path / "y").exists()
    with pytest.raises(InputError, match=r"make them first: python -m cluster.pipeline run.name=y 'pipeline.stages=\["):
        inputs(compose([f"run.dir={tmp_path}", "run.name=y"]), "chat")


def test_the_flag_stands_before_or_behind_the_words(tmp_path: Path) -> None:
    for words in (["-m", "run.name=x", "optim.lr=1"], ["run.name=x", "optim.lr=1", "--multirun"]):
        ended = subprocess.run(
            [sys.executable, "-m", "trainers.pretrain", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.startswith("error: trainers.pretrain -m: no word has several values"), ended.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_sweep_of_the_learning_rate_on_ray(whole_run: Path, tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    for stage in ("corpus", "tokenizer", "tokens"):
        (tmp_path / "test" / stage).symlink_to(whole_run / stage)
    words = ["preset=test", f"run.dir={tmp_path}", "optim.lr=1e-4,5e-3,1e30,1e-3", "sweep.stop=none", "spikes.limit=2"]
    told = command.main("trainers.pretrain", [*words, "pretrain.steps=8", "pretrain.eval_every=4"])
    assert [job["state"] for job in told["jobs"]] == ["done", "done", "failed", "done"]
    assert told["jobs"][2]["error"].startswith("stage base ended at step ")
    assert told["best"] == 2 and told["jobs"][1]["metric"] < told["jobs"][3]["metric"] < told["jobs"][0]["metric"]
    assert [step for step, _ in told["jobs"][1]["curve"]] == [4, 8]
    folder = tmp_path / "test" / "sweeps" / "1-base"
    assert (folder / "test-1-2" / "base" / "model.safetensors").is_file()
    assert {(folder / f"test-1-{n}" / "tokens").resolve() for n in (1, 2, 3, 4)} == {(whole_run / "tokens").resolve()}


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a failed job does not end the sweep",
        "cluster/sweep/__main__.py",
        'trial.state, trial.error = "failed", self.reason(trial, code)',
        "raise InputError(self.reason(trial, code))",
        "test_failures_are_told_the_others_go_on_and_the_best_is_a_file_of_knobs",
    ),
    (
        "the jobs of a sweep share their inputs",
        "cluster/sweep/__main__.py",
        "(place / name).symlink_to(os.path.relpath(self.cfg.run.folder / name, place))",
        "__import__('shutil').copytree(self.cfg.run.folder / name, place / name)",
        "test_failures_are_told_the_others_go_on_and_the_best_is_a_file_of_knobs",
    ),
    (
        "a job is compared at the step it is at",
        "cluster/sweep/trial.py",
        "dict(other.curve).get(step, math.nan)",
        "other.curve[-1][1]",
        "test_who_is_worse_than_the_median_of_the_others_at_the_same_step_is_hopeless",
    ),
    (
        "what is done is not done again",
        "cluster/sweep/__main__.py",
        'if known["state"] == "done" and',
        'if known["state"] == "never" and',
        "test_the_same_command_goes_on_where_it_was",
    ),
    (
        "a sweep's best is the lowest loss",
        "cluster/sweep/trial.py",
        "if measure.higher else one < other",
        "if not measure.higher else one < other",
        "test_the_best_is_of_those_that_are_done_and_the_first_of_equals",
    ),
    (
        "an input may not differ within a sweep",
        "cluster/sweep/shared.py",
        "if owner := _INPUTS.get(knob) or owners.get(section):",
        "if owner := None:",
        "test_knobs_that_may_not_differ_are_refused_by_name",
    ),
]

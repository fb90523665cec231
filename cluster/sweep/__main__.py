"""Run one stage with several values of its knobs, on the inputs that the run has: what `-m` before the words does.

python -m trainers.pretrain -m run.name=demo preset=demo optim.lr=1e-3,2e-3,4e-3

Each job is the stage's own command in a folder of its own, runs/<name>/sweeps/<n>-<stage>/<name>-<n>-<job>, in which
the stages it reads are links to the run's. The same command continues a sweep that was stopped.
"""

import dataclasses
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import ray

from cluster.connect import connect
from cluster.run import JOBS, locked
from cluster.storage import MANIFEST, read_json, write_file, write_json
from cluster.sweep import shared
from cluster.sweep.page import page, table
from cluster.sweep.shared import RECORD
from cluster.sweep.trial import MEASURES, Measure, Trial, best, curve, final, hopeless
from cluster.tracking.tracker import FILE as METRICS
from conf.entry import compose, in_one_line, settings_yaml, sweep
from conf.errors import InputError
from conf.help import quoted
from conf.knobs.running import SweepStop
from conf.schema import Config

BEST, PAGE, LOG = "best.yaml", "sweep.html", "log.txt"
_POLL = 0.5  # seconds
_END_WITHIN = 60.0  # seconds that a job has to save after SIGTERM


def main(module: str, words: list[str]) -> dict[str, Any]:
    """Run the sweep of the job `module` that `words` ask for; returns what sweep.json holds. Raises `InputError` for
    one that cannot be, or of which no job came to its end."""
    stage = {job: name for name, job in JOBS.items()}.get(module, "")
    if stage not in MEASURES:
        raise InputError(f"{module} -m: nothing to sweep; -m goes with {', '.join(JOBS[name] for name in MEASURES)}")
    asked = sweep(words, module=module)
    if len(asked) < 2:
        raise InputError(f"{module} -m: no word has several values; write one such as optim.lr=1e-3,2e-3")
    configs, trials = _composed(module, asked, MEASURES[stage])
    first = next(iter(configs.values()))
    shared.check(module, stage, list(configs.values()))
    inputs = shared.inputs(first, stage)
    with locked(first.run.folder / f".sweep-{stage}.lock", f"a sweep of stage {stage} in {first.run.folder}"):
        kept = [word for word in words if not word.startswith("sweep.")]  # how it is run may change
        this = Sweep(module, stage, kept, inputs, first, *shared.place(first, module, stage, kept, inputs))
        this.take_up(trials)
        this.run(asked, configs)
        return this.told()


def _composed(
    module: str, asked: Sequence[tuple[list[str], list[str]]], measure: Measure
) -> tuple[dict[int, Config], list[Trial]]:
    """The config of each job by its number, and the jobs; one that cannot be is failed from the start."""
    configs, trials = {}, []
    section, steps = measure.length.split(".")
    for number, (words, apart) in enumerate(asked, start=1):
        trial = Trial(number=number, words=apart)
        try:
            configs[number] = compose(words, module=module)
            knobs = getattr(configs[number], section)
            trial.steps = 0 if getattr(knobs, "epochs", 0) else getattr(knobs, steps)
        except InputError as error:
            trial.state, trial.error = "failed", str(error)
        trials.append(trial)
    if not configs:
        raise InputError(trials[0].error)
    return configs, trials


@dataclasses.dataclass
class Sweep:
    module: str
    stage: str
    words: list[str]
    inputs: dict[str, str]  # stage: digest of its manifest
    cfg: Config
    number: int
    folder: Path
    trials: list[Trial] = dataclasses.field(default_factory=list)

    @property
    def measure(self) -> Measure:
        return MEASURES[self.stage]

    def place(self, trial: Trial) -> Path:
        """The run folder of a job."""
        return self.folder / f"{self.cfg.run.name}-{self.number}-{trial.number}"

    def take_up(self, trials: list[Trial]) -> None:
        """Have these jobs; of what an earlier start of the sweep did, what is done or was stopped stays so."""
        self.trials = trials
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / RECORD).exists():
            known = {job["number"]: job for job in read_json(self.folder / RECORD)["jobs"]}
            for trial in trials:
                self._take_up(trial, known.get(trial.number, {}))
        self.record()

    def _take_up(self, trial: Trial, known: Mapping[str, Any]) -> None:
        if known.get("words") != trial.words or trial.state == "failed":
            return
        _end_orphan(known.get("process", 0), self.place(trial))
        stage = self.place(trial) / self.stage
        trial.curve, trial.seconds = curve(stage, self.measure), known["seconds"]
        if known["state"] == "done" and (stage / MANIFEST).exists():
            trial.state, trial.metric = "done", final(stage, self.measure)
        elif known["state"] == "stopped":
            trial.state, trial.error = "stopped", known["error"]

    def run(self, asked: Sequence[tuple[list[str], list[str]]], configs: Mapping[int, Config]) -> None:
        """Run the jobs that are waiting, some at a time, until each has ended."""
        waiting = [trial for trial in self.trials if trial.state == "waiting"]
        for trial in self.trials:
            if trial.state == "failed":
                self.say(trial, f"failed: {trial.error}")
        if not waiting:
            return
        own = not os.environ.get("RAY_ADDRESS")
        connect(self.cfg.cluster)
        width, threads = at_once(configs[waiting[0].number], len(waiting), own=own)
        print(
            f"sweep {self.number} of {self.stage}: {len(waiting)} jobs, {width} at a time, in {_short(self.folder)}",
            flush=True,
        )
        environment = os.environ | {"RAY_ADDRESS": _address(), "PYTHONUNBUFFERED": "1"}
        running: dict[int, subprocess.Popen[bytes]] = {}
        with self.stoppable(running):
            while waiting or running:
                while waiting and len(running) < width:
                    trial = waiting.pop(0)
                    words = list(asked[trial.number - 1][0])
                    if threads and not configs[trial.number].cluster.threads:
                        words.append(f"cluster.threads={threads}")
                    running[trial.number] = self.start(trial, words, environment)
                    self.record()
                time.sleep(_POLL)
                for number in list(running):
                    if self.look(self.trials[number - 1], running[number]):
                        del running[number]

    def start(self, trial: Trial, words: Sequence[str], environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        place = self.place(trial)
        place.mkdir(parents=True, exist_ok=True)
        for name in self.inputs:
            if not (place / name).is_symlink():
                (place / name).symlink_to(os.path.relpath(self.cfg.run.folder / name, place))
        own = [f"run.dir={quoted(str(self.folder))}", f"run.name={quoted(place.name)}"]
        command = [sys.executable, "-m", self.module, *words, *own]
        with open(place / LOG, "ab") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        trial.state, trial.process, trial.error, trial.began = "running", process.pid, "", time.time()
        self.say(trial, "begun")
        return process

    def look(self, trial: Trial, process: "subprocess.Popen[bytes]") -> bool:
        """Take note of what the job has measured, and end it if it is hopeless; whether it has ended."""
        stage = self.place(trial) / self.stage
        code = process.poll()
        seen = curve(stage, self.measure) if (stage / METRICS).exists() else []
        if repr(seen) != repr(trial.curve):  # NaN is not NaN
            trial.curve = seen
            if code is None and seen:
                self.say(trial, f"{self.measure.curve} {seen[-1][1]:.4g} at step {seen[-1][0]}")
                self.judge(trial, process)
                code = process.poll()
            self.record()
        if code is None:
            return False
        trial.pause()
        if trial.state == "stopped":
            self.say(trial, f"stopped: {trial.error}")
        elif code == 0 and (stage / MANIFEST).exists():
            trial.state, trial.metric = "done", final(stage, self.measure)
            self.say(trial, f"done: {self.measure.final} {trial.metric:.4g}")
        else:
            trial.state, trial.error = "failed", self.reason(trial, code)
            self.say(trial, f"failed: {trial.error}")
        self.record()
        return True

    def judge(self, trial: Trial, process: "subprocess.Popen[bytes]") -> None:
        if self.cfg.sweep.stop is SweepStop.none:
            return
        others = [other for other in self.trials if other is not trial]
        if found := hopeless(trial, others, self.measure, grace=self.cfg.sweep.grace):
            step, middle = found
            trial.state = "stopped"
            trial.error = f"worse at step {step} than the others' median of {middle:.4g}"
            _end(process)

    def reason(self, trial: Trial, code: int) -> str:
        """Why a job failed, in one line: its own, with the run's folder and name for those of the job."""
        place = self.place(trial)
        lines = [line for line in (place / LOG).read_text("utf-8", "replace").splitlines() if line.strip()]
        told = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")
        told = told.removeprefix("error: ").replace(str(place), str(self.cfg.run.folder))
        told = re.sub(rf"run\.name={re.escape(place.name)}\b", f"run.name={self.cfg.run.name}", told)
        return (
            told if code == 2 else f"{told or 'it ended without a word'} (exit code {code}; see {_short(place / LOG)})"
        )

    def say(self, trial: Trial, what: str) -> None:
        print(f"[{trial.number}/{len(self.trials)}] {trial.name}: {what}", flush=True)

    @contextmanager
    def stoppable(self, running: Mapping[int, "subprocess.Popen[bytes]"]) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the jobs, which save, and then the sweep."""

        def stop(number: int, frame: FrameType | None) -> None:
            signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
            raise SystemExit(128 + number)

        main_thread = threading.current_thread() is threading.main_thread()
        old = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)} if main_thread else {}
        try:
            yield
        except SystemExit as ended:
            again = shlex.join(["python", "-m", self.module, "-m", *self.words])
            name = signal.Signals(int(str(ended.code)) - 128).name
            print(f"\nstopped by {name}; the same command continues: {again}", file=sys.stderr, flush=True)
            raise
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                _end(process)
            for trial in self.trials:
                if trial.state == "running":
                    trial.state = "waiting"
                    trial.pause()
            self.record()
            for number, handler in old.items():
                signal.signal(number, handler)

    def record(self) -> None:
        write_json(self.folder / RECORD, self.told_so_far())

    def told_so_far(self) -> dict[str, Any]:
        winner = best(self.trials, self.measure)
        return {
            "number": self.number,
            "module": self.module,
            "stage": self.stage,
            "words": self.words,
            "inputs": self.inputs,
            "metric": self.measure.final,
            "higher_is_better": self.measure.higher,
            "best": winner.number if winner else None,
            "jobs": [trial.told() | {"folder": self.place(trial).name} for trial in self.trials],
        }

    def told(self) -> dict[str, Any]:
        """Show the table, write the report and the best job's knobs; what sweep.json holds."""
        self.record()
        winner = best(self.trials, self.measure)
        table(self.trials, self.measure, winner)
        title = f"{self.cfg.run.name}: sweep {self.number} of {self.stage}"
        write_file(self.folder / PAGE, page(title, self.trials, self.measure, winner))
        if winner is None:
            wrong = next((trial.error for trial in self.trials if trial.state == "failed"), "")
            raise InputError(f"no job of the sweep came to its end; the first: {wrong}")
        words = next(words for words, apart in sweep(self.words, module=self.module) if apart == winner.words)
        write_file(self.folder / BEST, settings_yaml(compose(words, module=self.module)))
        run, best_file = self.cfg.run.folder, _short(self.folder / BEST)
        where = [f"run.name={run.name}", *([] if run.parent == Path("runs").absolute() else [f"run.dir={run.parent}"])]
        use = shlex.join(["python", "-m", self.module, *where, f"run.config={best_file}"])
        keep = shlex.join(["cp", "-r", _short(self.place(winner) / self.stage), _short(run) + "/"])
        print(f"\nbest: {winner.name} ({self.measure.final} {winner.metric:.4g}); report: {_short(self.folder / PAGE)}")
        print(f"use it: {use}\nkeep its model without training again: {keep}, and then the same")
        return self.told_so_far()


def at_once(cfg: Config, jobs: int, *, own: bool) -> tuple[int, int]:
    """(jobs at a time, threads of one worker, 0 to leave them) on the cluster that is connected: as many as find cores,
    or GPUs, and room in what Ray counts; `own` is a cluster of this machine alone, whose Ray counts more than cores."""
    have, cluster = ray.cluster_resources(), cfg.cluster
    cores = os.cpu_count() or 1 if own else int(have.get("CPU", 1))
    counted = int(have.get("CPU", 1) // (cluster.workers * cluster.cpus_per_worker + 1))  # one to read the rows
    if cluster.gpus_per_worker:
        fit = int(have.get("GPU", 0) // (cluster.workers * cluster.gpus_per_worker))
    else:
        fit = cores // (cluster.workers * (cluster.threads or 1))
    width = min(jobs, cfg.sweep.concurrent or max(1, min(fit, counted)))
    crowded = width > 1 and not cluster.deterministic and not cluster.gpus_per_worker
    return width, max(1, cores // (width * cluster.workers)) if crowded else 0


def _address() -> str:
    return os.environ.get("RAY_ADDRESS") or str(ray.get_runtime_context().gcs_address)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_END_WITHIN)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_orphan(number: int, place: Path) -> None:
    """End the process of a job that a killed sweep left behind: it holds the folder."""
    try:
        process = psutil.Process(number) if number else None
        if process and any(place.name in word for word in process.cmdline()):
            process.terminate()
            _, alive = psutil.wait_procs([process], timeout=_END_WITHIN)
            for left in alive:
                left.kill()
    except psutil.Error:
        pass  # it ended with its cluster, as it does on a machine's own


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


if __name__ == "__main__":
    in_one_line(lambda: main(sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else print(__doc__))

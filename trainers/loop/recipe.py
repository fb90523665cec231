"""What a supervised stage is to do: everything a training worker needs to know."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cluster.storage import write_file
from conf.errors import InputError
from conf.knobs.model import Compute, Gpu, Precision
from conf.knobs.running import Cluster
from conf.knobs.training import Checkpoints, Doctor, Fit, Optim, SpikeAction, Spikes
from conf.schema import Config
from moe.decoder import Decoder
from moe.kernels import native
from moe.kernels.processor import processor
from moe.training.choice import fastest
from moe.training.objectives import Objective
from moe.training.optimizer import new_optimizer
from moe.training.parallel import check_parallel
from trainers.loop.retention import Retention
from trainers.rows.feed import rows_before, step_rows
from trainers.rows.mixture import Course
from trainers.rows.way import Way


@dataclass(frozen=True)
class Plan:
    folder: Path  # the stage's folder
    stage: str
    start: Callable[[], Decoder]  # the weights before step 0
    objective: Objective
    course: Course
    held_out: Mapping[str, Path]  # rows to evaluate on, by name
    decode: Callable[[Sequence[int]], str]  # ids to text, for what is told of a row
    fit: Fit
    optim: Optim
    compute: Compute
    doctor: Doctor
    gpu: Gpu
    spikes: Spikes
    saving: Checkpoints
    cluster: Cluster
    seed: int
    retention: Retention | None = None  # of a parent
    weights: float = 0.0  # bytes, known once it is checked

    @classmethod
    def of(
        cls,
        cfg: Config,
        stage: str,
        fit: Fit,
        *,
        start: Callable[[], Decoder],
        objective: Objective,
        course: Course,
        held_out: Mapping[str, Path],
        decode: Callable[[Sequence[int]], str],
        retention: Retention | None = None,
    ) -> "Plan":
        """The plan of a stage of this run."""
        return cls(
            folder=cfg.run.folder / stage,
            stage=stage,
            start=start,
            objective=objective,
            course=course,
            held_out=held_out,
            decode=decode,
            fit=fit,
            optim=cfg.optim,
            compute=cfg.compute,
            doctor=cfg.doctor,
            gpu=cfg.gpu,
            spikes=cfg.spikes,
            saving=cfg.checkpoints,
            cluster=cfg.cluster,
            seed=cfg.run.seed,
            retention=retention,
        )

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def slots(self) -> int:
        """Parts of a step whose gradients are added in a fixed order; 0 where the order does not matter."""
        return self.cluster.slots if self.cluster.deterministic else 0

    def rows(self, step: int) -> int:
        """Rows that a step takes, over all workers."""
        return step_rows(self.fit, self.course.row_length, step)

    @property
    def until(self) -> int:
        """The position that no run gets beyond, however many rows its spikes leave out."""
        full = self.rows(self.fit.steps)
        lost = self.spikes.limit * (self.spikes.rollback_steps + self.fit.save_every) * full
        rows = rows_before(self.fit, self.course.row_length, self.fit.steps)
        return rows + (lost if self.spikes.action is SpikeAction.rollback else 0)

    def check(self) -> Decoder:
        """The model's shape. Raises `InputError` for what cannot be trained."""
        self.course.check()
        full = self.rows(self.fit.steps)
        if full < self.cluster.workers:
            raise InputError(
                f"stage {self.stage}: a step of {full} rows leaves some of cluster.workers={self.cluster.workers} "
                "without any; give it more batch_rows"
            )
        back, every, keep = self.spikes.rollback_steps, self.fit.save_every, self.fit.keep
        if self.spikes.action is SpikeAction.rollback and keep < -(-back // every) + 1:
            raise InputError(
                f"spikes.action=rollback goes back {back} steps, which needs more than the {keep} newest checkpoints, "
                f"{every} steps apart, of stage {self.stage}; try keep={-(-back // every) + 1}"
            )
        # What cannot be adapted or spread is refused here, not by each restart of the workers. By its shape: a large
        # model with its weights would lie in memory beside the worker's.
        model = self.shape()
        check_parallel(model.cfg, self.cluster)
        new_optimizer(model, self.optim)
        return model

    def shape(self) -> Decoder:
        """The model before step 0 without its weights."""
        with torch.device("meta"):
            return self.start()

    def settled(self) -> "Plan":
        """The plan with `compute.precision=auto` measured, once a stage; how it computes is kept beside its
        checkpoints."""
        kept = self.folder / "arithmetic.json"
        began = json.loads(kept.read_text()) if kept.exists() else {}
        precision = self.compute.precision
        if precision is Precision.auto:
            precision = Precision(began["precision"]) if "precision" in began else self._fastest()
        now = {"precision": precision.value, "kernels": "native" if native.available() else "torch"}
        now |= {"products": "oneDNN" if processor().onednn else "MKL"}
        if precision is Precision.bf16 and native.available():
            now |= {"attention": "bf16" if processor().tiles else "fp32"}
        now |= {"slots": str(self.slots)} if self.slots else {"workers": str(self.cluster.workers)}
        if began and began != now:
            print(f"{self.stage}: began with {began} and goes on with {now}: the result is no longer bitwise the same")
        self.folder.mkdir(parents=True, exist_ok=True)  # a plan may be carried out without a stage that opened it
        write_file(kept, json.dumps(now) + "\n")
        return replace(self, compute=replace(self.compute, precision=precision))

    def _fastest(self) -> Precision:
        model, device = self.shape(), "cuda" if self.cluster.gpus_per_worker else "cpu"
        chosen, gain = fastest(model.cfg, model.vocab_size, self.course.row_length, self.compute, device)
        print(f"{self.stage}: compute.precision=auto is {chosen.value}" + f" (bf16 {gain:.2f}x fp32)" * (gain > 0))
        return chosen

    def write_way(self) -> None:
        """Write down which rows come when, for whoever asks later (see `trainers.rows.way`)."""
        Way(self.course, self.seed, self.fit).write(self.folder)

    def about(self, places: np.ndarray) -> list[dict[str, object]]:
        """Of each row at these places [n, 2] of the course: where it lies, its documents, the beginning of its text."""
        tokens, documents = self.course.fetch(places)["tokens"], self.course.documents(places)
        return [
            {
                "rows": os.path.relpath(self.course.sets[number], self.folder),
                "row": row,
                "documents": held,
                "text": self.decode(ids.tolist())[:_TOLD],
            }
            for (number, row), ids, held in zip(places.tolist(), tokens, documents, strict=True)
        ]


_TOLD = 200  # characters

"""Make instruction samples and queries of the corpus, or of a user's own, as the domain says."""

from conf.entry import early, job

early(__name__)


import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster.run import open_stage, present
from cluster.storage import write_file
from conf.errors import InputError
from conf.knobs.alignment import Tasks
from conf.knobs.text import Corpus
from conf.knobs.training import Sft
from conf.schema import Config
from moe.tasks.domain import Domain
from moe.tasks.instructions import samples
from moe.tasks.task import Sample, Source
from trainers.files import store
from trainers.files.documents import fields
from trainers.files.forgotten import FORGOTTEN, NOTHING, Forgotten
from trainers.files.kinds import Form
from trainers.files.readers import absolute, digest, expand, folders, parse, read_sources, unchanged
from trainers.files.rejects import REJECTS, rejects_in
from trainers.files.samples import read_queries, read_samples
from trainers.files.streams import BadRecord, LeftOut


def reads(cfg: Config, there: Collection[str]) -> list[str]:
    """Samples of one's own need no corpus."""
    return [] if cfg.sft.files and "corpus" not in there else ["corpus"]


def check(cfg: Config) -> None:
    """Raise `InputError` for files that are not there, and for a corpus of which the domain can make nothing."""
    domain = Domain.of(cfg.tasks)
    domain.chosen(cfg.rank.principles)
    expand(cfg.sft.files, "sft.files")
    expand(cfg.tasks.queries, "tasks.queries")
    if "corpus" in cfg.pipeline.stages:
        if (record := first_record(cfg.corpus)) is not None:
            domain.check(cfg.tasks, record)
    elif "corpus" not in present(cfg):
        domain.check(cfg.tasks, None)


def first_record(cfg: Corpus) -> dict[str, Any] | None:
    """The first that can be read; the stage corpus says what is wrong with others."""
    for path in expand(cfg.files, asked_format=cfg.format):
        for source in read_sources(absolute(path), cfg.max_line_bytes, fields(cfg.template), Form.of(cfg)):
            with suppress(BadRecord, LeftOut):
                return parse(path, source.content, Form.of(cfg))
    return None


@job
def main(cfg: Config) -> dict[str, float]:
    """Write train.jsonl, val.jsonl, prompts.jsonl and test_prompts.jsonl; returns how many of each."""
    domain = Domain.of(cfg.tasks)
    domain.chosen(cfg.rank.principles)
    needs = reads(cfg, present(cfg))
    if not needs:
        domain.check(cfg.tasks, None)
    own = {file: digest(file) for file in expand(cfg.sft.files, "sft.files")}
    asked = {file: digest(file) for file in expand(cfg.tasks.queries, "tasks.queries")}
    forgotten = Forgotten.of(cfg.run.folder / FORGOTTEN).among([*own, *asked])
    settings: dict[str, Any] = {
        "tasks": {**_decisive(cfg.tasks, domain), "queries": asked},
        "sft": {"files": own, "max_bad_fraction": cfg.sft.max_bad_fraction},
        **forgotten.setting,
    }
    with open_stage(cfg, "tasks", reads=needs, settings=settings, outside=folders([*own, *asked])) as stage:
        if stage.done:
            return stage.metrics
        corpus = stage.input("corpus") if needs else stage.folder  # which has none of a corpus's files
        own_samples, read = read_own(own, stage.folder, cfg.sft, forgotten)
        source = Source(
            records=partial(store.records, corpus),
            documents=partial(store.documents, corpus),
            own=own_samples,
            queries=[query for file in asked for query in read_queries(file, domain.fields, forgotten)],
            folder=stage.folder,
        )
        source = replace(source, given=given(source, cfg.tasks, cfg.run.seed))
        output = domain.samples(source, cfg.tasks, cfg.run.seed)
        domain.try_on(stage.folder, [*output["prompts"], *output["test_prompts"]])
        for name, made in output.items():
            lines = (json.dumps(sample.line, ensure_ascii=False) + "\n" for sample in made)
            write_file(stage.folder / f"{name}.jsonl", "".join(lines))
        unchanged({**own, **asked})
        if own:
            print(told(read, output, cfg.tasks))
        return stage.finish({**read, **count(output, cfg.tasks)})


def read_own(
    files: Iterable[str], folder: Path, cfg: Sft, forgotten: Forgotten = NOTHING
) -> tuple[list[Sample], dict[str, float]]:
    """(samples, {"read", "rejected"}) of `sft.files`, the bad ones in rejects.jsonl; nothing where there are none."""
    files = list(files)
    if not files:
        return [], {}
    with rejects_in(folder, "sft.max_bad_fraction", cfg.max_bad_fraction) as rejects:
        samples = [sample for file in files for sample in read_samples(file, rejects, forgotten)]
    if not samples:
        raise InputError(f"sft.files={files}: none of the {rejects.read} records is a sample")
    # the same answer to the same question once, however often it was copied: sft.weights is there to repeat a task
    once: dict[str, Sample] = {}
    for one in samples:
        said = json.dumps([one.task, one.messages, one.muted, one.label])
        held = once.setdefault(said, one)
        if held is not one:
            once[said] = replace(held, origin=(*held.origin, *one.origin))
    unique = list(once.values())
    copies = float(len(samples) - len(unique))
    return unique, {"read": float(rejects.read), "rejected": float(rejects.bad), "duplicates": copies}


def told(read: Mapping[str, float], output: Mapping[str, Sequence[Sample]], cfg: Tasks) -> str:
    """What became of the user's own samples, in a line: some of them are not for training."""
    copies = f", {read['duplicates']:.0f} are copies of others" if read.get("duplicates") else ""
    bad = f", {read['rejected']:.0f} bad ones are in {REJECTS}" if read["rejected"] else ""
    asked = "" if cfg.queries else f", {len(output['prompts'])} are queries for rankings and RL (tasks.prompts)"
    return (
        f"tasks: of {read['read']:.0f} samples {len(output['train'])} are trained on, {len(output['val'])} validate"
        f"{asked}{copies}{bad}"
    )


def given(source: Source, cfg: Tasks, seed: int) -> dict[str, list[Sample]]:
    """The splits that a user's own samples and queries make: of the samples `train` and `val`, of the queries the
    rest."""
    splits = ["train", "val"] * bool(source.own) + ["prompts", "test_prompts"] * bool(source.queries)
    made = samples(source, cfg, seed) if splits else {}
    return {split: made[split] for split in splits}


def _decisive(cfg: Tasks, domain: Domain) -> dict[str, Any]:
    """What the samples and the judge's verdicts hang on, a user's own code included."""
    return {
        "domain": cfg.domain,
        "options": dict(domain.options),
        "per_task": cfg.per_task,
        "held_out": cfg.held_out,
        "prompts": cfg.prompts,
        **({"domain_source": domain.digest} if domain.digest else {}),
    }


def count(output: dict[str, list[Sample]], cfg: Tasks) -> dict[str, float]:
    """Metrics: samples of each task, beside how many were asked for."""
    metrics: dict[str, float] = {name: float(len(samples)) for name, samples in output.items()}
    for split in ("train", "val"):
        for task, number in sorted(Counter(sample.task for sample in output[split]).items()):
            metrics[f"{split}/{task}"] = float(number)
    return metrics | {f"asked/{task}": float(number) for task, number in cfg.per_task.items()}


if __name__ == "__main__":
    main()

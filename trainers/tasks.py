"""Make instruction samples and queries from the poems of the corpus, or from a user's own samples."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conf.entry import job
from conf.schema import Config, InputError
from conf.schema import Tasks as TasksConfig
from moe.verse import Copies
from trainers.poems import Poem, as_poem, check_tasks, from_poems, hashed, query
from trainers.readers import expand
from trainers.samples import Sample, read_samples

SPLITS = ("train", "val", "test")


@job
def main(cfg: Config) -> dict[str, float]:
    """Write train.jsonl, val.jsonl, prompts.jsonl, test_prompts.jsonl and copies.npy; returns how many of each."""
    check_tasks(cfg.tasks)
    from cluster.run import open_stage
    from cluster.storage import sha256, write_file

    own = {file: sha256(Path(file)) for file in expand(cfg.sft.files, "sft.files")}
    settings = {"tasks": cfg.tasks, "sft": {"files": own}}
    with open_stage(cfg, "tasks", reads=["corpus"], settings=settings) as stage:
        if stage.done:
            return stage.metrics
        corpus = stage.input("corpus")
        if own:
            output = from_samples([s for file in own for s in read_samples(file)], cfg.tasks, cfg.run.seed)
            if poems := try_poems(corpus):
                made = from_poems(poems, cfg.tasks, cfg.run.seed)
                output.update({name: made[name] for name in ("prompts", "test_prompts")})
        else:
            output = from_poems({split: read_poems(corpus, split) for split in SPLITS}, cfg.tasks, cfg.run.seed)
        for name, samples in output.items():
            write_file(
                stage.folder / f"{name}.jsonl",
                "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples),
            )
        Copies.of(documents(corpus, "train")).save(stage.folder / "copies.npy")
        return stage.finish(count(output, cfg.tasks))


def records(corpus: Path, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(record number, record) of one split, in the order of its shards."""
    import pyarrow.parquet as pq

    for file in sorted(corpus.glob(f"{split}-*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(columns=["id", "record"]):
            columns = batch.to_pydict()
            for number, record in zip(columns["id"], columns["record"], strict=True):
                yield number, json.loads(record)


def documents(corpus: Path, split: str) -> Iterator[str]:
    """The bare text of each record (its `text` field), or the whole document when it has none."""
    import pyarrow.parquet as pq

    for file in sorted(corpus.glob(f"{split}-*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(columns=["text", "record"]):
            columns = batch.to_pydict()
            for text, record in zip(columns["text"], columns["record"], strict=True):
                yield json.loads(record).get("text", text)


def read_poems(corpus: Path, split: str) -> list[Poem]:
    """The poems of one split. Raises `InputError` when a record is no poem."""
    return [as_poem(number, record) for number, record in records(corpus, split)]


def try_poems(corpus: Path) -> dict[str, list[Poem]] | None:
    """The poems of all splits, or None for a corpus of something else."""
    try:
        return {split: read_poems(corpus, split) for split in SPLITS}
    except InputError:
        return None


def from_samples(samples: list[Sample], cfg: TasksConfig, seed: int) -> dict[str, list[Sample]]:
    """A user's samples split by hash: one in ten of each task validates; queries are their questions."""
    if len(samples) < 2:
        raise InputError("sft.files hold one sample in all; give at least two, one to train on and one to validate")
    ordered = sorted(samples, key=lambda sample: hashed(seed, "mix", sample["id"]))
    totals, held = Counter(sample["task"] for sample in ordered), Counter[str]()
    output: dict[str, list[Sample]] = {"train": [], "val": [], "prompts": [], "test_prompts": []}
    for sample in ordered:
        task = sample["task"]
        validates = held[task] < min(cfg.held_out, totals[task] // 10)
        held[task] += validates
        output["val" if validates else "train"].append(sample)
    if not output["val"]:  # so few of each task: then one of all
        output["val"].append(output["train"].pop())
    output["prompts"] = [query(sample) for sample in output["train"][: cfg.prompts]]
    output["test_prompts"] = [query(sample) for sample in output["val"]]
    return output


def count(output: dict[str, list[Sample]], cfg: TasksConfig) -> dict[str, float]:
    """Metrics: samples of each task, beside how many were asked for."""
    metrics: dict[str, float] = {name: float(len(samples)) for name, samples in output.items()}
    for split in ("train", "val"):
        for task, number in sorted(Counter(sample["task"] for sample in output[split]).items()):
            metrics[f"{split}/{task}"] = float(number)
    return metrics | {f"asked/{task}": float(number) for task, number in cfg.per_task.items()}


if __name__ == "__main__":
    main()

"""Conversations as packed rows: each answer and its end carry the loss, prompts do not."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from conf.errors import InputError
from conf.knobs.training import TooLong, Tune
from moe.tasks.task import Sample
from moe.text.chat import naming, sample_ids
from moe.text.tokenizer import Tokenizer
from trainers.rows.names import write_names
from trainers.rows.packing import Piece, pack
from trainers.rows.rows import write_rows

SECTIONS = {"chat": "sft"}  # where the knobs of a stage have another name than the stage


def check_length(cfg: Tune, stage: str, context: int) -> None:
    """Raise `InputError` where the rows are longer than the model's context."""
    if cfg.row_length > context:
        raise InputError(
            f"{_section(stage)}.row_length={cfg.row_length} must be at most the base model's {context} positions"
        )


def by_task(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """The samples of each task, in their order."""
    ordered = sorted(samples, key=lambda sample: sample.task)
    return {task: list(group) for task, group in groupby(ordered, key=lambda sample: sample.task)}


def piece(sample: Sample, tokenizer: Tokenizer) -> Piece:
    """(ids, loss mask) of a sample: 1 on each answer and its end, but for those that are muted."""
    with naming(f"sample {sample.id}"):
        ids, mask = sample_ids(tokenizer, sample.messages)
    if not sample.muted:
        return ids, mask
    spoken = [place for place, turn in enumerate(sample.messages) if turn["role"] == "assistant"]
    runs = [list(run) for learnt, run in groupby(range(len(mask)), key=lambda at: mask[at]) if learnt]
    silent = frozenset(sample.muted)
    assert len(runs) == len(spoken), "each answer is a run of the mask"
    muted = {at for place, run in zip(spoken, runs, strict=True) if place in silent for at in run}
    return ids, [0 if at in muted else learnt for at, learnt in enumerate(mask)]


def pieces(samples: Sequence[Sample], tokenizer: Tokenizer, cfg: Tune, stage: str) -> Iterator[Piece]:
    """(ids, loss mask) of each sample. Raises `InputError` naming a sample that is longer than a row."""
    for sample in samples:
        ids, mask = piece(sample, tokenizer)
        if len(ids) > cfg.row_length:
            section = _section(stage)
            raise InputError(
                f"sample {sample.id}: {len(ids)} tokens do not fit into {section}.row_length={cfg.row_length}; "
                f"try {section}.row_length={len(ids)}, or {section}.too_long=drop"
            )
        yield ids, mask


def fitting(
    samples: Sequence[Sample], unseen: Sequence[Sample], tokenizer: Tokenizer, cfg: Tune, stage: str
) -> tuple[list[Sample], list[Sample], dict[str, float]]:
    """(samples, unseen, {"too_long"}): with `too_long=drop` without those that are longer than a row, which are counted
    and told of in a line. Raises `InputError` where none is left of one of them."""
    if cfg.too_long is TooLong.stop:
        return list(samples), list(unseen), {}
    lengths = {id(one): len(piece(one, tokenizer)[0]) for one in (*samples, *unseen)}
    kept = [[one for one in part if lengths[id(one)] <= cfg.row_length] for part in (samples, unseen)]
    gone = [one for one in (*samples, *unseen) if lengths[id(one)] > cfg.row_length]
    if gone:
        worst = max(gone, key=lambda one: lengths[id(one)])
        line = (
            f"{len(gone)} of {len(lengths)} samples are longer than {_section(stage)}.row_length={cfg.row_length}, the "
            f"longest {lengths[id(worst)]} tokens ({worst.id})"
        )
        if not all(kept):
            raise InputError(f"{line}, and none is left to {'train on' if not kept[0] else 'validate'}; raise it")
        print(f"{stage}: {line}; they are left out")
    return kept[0], kept[1], {"too_long": float(len(gone))}


def write(path: Path, samples: Sequence[Sample], tokenizer: Tokenizer, cfg: Tune, stage: str) -> Path:
    """Pack the samples into rows under `path`, their ids beside them."""
    rows = pack(pieces(samples, tokenizer, cfg, stage), cfg.row_length, pad=tokenizer.pad)
    meta = {"tokenizer": tokenizer.digest, "samples": len(samples)}
    write_rows(path, rows, row_length=cfg.row_length, rows_per_shard=16384, meta=meta)
    write_names(path, [(sample.id, sample.origin) for sample in samples])
    return path


def _section(stage: str) -> str:
    return SECTIONS.get(stage, stage)

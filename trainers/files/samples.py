"""Read samples and queries, a user's own: .jsonl, .json, .parquet or a dataset, in the forms that instruction data are
published in (see `moe.tasks.forms`)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from conf.errors import InputError
from moe.tasks import forms
from moe.tasks.queries import answer_fields, read_query
from moe.tasks.task import Sample
from trainers.files.forgotten import NOTHING, Forgotten
from trainers.files.readers import at, read_records, task, title
from trainers.files.rejects import Rejects, made_of


def read_samples(path: str | Path, rejects: Rejects | None = None, forgotten: Forgotten = NOTHING) -> list[Sample]:
    """The samples of a file or a dataset, with the fields that they have besides; what is forgotten is not looked at.

    Raises `InputError` "file:line: ..." at the first that is no sample, unless `rejects` allows it.
    """
    of_file, file = task(path), title(path)

    def made(record: dict[str, Any], line: int, where: str) -> Sample:
        of = record.get("task", of_file)
        if not isinstance(of, str) or not _is_name(of):
            raise InputError(
                f"{where}: task={of!r} must be a name, of a folder too: no slash, no dot in front, at most 80 bytes"
            )
        name = _plain(record.get("id", f"{file}-{line}"))
        if not isinstance(name, str) or not name:
            raise InputError(f"{where}: id={name!r} must be a name")
        label = _plain(record.get("label"))
        if isinstance(label, bool):
            raise InputError(
                f"{where}: label={str(label).lower()}: an answer that is good or bad by itself (KTO) is not learnt "
                "from; leave it out, or rank it against another in reward.files"
            )
        if label is not None and not isinstance(label, str):
            raise InputError(f"{where}: label={label!r:.40} must be a text or a number")
        told = forms.sample(record, where)
        fields = {field: value for field, value in record.items() if field not in _OWN and field not in told.fields}
        if rejects:  # what it says of its answer is used later, and too late to be set aside
            answer_fields({**fields, "label": label}, where, answer=told.messages[-1]["content"])
        return Sample(
            id=name,
            task=of,
            messages=told.messages,
            muted=told.muted,
            label=label,
            fields=fields,
            origin=(where,),
        )

    samples = list(made_of(path, made, rejects or Rejects("", 0.0), forgotten))
    if not samples and not rejects:
        raise InputError(f"{path}: holds no sample")
    return samples


_OWN = ("id", "task", "messages", "muted", "label", "instruction", "input", "output", "origin")


def read_queries(path: str | Path, fields: Sequence[str] = (), forgotten: Forgotten = NOTHING) -> list[Sample]:
    """The queries of a file or a dataset, which may have the domain's own `fields`. Raises `InputError` "file:line:
    ..." at the first line that is none; what is forgotten is not looked at."""
    of_file, file = task(path), title(path)
    queries = []
    for number, record in read_records(path):
        record.pop("origin", None)  # of another run's file
        where = at(path, number)
        if not forgotten.names(where):
            made = read_query({"id": f"{file}-{number}", "task": of_file, **record}, where, known=fields)
            queries.append(replace(made, origin=(where,)))
    if not queries:
        raise InputError(f"{path}: holds no query")
    return queries


def _plain(value: object) -> object:
    """Whole numbers, which many data sets have for ids and labels, are taken as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _is_name(task: str) -> bool:
    return task.isprintable() and 0 < len(task.encode()) <= 80 and "/" not in task and task[0] != "."

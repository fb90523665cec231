"""A line of `tasks.queries` or of a corpus of samples, written by somebody else: read, or refused with its place."""

from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

from conf.errors import InputError
from moe.tasks import forms
from moe.tasks.checks import read_checks
from moe.tasks.task import Sample

FIELDS = ("id", "task", "messages", "prompt", "label", "choices", "reference", "references", "checks")


def read_query(record: Mapping[str, Any], where: str, known: Collection[str] = ()) -> Sample:
    """The query of one line: `prompt` (a text or messages) or `messages`, whose last turn is the user's, and whatever
    else of `FIELDS` and of `known`, a domain's own. `where` is "file:line". Raises `InputError` "file:line: ..."."""
    for name in record:
        if name not in FIELDS and name not in known:
            raise InputError(f"{where}: no field {name!r}; a query has {', '.join([*FIELDS, *known])}")
    if ("prompt" in record) == ("messages" in record):
        have = "both prompt and messages; give one of them" if "prompt" in record else "neither prompt nor messages"
        raise InputError(f"{where}: the query has {have}")
    if isinstance(record.get("prompt"), str):
        messages = [{"role": "user", "content": _text(record["prompt"], "prompt", where)}]
    elif "prompt" in record and not isinstance(record["prompt"], list):
        raise InputError(f"{where}: prompt={_shown(record['prompt'])} must be a text that is not empty")
    else:
        asked = {name: record[name] for name in ("prompt", "messages") if name in record}
        messages = forms.query(asked, where).messages
    file, _, line = where.rpartition(":")
    name = PurePath(file or where).name
    own = {field: record[field] for field in known if field in record and field not in FIELDS}
    label, fields = answer_fields(record, where)
    return Sample(
        id=_plain(record["id"], "id", where) if "id" in record else f"{name}-{line}",
        task=task_name(record.get("task", name.split(".")[0]), where),
        messages=messages,
        label=label,
        fields=fields | own,
    )


def answer_fields(
    record: Mapping[str, Any], where: str, *, answer: str | None = None
) -> tuple[str | None, dict[str, Any]]:
    """What a record knows of its right answer: the label, and {"choices", "reference" or "references", "checks"}.

    `answer` is the answer of a sample, which is its label where it is one of the choices.
    """
    label = _plain(record["label"], "label", where) if record.get("label") is not None else None
    fields: dict[str, Any] = {}
    if "reference" in record and "references" in record:
        raise InputError(f"{where}: the query has both reference and references; give one of them")
    if "reference" in record:
        fields["reference"] = answer = _text(record["reference"], "reference", where)
    if "references" in record:
        fields["references"] = _texts(record["references"], "references", where, least=1)
    if "choices" in record:
        choices = fields["choices"] = _texts(record["choices"], "choices", where, least=2)
        label = label if label is not None or answer not in choices else answer
        if label not in choices:
            has = "no label" if label is None else f"label={label!r}"
            raise InputError(f"{where}: {has}, which must be one of choices={choices!r}")
    if "checks" in record:
        try:
            fields["checks"] = read_checks(record["checks"])
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    return label, fields


def _text(value: object, field: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {field}={_shown(value)} must be a text that is not empty")
    return value


def _plain(value: object, field: str, where: str) -> str:
    """A text, or a number as one."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return _text(value, field, where)


def _texts(value: object, field: str, where: str, *, least: int) -> list[str]:
    texts = [
        _plain(text, f"{field}[{place}]", where) for place, text in enumerate(value if isinstance(value, list) else ())
    ]
    if len(texts) < least or len(set(texts)) < len(texts):
        raise InputError(f"{where}: {field}={_shown(value)} must be a list of {least} or more different texts")
    return texts


def task_name(value: object, where: str) -> str:
    """The name of a task, which names files and metrics too."""
    usable = isinstance(value, str) and value.isprintable() and "/" not in value and not value.startswith(".")
    if isinstance(value, str) and usable and 0 < len(value.encode()) <= 80:
        return value
    raise InputError(f"{where}: task={_shown(value)} must be a name: no slash, no dot in front, at most 80 bytes")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

"""Read a user's own samples: .jsonl in Alpaca form (instruction, input, output) or with `messages`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conf.schema import InputError
from trainers.readers import read_records

Sample = dict[str, Any]  # id, task, messages [{role, content}], and what the task adds


def read_samples(path: str | Path) -> list[Sample]:
    """The samples of a .jsonl file, each as {"id", "task", "messages"} with its other fields kept.

    Raises `InputError` "file:line: ..." at the first line that is no sample.
    """
    samples = []
    for number, record in read_records(path):
        where = f"{path}:{number}"
        task = record.get("task", Path(path).name.split(".")[0])
        if not isinstance(task, str) or not _is_name(task):
            raise InputError(
                f"{where}: task={task!r} must be a name, of a folder too: no slash, no dot in front, at most 80 bytes"
            )
        messages = _messages(record["messages"], where) if "messages" in record else _alpaca(record, where)
        name = record.get("id", f"{Path(path).name}-{number}")
        if not isinstance(name, str) or not name:
            raise InputError(f"{where}: id={name!r} must be a name")
        others = {field: value for field, value in record.items() if field not in {"instruction", "input", "output"}}
        samples.append({**others, "id": name, "task": task, "messages": messages})
    if not samples:
        raise InputError(f"{path}: holds no sample")
    return samples


def _is_name(task: str) -> bool:
    return task.isprintable() and 0 < len(task.encode()) <= 80 and "/" not in task and task[0] != "."


def _alpaca(record: Sample, where: str) -> list[dict[str, str]]:
    for field in ("instruction", "output"):
        if field not in record:
            raise InputError(f"{where}: no field {field!r}; a sample has messages, or instruction and output")
    texts = {field: record.get(field) or "" for field in ("instruction", "input", "output")}
    for field, text in texts.items():
        if not isinstance(text, str):
            raise InputError(f"{where}: {field} must be a string, not {type(text).__name__}")
        if not text.strip() and field != "input":
            raise InputError(f"{where}: {field} is empty")
    question = "\n".join(filter(None, (texts["instruction"], texts["input"])))
    return [{"role": "user", "content": question}, {"role": "assistant", "content": texts["output"]}]


def _messages(messages: object, where: str) -> list[dict[str, str]]:
    """The turns: an optional system message, then user and assistant by turns, the last an assistant's."""
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{where}: messages must be a list of one message or more")
    for turn, message in enumerate(messages):
        at = f"{where}: messages[{turn}]"
        if not isinstance(message, dict):
            raise InputError(f"{at} must be an object with role and content")
        if message.get("role") not in {"system", "user", "assistant"}:
            raise InputError(f"{at}.role={message.get('role')!r} must be system, user or assistant")
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            raise InputError(f"{at}.content must be a string that is not empty")
    roles = [message["role"] for message in messages]
    spoken = roles[1:] if roles[0] == "system" else roles
    _check_turns(spoken, where)
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _check_turns(roles: Sequence[str], where: str) -> None:
    wanted = [("user", "assistant")[turn % 2] for turn in range(len(roles))]
    if not roles or list(roles) != wanted or roles[-1] != "assistant":
        raise InputError(
            f"{where}: the roles are {', '.join(roles) or 'none'}; user and assistant must take turns, "
            "the user first and the assistant last"
        )

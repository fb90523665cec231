"""Rankings as others publish them, in our own form: a query and its answers, each with its place.

    prompt, chosen, rejected                   TRL, LLaMA-Factory, Orca: texts, a message each, or lists of messages
    chosen, rejected                           UltraFeedback, HH-RLHF: whole conversations that part at their last turn
    prompt, completions | responses, ranks     0 the best; with scores or rewards more is better; both may be given

What is asked may also be said by instruction and input, question, query, conversations or messages, with system and
history, as in a sample (see `moe.tasks.forms`).
"""

from collections.abc import Mapping
from typing import Any

from conf.errors import InputError
from moe.tasks import forms
from moe.tasks.task import Message

LISTS = ("completions", "responses")
RANKS, SCORES = ("ranks", "rank"), ("scores", "rewards", "score")
KNOWN = "messages and answers, prompt, chosen and rejected, or prompt, completions and ranks or scores"


def comparison(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """{"messages", "answers"} of a record. Raises `InputError` "`where`: ..."."""
    if "answers" in record:
        return {"messages": record.get("messages"), "answers": record["answers"]}
    if "chosen" in record and "rejected" in record:
        return _pair(record, where)
    if name := next((name for name in LISTS if name in record), ""):
        return _list(record, name, where)
    if "messages" in record:
        return {"messages": record["messages"], "answers": None}
    kto = "; an answer that is good or bad by itself (KTO) is compared with none" if "label" in record else ""
    raise InputError(f"{where}: the fields {', '.join(record) or 'none'} make no ranking; one has {KNOWN}{kto}")


def _pair(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    (before, chosen), (other, rejected) = (_conversation(record[name], name, where) for name in ("chosen", "rejected"))
    if before != other:
        raise InputError(
            f"{where}: chosen and rejected part before their last turns; a ranking compares answers to one"
        )
    if chosen == rejected:
        raise InputError(f"{where}: chosen and rejected are the same")
    asked = record
    if before:
        known = ("messages", "conversations", *(["prompt"] if _begins(record.get("prompt"), before) else []))
        asked = {"messages": before} | {name: value for name, value in record.items() if name not in known}
    messages = forms.query(asked, where).messages
    answers: list[dict[str, Any]] = [{"text": chosen, "rank": 0}, {"text": rejected, "rank": 1}]
    for answer, name in zip(answers, ("chosen", "rejected"), strict=True):
        score = record.get(f"score_{name}", record.get(f"{name}_score"))
        answer |= {} if score is None else {"total": score}
    return {"messages": messages, "answers": answers}


def _begins(prompt: object, messages: list[Message]) -> bool:
    """Whether a prompt is the begin of a conversation, said once more."""
    if not isinstance(prompt, list) or not all(isinstance(one, Mapping) for one in prompt):
        return False
    return [{"role": one.get("role"), "content": one.get("content")} for one in prompt] == messages[: len(prompt)]


def _conversation(value: object, name: str, where: str) -> tuple[list[Message], str]:
    """(the turns before it, the answer)."""
    if isinstance(value, str) and (whole := forms.transcript(value)):
        messages = whole
    elif isinstance(value, str) and value.strip():
        return [], value
    elif isinstance(value, Mapping | list) and value:
        turns = forms.turns(value if isinstance(value, list) else [value], name, where)
        messages = [message for message, _ in turns]
    else:
        raise InputError(f"{where}: {name}={value!r:.40} must be an answer, or a conversation that ends with one")
    if messages[-1]["role"] != "assistant":
        raise InputError(
            f"{where}: the last turn of {name} is the {messages[-1]['role']}'s; it must be the assistant's"
        )
    return messages[:-1], messages[-1]["content"]


def _list(record: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    given = record[name]
    if not isinstance(given, list):
        raise InputError(f"{where}: {name} must be a list of answers, not {type(given).__name__}")
    answers: list[dict[str, Any]] = []
    for place, value in enumerate(given):
        before, text = _conversation(value, f"{name}[{place}]", where)
        if before:
            raise InputError(f"{where}: {name}[{place}] must be one answer, not a conversation")
        answers.append({"text": text})
    told = False
    for field, names in (("rank", RANKS), ("total", SCORES)):
        values_of = next((one for one in names if record.get(one) is not None), "")
        if not values_of:
            continue
        values = record[values_of]
        if not isinstance(values, list) or len(values) != len(answers):
            raise InputError(f"{where}: {values_of} must be a list with one for each of the {len(answers)} {name}")
        for answer, value in zip(answers, values, strict=True):
            answer[field] = value
        told = True
    if not told:
        kto = "; labels of single answers or steps are not learnt from" if "labels" in record else ""
        raise InputError(f"{where}: {name} need ranks, 0 the best, or scores, of which more is better{kto}")
    return {"messages": forms.query(record, where).messages, "answers": answers}

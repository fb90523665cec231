"""Rankings as others publish them, in our own form: a query and its answers, each with its place.

    prompt, chosen, rejected                   TRL, LLaMA-Factory, Orca: texts, a message each, or lists of messages
    chosen, rejected                           UltraFeedback, HH-RLHF: whole conversations that part at their last turn
    prompt, completions | responses, ranks     0 the best; with scores or rewards more is better; both may be given
    completions | answers: [{response, score}] UltraFeedback, Nectar and the comparisons of GPT-4
    two answers, and a field that says which   PKU-SafeRLHF, HelpSteer2, SHP, Chatbot Arena, WebGPT: see `_TWO`

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
_TEXTS = ("response", "answer", "completion", "content")  # of an answer that is an object with what it is worth
_WORTH = ("overall_score", "score", "reward")
_CHOSEN = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("pos_resp", "neg_resp"),
    ("response_j", "response_k"),
)
_TWO = {  # the names of two answers: the field with the verdict, and those values of it that prefer first and second
    ("response_0", "response_1"): ("better_response_id", 0, 1),
    ("response_1", "response_2"): ("preference_strength", (-3, -2, -1), (1, 2, 3)),
    ("human_ref_A", "human_ref_B"): ("labels", 1, 0),
    ("conversation_a", "conversation_b"): ("winner", "model_a", "model_b"),
    ("answer_0", "answer_1"): ("score_0", (), ()),
}
_TIES = {"preference_strength": (0,), "winner": ("tie", "tie (bothbad)", "tie(bothbad)")}
_ASKED = {"history": "prompt", "user_input": "prompt"}  # what is asked, where there is one of `_TWO` or a list
KNOWN = "messages and answers, prompt, chosen and rejected, or prompt, completions and ranks or scores"


def comparison(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """{"messages", "answers"} of a record. Raises `InputError` "`where`: ..."."""
    for names in _CHOSEN:
        if names[0] in record and names[1] in record:
            return _pair(record, names, where)
    for names, (field, *_) in _TWO.items():
        if names[0] in record and names[1] in record and field in record:
            return _two(record, names, where)
    for name in ("answers", "responses_and_scores", *LISTS):
        given = record.get(name)
        if isinstance(given, list) and given and all(_judged(one) for one in given):
            return {"messages": _asked(record, [name], where), "answers": [_answer(one) for one in given]}
    if "answers" in record:
        whole = "messages" in record or not any(name in record for name in forms.ANSWERED)
        return {
            "messages": record.get("messages") if whole else _asked(record, ["answers"], where),
            "answers": record["answers"],
        }
    if name := next((name for name in LISTS if name in record), ""):
        return _list(record, name, where)
    if "messages" in record:
        return {"messages": record["messages"], "answers": None}
    kto = "; an answer that is good or bad by itself (KTO) is compared with none" if "label" in record else ""
    raise InputError(f"{where}: the fields {', '.join(record) or 'none'} make no ranking; one has {KNOWN}{kto}")


def _pair(record: Mapping[str, Any], names: tuple[str, str], where: str) -> dict[str, Any]:
    messages, (chosen, rejected) = _parted(record, names, where)
    if chosen == rejected:
        raise InputError(f"{where}: {names[0]} and {names[1]} are the same")
    answers: list[dict[str, Any]] = [{"text": chosen, "rank": 0}, {"text": rejected, "rank": 1}]
    for answer, name in zip(answers, names, strict=True):
        score = record.get(f"score_{name}", record.get(f"{name}_score"))
        answer |= {} if score is None else {"total": score}
    return {"messages": messages, "answers": answers}


def _parted(record: Mapping[str, Any], names: tuple[str, str], where: str) -> tuple[list[Message], tuple[str, str]]:
    """(what is asked, the two answers), each an answer by itself or a conversation that ends with it."""
    (before, first), (other, second) = (_conversation(record[name], name, where) for name in names)
    if before != other:
        raise InputError(
            f"{where}: {names[0]} and {names[1]} part before their last turns; a ranking compares answers to one"
        )
    asked = {name: value for name, value in record.items() if name not in names}
    if before:
        known = ("messages", "conversations", *(["prompt"] if _begins(record.get("prompt"), before) else []))
        asked = {"messages": before} | {name: value for name, value in asked.items() if name not in known}
    return forms.query(asked, where).messages, (first, second)


def _two(record: Mapping[str, Any], names: tuple[str, str], where: str) -> dict[str, Any]:
    renamed = {_ASKED.get(name, name): value for name, value in record.items()}
    if isinstance(renamed.get("question"), Mapping):  # WebGPT's
        renamed["question"] = renamed["question"].get("full_text")
    messages, texts = _parted(renamed, names, where)
    answers: list[dict[str, Any]] = [{"text": text} for text in texts]
    field = _TWO[names][0]
    for place, answer in enumerate(answers):
        if field == "score_0":
            answer["total"] = record.get(f"score_{place}")
        else:
            answer["rank"] = int(_loser(record[field], names, where) == place)
        if "safer_response_id" in record:  # the other verdict is of help alone
            unsafe = _loser(record["safer_response_id"], names, where) == place
            answer["ranks"] = {"helpful": answer["rank"], "harmless": int(unsafe)}
    return {"messages": messages, "answers": answers}


def _loser(says: object, names: tuple[str, str], where: str) -> int | None:
    """The place of the answer that is not preferred, None where neither is."""
    field, *prefers = _TWO[names]
    for place, values in enumerate(prefers):
        if type(says) in (int, str) and says in (values if isinstance(values, tuple) else (values,)):
            return 1 - place
    if says in _TIES.get(field, ()) and not isinstance(says, bool):
        return None
    raise InputError(f"{where}: {field}={says!r:.40} does not say which answer is the better one")


def _asked(record: Mapping[str, Any], answers: list[str], where: str) -> list[Message]:
    asked = {_ASKED.get(name, name): value for name, value in record.items() if name not in answers}
    return forms.query(asked, where).messages


def _judged(answer: object) -> bool:
    """Whether it is an object with a text, not by our own name for it, and what that is worth."""
    if not isinstance(answer, Mapping) or "text" in answer:
        return False
    return any(name in answer for name in _TEXTS) and any(name in answer for name in (*_WORTH, "rank"))


def _answer(given: Mapping[str, Any]) -> dict[str, Any]:
    score = next((given[name] for name in _WORTH if given.get(name) is not None), None)
    rank = given.get("rank")
    rank = int(rank) if isinstance(rank, float) and rank % 1 == 0 else rank
    made = {"text": next(given[name] for name in _TEXTS if name in given), "rank": rank, "total": score}
    return {name: value for name, value in made.items() if value is not None}


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

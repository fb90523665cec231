"""Instruction data as they are published: a record of any known form becomes a conversation, or is refused by name.

    messages: [{role, content, weight}]        OpenAI, TRL; content may be parts of text, weight 0 means no loss
    conversations: [{from, value}], system     ShareGPT; also `conversation`, and with role and content
    conversation: [{human, assistant}]         Firefly; XTuner with system, input and output
    data | conversations: [question, answer, question, ...]                     UltraChat, LIMA
    instruction, input, output, system, history: [[question, answer]]           Alpaca, LLaMA-Factory
    prompt, completion                         TRL: texts or lists of messages, of which only the completion has loss
    prompt | query | question and response | answer, with system | system_prompt, input | context and history
    inputs and targets, input and target, problem and solution                  P3 and FLAN, Firefly, NuminaMath

What a text model cannot be taught (images) or the chat format cannot say (tools, reasoning apart from the answer) is
refused, and so is a field that would ask something and is not understood: nothing is left out of a question in silence.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conf.errors import InputError
from moe.tasks.task import Message

Record = Mapping[str, Any]

SPEAKERS = {"system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant"}
SPEAKERS |= dict.fromkeys(("gpt", "chatgpt", "model", "bot", "bing", "bard", "claude"), "assistant")
SPEAKERS |= {"prompter": "user"}
TOOLS = ("tool", "function", "function_call", "tool_call", "observation", "tool_response", "ipython")
TALKS = ("messages", "conversations", "conversation", "data")
ANSWERED = {  # what asks: what answers it
    "instruction": ("output", "response"),
    "prompt": ("completion", "response"),
    "query": ("response",),
    "question": ("answer", "response"),
    "problem": ("solution",),
    "inputs": ("targets",),
    "input": ("output", "target"),
}
MORE = ("input", "context", "query")  # of a question, after what asks
SYSTEM = ("system", "system_prompt")
KNOWN = "messages, conversations, instruction and output, prompt and completion, or question and answer"
_ROLES, _CONTENTS = ("role", "from", "speaker"), ("content", "value", "text")  # of a turn
_PARTS = ("text", "input_text", "output_text")
_PAIRS = (("human", "assistant"), ("input", "output"))  # a turn of both in one object
_NO_PLACE = ("tool_calls", "function_call", "reasoning_content", "thinking", "images", "audio")  # of a message
_NO_PLACE_BESIDE = ("tools", "functions", "images", "image", "videos", "audios", "kto_tag")


@dataclass(frozen=True)
class Conversation:
    messages: list[Message]
    muted: tuple[int, ...]  # the messages, by their place, whose answers carry no loss
    fields: frozenset[str]  # of the record, those that it is made of


def is_sample(record: Record) -> bool:
    """Whether a record has what some form of a sample consists of."""
    pair = any(_given(record, ask) and any(_given(record, a) for a in ANSWERED[ask]) for ask in ANSWERED)
    return pair or bool(_talks(record))


def sample(record: Record, where: str) -> Conversation:
    """The conversation of a record, its last turn the answer to learn. Raises `InputError` "`where`: ..."."""
    _refuse_beside(record, where)
    talk = _talks(record)
    made = _talk(record, talk, where, last="assistant") if talk else _pair(record, where)
    spoken = [place for place, turn in enumerate(made.messages) if turn["role"] == "assistant"]
    if set(spoken) <= set(made.muted):
        raise InputError(f"{where}: no answer carries loss: the weight of each is 0")
    _check_beside(record, made, where)
    return made


def query(record: Record, where: str) -> Conversation:
    """What a record asks, its last turn the user's. Raises `InputError` "`where`: ..."."""
    _refuse_beside(record, where)
    talk = _talks(record)
    asks = next((name for name in ANSWERED if _given(record, name)), "")
    if talk:
        made = _talk(record, talk, where, last="user")
    elif asks:
        messages, fields = _question(record, asks, where)
        made = Conversation(_in_turns(messages, where, last="user"), (), frozenset(fields))
    else:
        raise InputError(f"{where}: nothing is asked; give a prompt, as a text or as a list of messages")
    _check_beside(record, made, where)
    return made


def _talks(record: Record) -> str:
    """The field that holds a conversation; "" if there is none. Of `data`, a name for anything, it must be texts."""
    named = (name for name in TALKS if record.get(name) is not None)
    return next((name for name in named if name != "data" or _texts(record[name])), "")


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)


def turns(value: object, at: str, where: str) -> list[tuple[Message, bool]]:
    """(message, whether it carries loss if it is an answer) of a list of turns named `at`, in any way of writing them;
    an empty system message is left out."""
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: {at} must be a list of one message or more")
    found = []
    for place, turn in enumerate(value):
        name = f"{at}[{place}]"
        if not isinstance(turn, Mapping):
            raise InputError(f"{where}: {name} must be an object with role and content")
        for message, learnt in _turn(turn, name, where):
            if message["role"] != "system" or message["content"].strip():
                found.append((message, learnt))
    return found


def _turn(turn: Record, at: str, where: str) -> Iterable[tuple[Message, bool]]:
    pair = next((names for names in _PAIRS if names[1] in turn and not turn.keys() & set(_ROLES)), None)
    if pair:
        if turn.get("system"):
            yield _message("system", turn["system"], f"{at}.system", where), True
        for name, speaker in zip(pair, ("user", "assistant"), strict=True):
            yield _message(speaker, turn.get(name), f"{at}.{name}", where), True
        return
    role_field, text_field = (next((name for name in names if name in turn), names[0]) for names in (_ROLES, _CONTENTS))
    role = turn.get(role_field)
    if role in TOOLS:
        raise InputError(f"{where}: {at}.{role_field}={role!r}: the chat format has no turns of tools; leave it out")
    for name in _NO_PLACE:
        if turn.get(name):
            raise InputError(f"{where}: {at}.{name}: the chat format has no place for it; leave it out")
    if not isinstance(role, str) or role not in SPEAKERS:
        raise InputError(f"{where}: {at}.{role_field}={role!r:.40} must be system, user or assistant")
    weight = turn.get("weight", turn.get("train"))
    if weight is not None and weight not in (0, 1):
        raise InputError(f"{where}: {at}.weight={weight!r:.40} must be 0, no loss on this answer, or 1")
    yield _message(SPEAKERS[role], turn.get(text_field), f"{at}.{text_field}", where), weight is None or weight == 1


def _message(role: str, content: object, at: str, where: str) -> Message:
    if isinstance(content, list):
        content = "".join(_part(part, f"{at}[{place}]", where) for place, part in enumerate(content))
    if role == "system" and content in (None, ""):
        content = ""
    elif not isinstance(content, str) or not content.strip():
        raise InputError(f"{where}: {at}={content!r:.80} must be a text that is not empty")
    return {"role": role, "content": content}


def _part(part: object, at: str, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(part, Mapping) and kind in _PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    raise InputError(f"{where}: {at} is of type {kind!r:.40}, which a text model cannot read; leave it out")


def _talk(record: Record, name: str, where: str, *, last: str) -> Conversation:
    said = record[name]
    if _texts(said):
        said = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]
    found = turns(said, name, where)
    system, fields = _system(record, where)
    if system and found and found[0][0]["role"] == "system" and found[0][0] != system[0]:
        raise InputError(f"{where}: {fields[0]} says something else than the system message of {name}; give one")
    if system and found and found[0][0]["role"] != "system":
        found = [(system[0], True), *found]
    return _conversation(found, [name, *fields], where, last=last)


def _conversation(
    found: Sequence[tuple[Message, bool]], fields: Sequence[str], where: str, *, last: str
) -> Conversation:
    messages = _in_turns([message for message, _ in found], where, last=last)
    muted = [at for at, (message, learnt) in enumerate(found) if message["role"] == "assistant" and not learnt]
    return Conversation(messages, tuple(muted), frozenset(fields))


def _in_turns(messages: list[Message], where: str, *, last: str) -> list[Message]:
    roles = [message["role"] for message in messages]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if spoken != [("user", "assistant")[turn % 2] for turn in range(len(spoken))] or spoken[-1:] != [last]:
        raise InputError(
            f"{where}: the roles are {', '.join(roles) or 'none'}; user and assistant must take turns, the user first "
            f"and the {last} last"
        )
    return messages


def _pair(record: Record, where: str) -> Conversation:
    begun = [ask for ask in ANSWERED if ask in record]
    asks = next((ask for ask in begun if any(name in record for name in ANSWERED[ask])), next(iter(begun), ""))
    answers = [name for name in ANSWERED.get(asks, ()) if name in record]
    if not asks:
        raise InputError(f"{where}: {_unknown(record)}")
    if not answers:
        near = _alike(ANSWERED[asks][0], record)
        hint = f", did you mean it by {near!r}?" if near else ""
        what = "; chosen and rejected are a ranking, for reward.files" if "chosen" in record else ""
        raise InputError(f"{where}: no field {ANSWERED[asks][0]!r}{hint}; a sample has {KNOWN}{what}")
    messages, fields = _question(record, asks, where)
    name, answer = answers[0], record[answers[0]]
    whole = [(message, message["role"] != "assistant" or asks != "prompt") for message in messages]
    if isinstance(answer, list) and answer and isinstance(answer[0], Mapping):
        whole += turns(answer, name, where)
    elif answer is None or answer == "":
        raise InputError(f"{where}: {name} is empty")
    elif not isinstance(answer, str):
        raise InputError(f"{where}: {name} must be a string, not {type(answer).__name__}")
    elif not answer.strip():
        raise InputError(f"{where}: {name} is empty")
    else:
        whole.append(({"role": "assistant", "content": answer}, True))
    return _conversation(whole, [*fields, name], where, last="assistant")


def _question(record: Record, asks: str, where: str) -> tuple[list[Message], list[str]]:
    """The conversation up to its last question, and the fields that it is made of."""
    system, fields = _system(record, where)
    opening = system + _history(record, where)
    fields += ["history"]
    if isinstance(record[asks], list):
        asked = [message for message, _ in turns(record[asks], asks, where)]
        return opening + asked, [*fields, asks]
    more = [name for name in MORE if name != asks and _given(record, name)] if asks != "input" else []
    texts = [record[name] for name in (asks, *more) if record[name] not in (None, "")]
    for name in (asks, *more):
        if record[name] is not None and not isinstance(record[name], str):
            raise InputError(f"{where}: {name} must be a string, not {type(record[name]).__name__}")
    question = "\n".join(texts)
    if not question.strip():
        raise InputError(f"{where}: {asks} is empty")
    return [*opening, *(transcript(question) or [_user(question)])], [*fields, asks, *more]


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _system(record: Record, where: str) -> tuple[list[Message], list[str]]:
    for name in SYSTEM:
        if _given(record, name):
            return [_message("system", record[name], name, where)], [name]
    return [], [name for name in SYSTEM if name in record]


def _history(record: Record, where: str) -> list[Message]:
    history = record.get("history")
    if history in (None, "", []):
        return []
    if not isinstance(history, list):
        raise InputError(f"{where}: history must be a list of [question, answer], not {type(history).__name__}")
    if isinstance(history[0], Mapping):
        return [message for message, _ in turns(history, "history", where)]
    messages = []
    for place, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise InputError(f"{where}: history[{place}] must be [question, answer]")
        for at, (role, text) in enumerate(zip(("user", "assistant"), pair, strict=True)):
            messages.append(_message(role, text, f"history[{place}][{at}]", where))
    return messages


def transcript(text: str) -> list[Message]:
    """The turns of a text in the form of HH-RLHF, "\\n\\nHuman: ...\\n\\nAssistant: ...", or of BELLE, which has one
    line break or none, and ends with "Assistant:"; [] if it is in none. An empty turn of the assistant at the end,
    which asks for an answer, is left out."""
    breaks = "\n\n"
    if text.startswith("Human:") and text.rstrip().endswith("\nAssistant:"):
        breaks, text = "\n", "\n" + text
    if not text.startswith(f"{breaks}Human:"):
        return []
    messages: list[Message] = []
    for part in text.split(f"{breaks}Human:")[1:]:
        asked, *answers = part.split(f"{breaks}Assistant:")
        messages += [_user(asked.strip()), *({"role": "assistant", "content": one.strip()} for one in answers)]
    return messages[:-1] if messages[-1]["role"] == "assistant" and not messages[-1]["content"] else messages


def _given(record: Record, name: str) -> bool:
    return record.get(name) not in (None, "", [])


def _refuse_beside(record: Record, where: str) -> None:
    for name in _NO_PLACE_BESIDE:
        if record.get(name) not in (None, "", "[]", [], {}):
            what = "an answer that is good or bad by itself (KTO) is not learnt from" if name == "kto_tag" else ""
            raise InputError(f"{where}: {name}: {what or 'the chat format has no place for it'}; leave it out")


def _check_beside(record: Record, made: Conversation, where: str) -> None:
    """Refuse what would ask something, and is in no message; and names that are nearly those of such fields."""
    said = "\n".join(message["content"] for message in made.messages)
    for name in ("instruction", "prompt", "question", *MORE, *SYSTEM, "history"):
        value = record.get(name)
        if name in made.fields or value in (None, "", []):
            continue
        if name == "history" or (isinstance(value, str) and value.strip() not in said):
            raise InputError(
                f"{where}: {name} beside {_first(made.fields)}: is it asked too? Leave it out, or put it in"
            )
    rest = {name: record[name] for name in record if name not in made.fields}
    optional = SYSTEM[:1] if made.fields & set(TALKS) else (*SYSTEM[:1], "history", "input")
    for name in optional:
        if name not in record and (near := _alike(name, rest)):
            raise InputError(f"{where}: field {near!r} looks like {name!r}; rename it, or leave it out")


def _first(fields: frozenset[str]) -> str:
    return next(name for name in (*TALKS, *ANSWERED) if name in fields)


def _alike(name: str, record: Record) -> str:
    """The first field of a record that is `name` but for a slip of the hand; "" if there is none."""
    known = {*TALKS, *ANSWERED, *MORE, *SYSTEM, *(a for names in ANSWERED.values() for a in names)}
    return next((field for field in record if field not in known and _slip(field.lower(), name)), "")


def _slip(typed: str, meant: str) -> bool:
    """Whether one letter is missing, too many or wrong, or two are swapped, or nothing is but the case."""
    at = next((n for n, (a, b) in enumerate(zip(typed, meant, strict=False)) if a != b), min(len(typed), len(meant)))
    (a, b) = (typed[at:], meant[at:])
    return a == b or b in (a[1:], a[1::-1] + a[2:]) or a[1:] == b[1:] or a == b[1:]


def _unknown(record: Record) -> str:
    wanted = [*TALKS, *ANSWERED, *(answer for names in ANSWERED.values() for answer in names)]
    near = next(((field, name) for name in wanted if name not in record and (field := _alike(name, record))), None)
    hint = f" ({near[0]!r} looks like {near[1]!r})" if near else ""
    ranking = "; chosen and rejected are a ranking, for reward.files" if "chosen" in record else ""
    return f"the fields {', '.join(record) or 'none'} make no sample{hint}; one has {KNOWN}{ranking}"

"""The chat format: who said what, as token ids. A folder's own template writes it, or ChatML where there is none.

Contents are encoded as plain text, so nothing that a user types opens or closes a turn. In ChatML the marks are put in
by id; a template's text is taken apart at its marks (see `moe.text.rendering`).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from conf.errors import InputError
from moe.text.template import ROLES
from moe.text.tokenizer import Tokenizer

Tools = Sequence[Mapping[str, Any]]  # as OpenAI writes them: {"type": "function", "function": {"name", ...}}


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], tools: Tools = ()) -> list[int]:
    """Ids of the conversation so far and what comes before an answer: what a model continues with its answer. Raises
    `InputError` for a conversation that the folder's template refuses, and for `tools`, calls and their results (role
    "tool") where it knows none."""
    used = bool(tools) or any(message.get("role") == "tool" or message.get("tool_calls") for message in messages)
    if used and not knows_tools(tokenizer):
        raise InputError("the model's chat template knows no tools whose calls are written as <tool_call>{...}")
    if tokenizer.form.template:
        check(messages, roles=(*ROLES, "tool") if used else ROLES)
        return tokenizer.encode_rendered(tokenizer.writer.prompt(messages, tools))[0]
    ids = sample_ids(tokenizer, messages)[0]
    return [*ids, tokenizer.im_start, *tokenizer.encode("assistant\n")]


def knows_tools(tokenizer: Tokenizer) -> bool:
    return bool(tokenizer.form.template) and tokenizer.writer.calls


def sample_ids(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """Ids of a whole conversation and its loss mask, of equal length: 1 on answers and the mark that ends each, which
    is all that a model says after its prompt."""
    check(messages)
    ids: list[int]
    mask: list[int]
    if tokenizer.form.template:
        ids, answers = tokenizer.encode_rendered(tokenizer.writer.whole(messages))
        mask = [0] * len(ids)
        for start, stop in answers:
            mask[start:stop] = [1] * (stop - start)
        return ids, mask
    ids, mask = list(tokenizer.opening), [0] * len(tokenizer.opening)
    for message in messages:
        header, content, newline = tokenizer.encode_batch([f"{message['role']}\n", message["content"], "\n"])
        ids += [tokenizer.im_start, *header, *content, tokenizer.im_end, *newline]
        learnt = int(message["role"] == "assistant")
        mask += [0] * (1 + len(header)) + [learnt] * (len(content) + 1) + [0] * len(newline)
    return ids, mask


def answer_ids(tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[list[int]]:
    """Ids of each answer to the conversation, its end included: what comes after `prompt_ids` in `sample_ids`."""
    if not tokenizer.form.template:
        return [[*ids, tokenizer.im_end] for ids in tokenizer.encode_batch(answers)]
    found = []
    for answer in answers:
        whole = [*messages, {"role": "assistant", "content": answer}]
        ids, places = tokenizer.encode_rendered(tokenizer.writer.whole(whole))
        found.append(ids[slice(*places[-1])])
    return found


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Put what a conversation belongs to before the `InputError` of a template that refuses it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from None


def replacement(tokenizer: Tokenizer) -> str:
    """A line that says what a folder without a chat template gets in its place; "" for one that has its own."""
    if tokenizer.form.given:
        return ""
    return (
        f"{tokenizer.form.where}: no chat template; conversations are written in ChatML, with <|im_start|> and "
        "<|im_end|> as marks"
    )


def check(messages: Sequence[Mapping[str, Any]], roles: Sequence[str] = ROLES) -> None:
    """Raise `InputError` unless `messages` is a conversation: one or more of {"role", "content"}, contents strings."""
    if not messages:
        raise InputError("messages is empty; a conversation needs at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InputError(f"messages[{index}] is {type(message).__name__}; it must be an object")
        if message.get("role") not in roles:
            raise InputError(f"messages[{index}].role={message.get('role')!r} must be one of {', '.join(roles)}")
        if not isinstance(message.get("content"), str):
            raise InputError(f"messages[{index}].content={message.get('content')!r:.80} must be a string")

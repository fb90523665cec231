"""The chat format (ChatML): who said what, as token ids.

The marks are put in by id and the contents encoded as plain text, so nothing that a user types opens or closes a turn.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from conf.schema import InputError

if TYPE_CHECKING:  # moe.tokenizer writes TEMPLATE beside its vocabulary
    from moe.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def prompt_ids(tokenizer: "Tokenizer", messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Ids of the conversation so far and the assistant's header: what a model continues with its answer."""
    ids = sample_ids(tokenizer, messages)[0]
    return [*ids, tokenizer.im_start, *tokenizer.encode("assistant\n")]


def sample_ids(tokenizer: "Tokenizer", messages: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """Ids of a whole conversation and its loss mask, of equal length: 1 on answers and the `<|im_end|>` of each."""
    check(messages)
    ids: list[int] = []
    mask: list[int] = []
    for message in messages:
        header, content, newline = tokenizer.encode_batch([f"{message['role']}\n", message["content"], "\n"])
        ids += [tokenizer.im_start, *header, *content, tokenizer.im_end, *newline]
        learnt = int(message["role"] == "assistant")
        mask += [0] * (1 + len(header)) + [learnt] * (len(content) + 1) + [0] * len(newline)
    return ids, mask


def check(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise `InputError` unless `messages` is a conversation: one or more of {"role", "content"}, contents strings."""
    if not messages:
        raise InputError("messages is empty; a conversation needs at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InputError(f"messages[{index}] is {type(message).__name__}; it must be an object")
        if message.get("role") not in ROLES:
            raise InputError(f"messages[{index}].role={message.get('role')!r} must be one of {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str):
            raise InputError(f"messages[{index}].content={message.get('content')!r:.80} must be a string")

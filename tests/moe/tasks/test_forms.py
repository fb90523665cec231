"""Instruction data in the forms that they are published in: what conversation each becomes, or why it becomes none."""

import re
from typing import Any

import pytest

from conf.errors import InputError
from moe.tasks import forms
from moe.tasks.task import Message

WHERE = "own.jsonl:7"
S, U, A = "system", "user", "assistant"
ASK, SAY = {"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5."}
IMAGE = {"type": "image_url", "image_url": {"url": "https://x/y.png"}}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "f"}}]}

Turns = list[tuple[str, str]]


def told(*turns: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in turns]


FORMS: dict[str, tuple[dict[str, Any], Turns, tuple[int, ...]]] = {  # name: record, its conversation, what is muted
    "Alpaca": (
        {"instruction": "Add", "input": "2 3", "output": "5", "text": "Below is an instruction ..."},
        [(U, "Add\n2 3"), (A, "5")],
        (),
    ),
    "Alpaca without input": ({"instruction": "Hi", "input": None, "output": "Yes?"}, [(U, "Hi"), (A, "Yes?")], ()),
    "Alpaca without instruction": ({"instruction": "", "input": "Hi", "output": "Yes?"}, [(U, "Hi"), (A, "Yes?")], ()),
    "Alpaca, its null left out": ({"input": "Hi", "output": "Yes?"}, [(U, "Hi"), (A, "Yes?")], ()),
    "LLaMA-Factory": (
        {
            "instruction": "And what is its population?",
            "input": "",
            "output": "About 470 thousand people.",
            "system": "You are a terse geography teacher.",
            "history": [["What is the capital of Australia?", "Canberra."]],
        },
        [
            (S, "You are a terse geography teacher."),
            (U, "What is the capital of Australia?"),
            (A, "Canberra."),
            (U, "And what is its population?"),
            (A, "About 470 thousand people."),
        ],
        (),
    ),
    "LLaMA-Factory, all empty": (
        {"instruction": "Hi", "input": "", "output": "Yes?", "system": "", "history": [], "images": [], "tools": "[]"},
        [(U, "Hi"), (A, "Yes?")],
        (),
    ),
    "ms-swift": (
        {"system": "Be brief", "query": "Hi", "response": "Yes?", "history": [["a", "b"], ["c", "d"]]},
        [(S, "Be brief"), (U, "a"), (A, "b"), (U, "c"), (A, "d"), (U, "Hi"), (A, "Yes?")],
        (),
    ),
    "prompt, query and response": ({"prompt": "Add", "query": "2 3", "response": "5"}, [(U, "Add\n2 3"), (A, "5")], ()),
    "Dolly": (
        {"instruction": "When?", "context": "In 1999.", "response": "1999", "category": "closed_qa"},
        [(U, "When?\nIn 1999."), (A, "1999")],
        (),
    ),
    "OpenOrca": (
        {"id": "niv.1", "system_prompt": "Be kind", "question": "Why?", "response": "So."},
        [(S, "Be kind"), (U, "Why?"), (A, "So.")],
        (),
    ),
    "question and answer": ({"question": "Why?", "answer": "So."}, [(U, "Why?"), (A, "So.")], ()),
    "OpenAI": (
        {"messages": told((S, "Brief"), (U, "a"), (A, "b"), (U, "c"), (A, "d"))},
        [(S, "Brief"), (U, "a"), (A, "b"), (U, "c"), (A, "d")],
        (),
    ),
    "OpenAI with weights": (
        {"messages": [*told((U, "a")), {**SAY, "weight": 0}, ASK, {**SAY, "weight": 1}]},
        [(U, "a"), (A, "5."), (U, "2 + 3?"), (A, "5.")],
        (1,),
    ),
    "axolotl's train": (
        {"messages": [ASK, {**SAY, "train": False}, {**ASK, "train": False}, SAY]},
        [(U, "2 + 3?"), (A, "5."), (U, "2 + 3?"), (A, "5.")],
        (1,),
    ),
    "OpenAI with parts": (
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": " kind"}]},
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Yes?"}], "tool_calls": None},
            ]
        },
        [(S, "Be kind"), (U, "Hi"), (A, "Yes?")],
        (),
    ),
    "messages with an empty system message": (
        {"messages": [{"role": "system", "content": ""}, ASK, SAY], "tools": None},
        [(U, "2 + 3?"), (A, "5.")],
        (),
    ),
    "messages beside system": (
        {"system": "Brief", "messages": [ASK, SAY]},
        [(S, "Brief"), (U, "2 + 3?"), (A, "5.")],
        (),
    ),
    "UltraChat": ({"prompt": "2 + 3?", "prompt_id": "x", "messages": [ASK, SAY]}, [(U, "2 + 3?"), (A, "5.")], ()),
    "ShareGPT": (
        {
            "id": "x_0",
            "system": "Brief",
            "conversations": [
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
                {"from": "user", "value": "c"},
                {"from": "chatgpt", "value": "d"},
                {"from": "human", "value": "e"},
                {"from": "assistant", "value": "f"},
            ],
        },
        [(S, "Brief"), (U, "a"), (A, "b"), (U, "c"), (A, "d"), (U, "e"), (A, "f")],
        (),
    ),
    "ShareGPT with a system turn": (
        {
            "conversation": [
                {"from": "system", "value": "x"},
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
            ]
        },
        [(S, "x"), (U, "a"), (A, "b")],
        (),
    ),
    "conversations of roles": ({"conversations": [ASK, SAY]}, [(U, "2 + 3?"), (A, "5.")], ()),
    "Firefly": (
        {"conversation": [{"human": "a", "assistant": "b"}, {"human": "c", "assistant": "d"}]},
        [(U, "a"), (A, "b"), (U, "c"), (A, "d")],
        (),
    ),
    "XTuner": (
        {"conversation": [{"system": "s", "input": "a", "output": "b"}, {"input": "c", "output": "d"}]},
        [(S, "s"), (U, "a"), (A, "b"), (U, "c"), (A, "d")],
        (),
    ),
    "UltraChat's own": ({"id": "0", "data": ["a", "b", "c", "d"]}, [(U, "a"), (A, "b"), (U, "c"), (A, "d")], ()),
    "LIMA": ({"conversations": ["a", "b"], "source": "x"}, [(U, "a"), (A, "b")], ()),
    "data of one's own": ({"data": {"x": 1}, "question": "a", "answer": "b"}, [(U, "a"), (A, "b")], ()),
    "Wizard-Vicuna": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "bing", "value": "b"}]},
        [(U, "a"), (A, "b")],
        (),
    ),
    "OpenAssistant": (
        {"conversation": [{"role": "prompter", "text": "a"}, {"role": "assistant", "text": "b"}]},
        [(U, "a"), (A, "b")],
        (),
    ),
    "conversations of role and value": (
        {"conversations": [{"role": "user", "value": "a"}, {"role": "assistant", "value": "b"}]},
        [(U, "a"), (A, "b")],
        (),
    ),
    "BELLE": (
        {"instruction": "Human:a\nAssistant:b\nHuman:c\nAssistant:\n", "input": "", "output": "d"},
        [(U, "a"), (A, "b"), (U, "c"), (A, "d")],
        (),
    ),
    "a question about a transcript": (
        {"instruction": "Human: a\nAssistant: b\nWho is right?", "output": "c"},
        [(U, "Human: a\nAssistant: b\nWho is right?"), (A, "c")],
        (),
    ),
    "P3": ({"inputs": "a", "targets": "b", "task": "x"}, [(U, "a"), (A, "b")], ()),
    "Firefly 1.1M": ({"kind": "NLI", "input": "a", "target": "b"}, [(U, "a"), (A, "b")], ()),
    "NuminaMath": ({"problem": "2 + 3?", "solution": "It is 5.", "answer": "5"}, [(U, "2 + 3?"), (A, "It is 5.")], ()),
    "TRL": ({"prompt": "The sky is", "completion": " blue."}, [(U, "The sky is"), (A, " blue.")], ()),
    "TRL in messages": ({"prompt": [ASK], "completion": [SAY]}, [(U, "2 + 3?"), (A, "5.")], ()),
    "TRL, answers of the prompt": (
        {"prompt": told((S, "x"), (U, "a"), (A, "b"), (U, "c")), "completion": told((A, "d"))},
        [(S, "x"), (U, "a"), (A, "b"), (U, "c"), (A, "d")],
        (2,),
    ),
    "a transcript": (
        {"prompt": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", "completion": " d"},
        [(U, "a"), (A, "b"), (U, "c"), (A, " d")],
        (1,),
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_becomes_this_conversation(name: str) -> None:
    record, turns, muted = FORMS[name]
    made = forms.sample(record, WHERE)
    assert (made.messages, made.muted) == (told(*turns), muted)
    assert forms.is_sample(record)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"instruction": "a", "outptu": "b"},
        "no field 'output', did you mean it by 'outptu'?; a sample has messages, conv",
    ),
    (
        {"instruction": "a", "output": "b", "sytem": "c"},
        "field 'sytem' looks like 'system'; rename it, or leave it out",
    ),
    ({"instruction": "a", "output": "b", "histroy": []}, "field 'histroy' looks like 'history'"),
    ({"instruction": "a", "output": "b", "Input": "c"}, "field 'Input' looks like 'input'"),
    ({"messages": [ASK, SAY], "systme": "c"}, "field 'systme' looks like 'system'"),
    ({"mesages": [ASK, SAY]}, "the fields mesages make no sample ('mesages' looks like 'messages'); one has messages,"),
    ({"text": "a"}, "the fields text make no sample; one has messages, conversations, instruction and output, prompt"),
    ({"prompt": "a", "chosen": "b", "rejected": "c"}, "no field 'completion'; a sample has .*for reward.files"),
    (
        {"chosen": [ASK, SAY], "rejected": [ASK]},
        "make no sample; .*; chosen and rejected are a ranking, for reward.files",
    ),
    ({"instruction": "a", "output": "b", "history": [["q"]]}, "history[0] must be [question, answer]"),
    ({"instruction": "a", "output": "b", "history": "q"}, "history must be a list of [question, answer], not str"),
    ({"instruction": "a", "output": "b", "history": [["q", ""]]}, "history[0][1]='' must be a text that is not empty"),
    ({"instruction": "a", "output": "b", "system": 3}, "system=3 must be a text that is not empty"),
    ({"instruction": "a", "output": ["b", "c"]}, "output must be a string, not list"),
    ({"instruction": None, "output": "b"}, "instruction is empty"),
    ({"instruction": "a", "output": "b", "tools": "[{}]"}, "tools: the chat format has no place for it; leave it out"),
    ({"messages": [ASK, SAY], "images": ["x.png"]}, "images: the chat format has no place for it"),
    ({"messages": [ASK, SAY], "kto_tag": True}, "kto_tag: an answer that is good or bad by itself (KTO) is not learnt"),
    ({"messages": [ASK, CALL]}, "messages[1].tool_calls: the chat format has no place for it"),
    (
        {"messages": [ASK, SAY, {"role": "tool", "content": "x"}, SAY]},
        "messages[2].role='tool': the chat format has no turns of tools; leave it out",
    ),
    (
        {"conversations": [{"from": "observation", "value": "x"}]},
        "conversations[0].from='observation': the chat format",
    ),
    ({"conversations": [{"from": "human", "value": 3}]}, "conversations[0].value=3 must be a text that is not empty"),
    ({"conversations": [{"from": "gpt", "value": "a"}]}, "the roles are assistant; user and assistant must take turns"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}, SAY]},
        "messages[0].content[1] is of type 'image_url', which a text model cannot read",
    ),
    ({"messages": [ASK, {**SAY, "weight": 0.5}]}, "messages[1].weight=0.5 must be 0, no loss on this answer, or 1"),
    ({"messages": [ASK, {**SAY, "weight": 0}]}, "no answer carries loss: the weight of each is 0"),
    ({"messages": [ASK, {**SAY, "reasoning_content": "hm"}]}, "messages[1].reasoning_content: the chat format has no"),
    ({"messages": [ASK, SAY], "history": [["a", "b"]]}, "history beside messages: is it asked too?"),
    ({"messages": [ASK, SAY], "prompt": "Something else"}, "prompt beside messages: is it asked too?"),
    (
        {"messages": told((S, "a"), (U, "b"), (A, "c")), "system": "z"},
        "system says something else than the system message",
    ),
    (
        {"question": "a", "answer": "b", "instruction": "Say it in French"},
        "instruction beside question: is it asked too?",
    ),
]


@pytest.mark.parametrize(("record", "message"), REFUSED)
def test_what_is_not_understood_is_refused_by_name(record: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        forms.sample(record, WHERE)
    text = str(caught.value)
    assert text.startswith(f"{WHERE}: ") and "\n" not in text
    assert re.search(".*".join(map(re.escape, message.split(".*"))), text), text


def test_a_field_of_ones_own_is_no_slip_of_the_hand() -> None:
    own = {"story": "a", "system_id": "b", "contents": "c", "source": "d", "score": 1}
    assert forms.sample({"instruction": "a", "output": "b"} | own, WHERE).messages == told((U, "a"), (A, "b"))


def test_a_record_is_a_sample_if_it_asks_and_answers() -> None:
    assert not forms.is_sample({"text": "a", "question": "b"}) and not forms.is_sample({"prompt": "a", "output": "b"})


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "no question of the history is dropped",
        "moe/tasks/forms.py",
        "opening = system + _history(record, where)",
        "opening = system",
        "test_a_form_becomes_this_conversation",
    ),
    (
        "a system prompt is used",
        "moe/tasks/forms.py",
        "        if _given(record, name):\n            return [_message",
        "        if False:\n            return [_message",
        "test_a_form_becomes_this_conversation",
    ),
    (
        "an answer of weight 0 is muted",
        "moe/tasks/forms.py",
        "weight is None or weight == 1",
        "True",
        "test_a_form_becomes_this_conversation",
    ),
    (
        "of prompt and completion only the completion has loss",
        "moe/tasks/forms.py",
        'message["role"] != "assistant" or asks != "prompt"',
        "True",
        "test_a_form_becomes_this_conversation",
    ),
    (
        "a misspelt field is no field of one's own",
        "moe/tasks/forms.py",
        "if name not in record and (near := _alike(name, rest)):",
        "if False and (near := _alike(name, rest)):",
        "test_what_is_not_understood_is_refused_by_name",
    ),
    (
        "what else might be asked is not left out in silence",
        "moe/tasks/forms.py",
        'if name == "history" or (',
        "if False and (",
        "test_what_is_not_understood_is_refused_by_name",
    ),
    (
        "a turn of a tool is refused",
        "moe/tasks/forms.py",
        "    if role in TOOLS:",
        "    if role in ():",
        "test_what_is_not_understood_is_refused_by_name",
    ),
    (
        "an image is no text",
        "moe/tasks/forms.py",
        '    raise InputError(f"{where}: {at} is of type',
        '    return ""\n    raise InputError(f"{where}: {at} is of type',
        "test_what_is_not_understood_is_refused_by_name",
    ),
]

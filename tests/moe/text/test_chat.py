from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import InputError
from conf.knobs.text import Tokenizer as Settings
from moe.text.chat import prompt_ids, sample_ids
from moe.text.template import ROLES
from moe.text.tokenizer import SPECIALS, Tokenizer

TEXTS = ["user assistant system the poem\n", "作一首五言绝句，题为《春》。\n春眠不觉曉。"] * 5
PLAIN = st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "<|" not in text)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, Settings(vocab_size=450))


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_loss_falls_on_the_answer_and_its_end_only(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "作诗"}, {"role": "assistant", "content": "春眠。"}]
    ids, mask = sample_ids(tokenizer, messages)
    learnt = [index for index, one in zip(ids, mask, strict=True) if one]
    assert learnt == [*tokenizer.encode("春眠。"), tokenizer.im_end]
    assert mask[-1] == 0  # the newline after the answer
    assert ids == prompt_ids(tokenizer, messages[:1]) + learnt + tokenizer.encode("\n")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ROLES), PLAIN), min_size=1, max_size=4))
def test_ids_are_those_of_the_template_text(tokenizer: Tokenizer, theirs: Any, turns: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in turns]
    text = theirs.apply_chat_template(messages, tokenize=False)
    assert theirs(text)["input_ids"] == sample_ids(tokenizer, messages)[0]
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert theirs(text)["input_ids"] == prompt_ids(tokenizer, messages)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([*SPECIALS, "<|", "|>", "x", "\n", "im_end", "春"])).map("".join))
def test_a_user_cannot_inject_a_turn(tokenizer: Tokenizer, text: str) -> None:
    ids, mask = sample_ids(tokenizer, [{"role": "user", "content": text}])
    assert [index for index in ids if index < len(SPECIALS)] == [tokenizer.im_start, tokenizer.im_end]
    assert tokenizer.decode(ids) == f"user\n{text}\n"
    assert not any(mask)


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages is empty"),
        ([{"role": "tool", "content": "x"}], r"messages\[0\].role='tool' must be one of system, user, assistant"),
        ([{"role": "user", "content": "x"}, {"role": "user"}], r"messages\[1\].content=None must be a string"),
        (["hello"], r"messages\[0\] is str"),
    ],
)
def test_bad_conversations_are_named(tokenizer: Tokenizer, messages: list[Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        sample_ids(tokenizer, messages)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "user text never becomes a special token",
        "moe/text/tokenizer.py",
        "self._backend.encode_special_tokens = True",
        "self._backend.encode_special_tokens = False",
        None,
    ),
    ("prompts carry no loss", "moe/text/chat.py", 'learnt = int(message["role"] == "assistant")', "learnt = 1", None),
]

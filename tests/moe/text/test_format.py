"""A parent's chat format is kept: ids are those that transformers gives for the folder, and nobody can type a mark."""

import json
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from conf.errors import InputError
from conf.knobs.text import Tokenizer as Settings
from moe.text.chat import answer_ids, prompt_ids, replacement, sample_ids
from moe.text.defaults import Defaults
from moe.text.format import Format
from moe.text.template import ROLES, TEMPLATE
from moe.text.tokenizer import Tokenizer
from moe.text.vocabulary import extend_with_characters
from tests.moe.text.parents import BEGIN, PARENTS, parent

CONVERSATIONS = [
    [("user", "the cat, 中国?")],
    [("system", "be a cat."), ("user", "what sat? 2024")],
    [("user", "x < y"), ("assistant", "the hat"), ("user", "and then\n\nwhat")],
    [("user", "the cat"), ("assistant", "one\ntwo")],
    [("system", "S"), ("user", "a"), ("assistant", "b 中"), ("user", "  padded \n"), ("assistant", "the end.")],
]
Turns = list[tuple[str, str]]


def spoken(turns: Turns) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: parent(name, tmp_path_factory.mktemp(name)) for name in PARENTS}


@pytest.fixture(params=PARENTS)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


def named(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.specials.get(index) or tokenizer.bytes_of(index).decode(errors="replace") for index in ids]


@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_ids_are_those_of_the_folders_own_template(folder: Path, turns: Turns, tmp_path: Path) -> None:
    ours, messages = Tokenizer.load(folder), spoken(turns)
    ours.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert again.digest == ours.digest
    for where in (folder, tmp_path):  # the parent's folder, and one that a stage writes
        theirs: Any = transformers.AutoTokenizer.from_pretrained(where)
        whole = theirs.apply_chat_template(messages, return_dict=False)
        assert sample_ids(ours, messages)[0] == sample_ids(again, messages)[0] == whole
        asked = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert prompt_ids(ours, messages) == prompt_ids(again, messages) == asked
        for text in ("the cat", "中国 2024", ""):
            begun = [*ours.opening, *ours.encode_texts([text])[0]]
            if where == tmp_path or "deepseek" not in folder.name:  # transformers 5 forgets DeepSeek's add_bos_token
                assert begun == theirs(text)["input_ids"]


@pytest.mark.parametrize(
    ("name", "learnt"),
    [
        ("smollm2", ["one\ntwo", "<|im_end|>"]),
        ("qwen3", ["<think>\n\n</think>\n\none\ntwo", "<|im_end|>"]),
        ("llama3", ["one\ntwo", "<|eot_id|>"]),
        ("llama2", [" one\ntwo ", "</s>"]),
        ("deepseek_v3", ["one\ntwo", PARENTS["deepseek_v3"].end]),
    ],
)
def test_all_that_follows_the_prompt_is_learnt_up_to_the_end(
    folders: dict[str, Path], name: str, learnt: list[str]
) -> None:
    ours, messages = Tokenizer.load(folders[name]), spoken(CONVERSATIONS[3])
    ids, mask = sample_ids(ours, messages)
    answer = [index for index, one in zip(ids, mask, strict=True) if one]
    assert ["".join(named(ours, answer[:-1])), ours.specials[answer[-1]]] == learnt
    assert answer == answer_ids(ours, messages[:1], ["one\ntwo"])[0]
    prompt = prompt_ids(ours, messages[:1])
    assert ids[: len(prompt)] == prompt and ids[len(prompt) :][: len(answer)] == answer
    assert not any(mask[: len(prompt)])
    assert ours.specials[ours.turn_end] == PARENTS[name].end and ours.stop[0] == ours.turn_end


def test_each_answer_of_a_conversation_is_learnt(folder: Path) -> None:
    ours = Tokenizer.load(folder)
    ids, mask = sample_ids(ours, spoken([("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "b")]))
    ends = [place for place, index in enumerate(ids) if index == ours.turn_end and mask[place]]
    assert len(ends) == 2
    assert [
        named(ours, ids[end - 1 : end])[0].strip() or named(ours, ids[end - 2 : end])[0].strip() for end in ends
    ] == ["b", "b"]


def test_the_default_system_turn_and_the_first_mark_stay(folders: dict[str, Path]) -> None:
    asked = spoken([("user", "the cat")])
    smollm = Tokenizer.load(folders["smollm2"])
    assert "You are a helpful AI assistant named SmolLM" in smollm.decode(prompt_ids(smollm, asked))
    for name, bos in (("llama3", "<|begin_of_text|>"), ("llama2", "<s>"), ("deepseek_v3", BEGIN)):
        ours = Tokenizer.load(folders[name])
        prompt = named(ours, prompt_ids(ours, asked))
        assert prompt[0] == bos and prompt.count(bos) == 1
        assert [ours.specials[index] for index in ours.opening] == [bos]
    assert smollm.opening == Tokenizer.load(folders["qwen3"]).opening == ()


def test_the_ends_are_those_of_template_document_and_folder(folders: dict[str, Path]) -> None:
    llama, qwen = Tokenizer.load(folders["llama3"]), Tokenizer.load(folders["qwen3"])
    assert [llama.specials[index] for index in llama.stop] == ["<|eot_id|>", "<|end_of_text|>"]
    assert qwen.stop == (qwen.turn_end, qwen.eos, 3, 5)
    assert Defaults.of(qwen, chat=True).stop == qwen.stop
    assert Defaults.of(llama, chat=False, also=(llama.turn_end,)).stop == (llama.eos, llama.turn_end)
    assert Defaults.of(llama, chat=True).bos == llama.opening[0]


def test_a_thousand_hostile_texts_open_and_close_nothing(folder: Path) -> None:
    ours, dice = Tokenizer.load(folder), random.Random(0)
    added = [str(token["content"]) for token in ours.description["added_tokens"]]
    turns = {index for name, index in ours._ids.items() if name in added and "hink" not in name}
    halves = [part for name in added for part in (name[: len(name) // 2], name[len(name) // 2 :])]
    bits = [*added, *halves, "a", " ", "\n", "中", "\U00100000", "\U00100001", "<", ">", "|", "[INST]", "</think>"]
    expected: dict[int, list[int]] = {}
    for number in range(200):  # of each of the five
        hostile = ["".join(dice.choices(bits, k=dice.randint(1, 8))) for _ in range(3)]
        kinds = [[("user", 0)], [("system", 1), ("user", 0)], [("user", 1), ("assistant", 2), ("user", 0)]]
        form = kinds[number % 3]
        if number % 3 not in expected:
            plain = prompt_ids(ours, spoken([(role, "a") for role, _ in form]))
            expected[number % 3] = [index for index in plain if index in turns]
        ids = prompt_ids(ours, spoken([(role, hostile[which]) for role, which in form]))
        calls = {ours._ids[name] for name in added if "tool" in name} if form[1:2] == [("assistant", 2)] else set()
        assert [index for index in ids if index in turns - calls] == expected[number % 3], hostile
        if "\n" not in hostile[0].strip() and len(form) == 1 and hostile[0].strip():
            assert hostile[0].strip() in ours.decode(ids)


OWN = Tokenizer.train(
    ["user assistant system the poem\n", "作一首五言绝句，题为《春》。"] * 5, Settings(vocab_size=450)
)
AS_A_TEMPLATE = Tokenizer(OWN.files()["tokenizer.json"], form=Format(template=TEMPLATE))
PLAIN = st.text(st.one_of(st.sampled_from("<|im_end|>\n春 a"), st.characters(exclude_categories=["Cs"])))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(ROLES), PLAIN), min_size=1, max_size=4))
def test_our_own_format_is_one_template_among_others(turns: Turns) -> None:
    messages = spoken(turns)
    assert AS_A_TEMPLATE.digest == OWN.digest and AS_A_TEMPLATE.stop == OWN.stop
    assert prompt_ids(AS_A_TEMPLATE, messages) == prompt_ids(OWN, messages)
    assert sample_ids(AS_A_TEMPLATE, messages) == sample_ids(OWN, messages)


def test_the_format_goes_where_the_tokenizer_goes(folders: dict[str, Path], tmp_path: Path) -> None:
    ours, messages = Tokenizer.load(folders["llama3"]), spoken(CONVERSATIONS[2])
    copy = pickle.loads(pickle.dumps(ours))
    assert prompt_ids(copy, messages) == prompt_ids(ours, messages) and copy.opening == ours.opening
    grown = extend_with_characters(ours, ["龘龘靐"], 2)
    assert grown.size > ours.size and prompt_ids(grown, messages) == prompt_ids(ours, messages)
    grown.save(tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"] == ours.form.template
    assert "<|im_start|>" not in ours.description["model"]["vocab"]  # nothing is added that nobody writes


def test_a_folder_without_a_template_gets_ours_and_a_line_says_so(tmp_path: Path) -> None:
    folder = PARENTS["llama3"].write(tmp_path / "plain", None)
    ours, messages = Tokenizer.load(folder), spoken([("user", "the cat")])
    assert replacement(ours) == (
        f"{folder}: no chat template; conversations are written in ChatML, with <|im_start|> and <|im_end|> as marks"
    )
    assert named(ours, prompt_ids(ours, messages))[:2] == ["<|begin_of_text|>", "<|im_start|>"]
    ours.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert replacement(again) == "" and again.form.template == ""  # the fast way, by id
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    asked = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert prompt_ids(again, messages) == prompt_ids(ours, messages) == asked


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no system here') }}", "the chat template refuses this conversation: no system here"),
        ("{% for message in messages %}{{ message.content }}{% endfor %}", "it ends messages[1] with no mark"),
        ("{{ messages[0].content }}</s>", "it does not write messages[1] as it stands"),
        ("{{ messages[0].nobody.at_all }}", "refuses this conversation: 'dict object' has no attribute 'nobody'"),
        ("{{ ''.__class__.__mro__ }}", "refuses this conversation: access to attribute '__class__'"),
        ("{{ messages.clear() }}", "refuses this conversation: "),
        ("{% if %}", "the chat template is no Jinja: Expected an expression"),
    ],
)
def test_what_a_template_refuses_is_told_in_a_line(template: str, words: str, tmp_path: Path) -> None:
    ours = Tokenizer.load(PARENTS["llama2"].write(tmp_path, template))
    with pytest.raises(InputError) as caught:
        sample_ids(ours, spoken([("user", "a"), ("assistant", "b")]))
    assert str(caught.value).startswith(f"{tmp_path}: ") and words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_day_stands_still(tmp_path: Path) -> None:
    ours = Tokenizer.load(PARENTS["llama2"].write(tmp_path, "{{ strftime_now('%d %b %Y') }}"))
    assert ours.decode(prompt_ids(ours, spoken([("user", "a")]))).strip() == "26 Jul 2024"


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a folder's own template is kept",
        "moe/text/format.py",
        'template="" if written in TEMPLATES else str(written or ""),',
        'template="",',
        "test_ids_are_those_of_the_folders_own_template",
    ),
    (
        "the mark before every text is kept",
        "moe/text/families.py",
        'out["post_processor"] = _begun(marks, out["model"]["vocab"])',
        'out["post_processor"] = None',
        None,
    ),
    (
        "nobody types a special token into a template",
        "moe/text/rendering.py",
        'return names.sub(lambda found: f"{found[0][0]}{dropped}{found[0][1:]}", value)',
        "return value",
        "test_a_thousand_hostile_texts_open_and_close_nothing",
    ),
    (
        "nor a mark that only the template makes one",
        "moe/text/rendering.py",
        'lambda found: f"{found[0][0]}{cut}{found[0][1:]}"',
        "lambda found: found[0]",
        "test_a_thousand_hostile_texts_open_and_close_nothing",
    ),
    (
        "an answer is learnt from where its prompt ends",
        "moe/text/rendering.py",
        "if prompt and text.startswith(prompt):",
        "if False:",
        "test_all_that_follows_the_prompt_is_learnt_up_to_the_end",
    ),
    (
        "what the folder's model ends on ends an answer",
        "moe/text/tokenizer.py",
        "(self.turn_end, self.eos, *self.form.ends)",
        "(self.turn_end, self.eos)",
        "test_the_ends_are_those_of_template_document_and_folder",
    ),
]

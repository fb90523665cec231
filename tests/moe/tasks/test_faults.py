"""What is no answer, whatever was asked; and that ordinary answers are not taken for it."""

import pytest

from moe.tasks.faults import copied, empty, ends_well, markup, mixed, once, real, refusal, repeats, unclosed
from moe.tasks.sensitive import sensitive

PROSE = (
    "Photosynthesis is how plants make food from light. Leaves take in carbon dioxide, and roots bring water. With the "
    "energy of the sun, the plant turns both into sugar, and oxygen leaves through the same pores."
)
CHINESE = (
    "光合作用是植物用光制造食物的过程。叶子吸收二氧化碳，根送来水。植物用太阳的能量把它们变成糖，氧气从叶子里出去。"
)


@pytest.mark.parametrize("text", ["", "。", "...", "?!", "😀", "- -", "“”"])
def test_marks_alone_say_nothing(text: str) -> None:
    assert empty(text) and not empty(text + "5")


@pytest.mark.parametrize(
    "text",
    [
        "I don't know.",
        "I don’t know",
        "I'm sorry, but I can't help with that.",
        "Sorry, I cannot answer this question.",
        "As an AI language model, I don't have access to that.",
        "As an AI, my abilities are limited and I cannot say.",
        "I'm not sure.",
        "No idea.",
        "Unfortunately, I am unable to provide that.",
        "我不知道。",
        "抱歉，我无法回答这个问题。",
        "对不起，我不知道",
        "作为一个人工智能语言模型，我无法提供这些信息。",
        "I'm sorry, but I can't help with that. " + PROSE * 3,
    ],
)
def test_refusals(text: str) -> None:
    assert refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "I am sorry to hear that you are ill.",
        "Sorry for the delay, the answer is five.",
        "I can't wait to see you!",
        "I do not like cats.",
        "I don't know much about wine, but " + PROSE * 3,
        "The phrase 'I don't know' is 'je ne sais pas'.",
        "抱歉让你久等了，答案是五。",
        "我知道，是巴黎。",
        PROSE,
        CHINESE,
    ],
)
def test_what_is_no_refusal(text: str) -> None:
    assert not refusal(text)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        (PROSE, 0.0),
        (CHINESE, 0.0),
        ("The answer is that the cat that I saw is the cat that you saw.", 0.0),
        ("- red\n- green\n- blue", 0.0),
        ("Ha ha!", 0.0),
        ("the the the the", 1.0),
        ("I like cats. I like cats.", 1.0),
        ("春眠不觉晓。春眠不觉晓。", 1.0),
        ("好好好好好", 1.0),
        ("loooooooool", 1.0),
        ("one two one two one two one two", 1.0),
        ("ไปไปไปไปไปไปไปไป", 1.0),
    ],
)
def test_repetition_in_any_script(text: str, share: float) -> None:
    assert repeats(text) == share


def test_a_part_that_repeats_counts_in_part() -> None:
    four = ["Cats sleep all day.", "Dogs bark at night.", "Birds sing at dawn.", "Fish swim in ponds."]
    assert repeats(" ".join(four)) == 0.0
    assert repeats(" ".join([*four, four[0]])) == pytest.approx((0.2 - 0.1) / 0.4)
    assert once("A b c. A b c. D e.\nA b c.") == "A b c. D e."


def test_a_copy_of_what_was_said_is_no_answer() -> None:
    asked = "What is the capital of France?"
    assert copied(asked, [asked]) and copied("the capital of france", [asked]) and copied(f"{asked} {asked}", [asked])
    assert copied("法国的首都是哪里", ["法国的首都是哪里？"])
    assert not copied("The capital of France is Paris.", [asked]) and not copied(f"{asked} Paris.", [asked])
    assert not copied("red", ["Is it red or blue?"]) and not copied("Hello!", ["Hello!"])
    assert copied("Be brief and polite.", ["Be brief and polite.", asked])


def test_markup_that_nobody_asked_for() -> None:
    asked = "What is it?"
    for text in (
        "It is.<|im_end|>",
        "</s>",
        "It is.\nuser: more",
        "用户：你好",
        "a\ufffdb",
        "<div class=x>It</div>",
        "a\x00",
    ):
        assert markup(text, asked), text
    for text in ("It is.", "a < b and c > d", "if a<b and c>d", "```\n<p>x</p>\n```", "The user: a person? No."):
        assert not markup(text, asked), text
    assert not markup("<p>Hello</p>", "Write HTML for a paragraph")


def test_brackets_and_quotations_are_closed() -> None:
    for text in ("(a", "他说：“好", 'He said "no', "```\ncode", "[1, (2]"):
        assert unclosed(text), text
    for text in ("(a)", "1) a\n2) b", "“好”", 'a 5" disk', "```\nf(\n```", ":)", 'say "yes"'):
        assert not unclosed(text), text


def test_an_answer_ends_like_a_text() -> None:
    for text in (
        "It is.",
        "好。",
        'He said "no."',
        "Fine! 😀",
        "1. a\n2. b",
        "```\nx\n```",
        '{"a": 1}',
        "**Yes.**",
        "嗯…",
    ):
        assert ends_well(text) and not mixed(text), text
    for text in ("It is", "好", "and then the", ""):
        assert not ends_well(text), text
    for text in ("banana 。", "banana。", "这样很好.", "It is ."):
        assert mixed(text), text
    for text in ("It costs 5.", "我用Python。", "一共是5。", "5。", "好...", "真的吗?"):
        assert not mixed(text), text


def test_an_answer_is_made_of_words() -> None:
    assert real(PROSE) == real('{"name": "A", "age": 3}') == real("x = f(a, b)") == 1.0
    assert real("a!!!!!!!!!") == pytest.approx(0.4) and real("...") == real("") == 0.0


def test_sensitive_words_as_words_of_their_own() -> None:
    assert sensitive("What the FUCK is it") == "fuck" and sensitive("you piece of shit!") in ("shit", "piece of shit")
    assert sensitive("去他妈的") and sensitive("这是色情网站")
    for text in ("Scunthorpe", "a classic assassin", "Dick had his hands tied up", PROSE):
        assert sensitive(text) == "", text
    for text in (
        "我喜欢喝牛奶",
        "他的性格很好",
        "他妈妈做饭",
        "我妈妈的生日",
        "下午13点",
        "It is 13. Then 14",
        CHINESE,
    ):
        assert sensitive(text) == "", text


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a repeated sentence is repetition",
        "moe/tasks/faults.py",
        "twice += len(said) * (len(said) > 1 and said in seen)",
        "twice += 0",
        "test_repetition_in_any_script",
    ),
    (
        "a sorry that goes on is no refusal",
        "moe/tasks/faults.py",
        "return firm or len(words(answer[:2000])) <= _FULL",
        "return True",
        "test_what_is_no_refusal",
    ),
    (
        "a quotation of the question with an answer is no copy",
        "moe/tasks/faults.py",
        "if whole in spaced and set(said) <= set(had):",
        "if whole in spaced:",
        "test_a_copy_of_what_was_said_is_no_answer",
    ),
    (
        "a mark of another writing ends no sentence",
        "moe/tasks/faults.py",
        "foreign is not None and foreign.search(end) is not None",
        "False",
        "test_an_answer_ends_like_a_text",
    ),
    (
        "everyday words are not sensitive",
        "moe/tasks/sensitive.py",
        'for word in lists["zh"] if word not in EVERYDAY}',
        'for word in lists["zh"]}',
        "test_sensitive_words_as_words_of_their_own",
    ),
]

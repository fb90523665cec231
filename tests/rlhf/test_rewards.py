"""What an answer earns, term by term, against numbers worked by hand."""

from dataclasses import replace
from math import inf, nan

import pytest
import torch

from conf.errors import InputError
from conf.knobs.text import Tokenizer as Settings
from moe.tasks.task import Verdict
from moe.text.tokenizer import Tokenizer
from rlhf import rewards
from rlhf.messages import Key, Response, pad
from rlhf.rewards import Judged, Running

# prompts of 2 and 1 tokens, answers of 3 and 2: rows "..aaa" and ".aa  "
ANSWERS = [
    Response(Key(4, "q", 0, version=4), [5, 6], [7, 8, 9], [0.0] * 3, True),
    Response(Key(4, "q", 1, version=4), [5], [7, 8], [0.0] * 2, True),
]
PLACED = Verdict({}, 1.0, placed=((0, 0.25), (1, 0.5)))
JUDGED = Judged(
    batch=pad(ANSWERS),
    verdicts=[PLACED, Verdict({}, -0.5)],
    written=[[0, 1, 2], [1, 2]],  # a character that takes two tokens, then one of one
    model=torch.tensor([2.0, -1.0]),
    limit=4,
)


def test_the_models_score_is_earned_at_the_end() -> None:
    assert rewards.model(JUDGED).tolist() == [[0, 0, 0, 0, 2.0], [0, 0, -1.0, 0, 0]]


def test_what_is_placed_is_earned_where_its_character_is_complete_and_the_rest_at_the_end() -> None:
    # the first character is whole with the second token, the second with the third: .25 and .5 there, .25 at the end
    assert rewards.rules(JUDGED).tolist() == [[0, 0, 0, 0.25, 0.75], [0, 0, -0.5, 0, 0]]


def test_a_rhyme_is_paid_at_its_character_of_three_bytes() -> None:
    poem = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"
    tokenizer = Tokenizer.train(["春眠不觉晓，处处闻啼鸟。"], Settings(vocab_size=512, min_frequency=1))
    answer = [*tokenizer.encode(poem), tokenizer.im_end]  # it knows two of these characters: the others are bytes
    batch = pad([Response(Key(0, "q", 0, version=0), [5, 6, 7], answer, [0.0] * len(answer), True)])
    verdict = Verdict({}, 1.0, placed=((poem.index("乡"), 0.7),))
    judged = Judged(batch, [verdict], [tokenizer.written(answer)], None, 96)
    paid = {place: amount for place, amount in enumerate(rewards.rules(judged)[0].tolist()) if amount}
    rhyme = 3 + len(tokenizer.encode(poem[: poem.index("乡") + 1])) - 1  # its last byte, after a prompt of three
    assert paid == pytest.approx({rhyme: 0.7, 3 + len(answer) - 1: 0.3})


def test_length_is_the_room_that_is_left() -> None:
    assert rewards.length(JUDGED).tolist() == [[0, 0, 0, 0, 0.25], [0, 0, 0.5, 0, 0]]


def test_the_total_is_the_weighed_sum_and_each_term_is_told() -> None:
    made = rewards.total(JUDGED, {"model": 0.5, "rules": 2.0, "length": -1.0})
    earned, said = made.rewards, made.told
    assert {name: each.tolist() for name, each in made.sums.items()} == {
        "model": [2.0, -1.0],
        "rules": [1.0, -0.5],
        "length": [0.25, 0.5],
    }
    assert earned[0].tolist() == pytest.approx([0, 0, 0, 2 * 0.25, 0.5 * 2 + 2 * 0.75 - 0.25])
    assert earned[1].tolist() == pytest.approx([0, 0, 0.5 * -1 + 2 * -0.5 - 0.5, 0, 0])
    # sizes: model .5 * (2 + 1) / 2 = .75, rules 2 * (1 + .5) / 2 = 1.5, length 1 * (.25 + .5) / 2 = .375
    assert said == pytest.approx(
        {
            "reward/model/mean": 0.5,
            "reward/model/std": 1.5,
            "reward/model/share": 0.75 / 2.625,
            "reward/rules/mean": 0.25,
            "reward/rules/std": 0.75,
            "reward/rules/share": 1.5 / 2.625,
            "reward/length/mean": 0.375,
            "reward/length/std": 0.125,
            "reward/length/share": 0.375 / 2.625,
        }
    )


def test_only_terms_with_a_weight_are_computed() -> None:
    made = rewards.total(replace(JUDGED, model=None), {"rules": 1.0})
    said = made.told
    assert torch.equal(made.rewards, rewards.rules(JUDGED)) and said["reward/rules/share"] == 1.0
    assert not any(name.startswith("reward/model") for name in said)


def test_nothing_earned_has_no_share() -> None:
    silent = replace(JUDGED, verdicts=[Verdict({}, 0.0)] * 2)
    assert rewards.total(silent, {"rules": 1.0}).told["reward/rules/share"] == 0.0


def test_a_term_that_there_is_none_of_is_named() -> None:
    rewards.check({"model": 1.0, "rules": 0.0, "length": 1.0})
    with pytest.raises(
        InputError, match=r"^ppo.rewards.rhyme: no such term; there are model, rules, length, overlong, "
    ):
        rewards.check({"rules": 1.0, "rhyme": 1.0})


@pytest.mark.parametrize("bad", [nan, inf])
def test_a_term_that_is_not_finite_is_named_with_its_iteration(bad: float) -> None:
    broken = replace(JUDGED, model=torch.tensor([1.0, bad]))
    with pytest.raises(InputError, match=r"^ppo.rewards.model: not finite in iteration 4"):
        rewards.total(broken, {"rules": 1.0, "model": 1.0})


def test_a_term_of_another_shape_is_named_and_not_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rewards.TERMS, "length", lambda judged: judged.batch.mask.sum(1, keepdim=True))
    with pytest.raises(InputError, match=r"^ppo.rewards.length: of shape \[2, 1\], where \[2, 5\] is asked for$"):
        rewards.total(JUDGED, {"rules": 1.0, "length": 1.0})


def test_near_the_limit_an_answer_loses_up_to_one() -> None:
    # 3 of 4 tokens are the three quarters that are free, 4 of 4 the limit, 14 of 16 half of the rest
    for tokens, limit, lost in ((3, 4, 0.0), (4, 4, -1.0), (14, 16, -0.5)):
        batch = pad([Response(Key(0, "q", 0, version=0), [5], [7] * tokens, [0.0] * tokens, False)])
        paid = rewards.overlong(replace(JUDGED, batch=batch, limit=limit))
        assert paid[0].tolist() == [0.0] * tokens + [pytest.approx(lost)]


def test_what_reward_models_differ_by_is_a_term() -> None:
    judged = replace(JUDGED, spread=torch.tensor([0.5, 0.0]))
    made = rewards.total(judged, {"model": 1.0, "spread": -2.0})
    assert made.rewards.sum(1).tolist() == [2.0 - 2 * 0.5, -1.0]


def shouting(judged: Judged) -> list[float]:
    """A user's term: an answer's share of capital letters."""
    return [sum(map(str.isupper, text)) / len(text) for text in judged.texts]


def test_a_term_of_ones_own_is_a_function_by_its_import_path() -> None:
    judged, own = replace(JUDGED, texts=["HI", "Hi"]), {"shouting": "tests.rlhf.test_rewards.shouting"}
    rewards.check({"rules": 1.0, "shouting": -1.0}, own)
    made = rewards.total(judged, {"rules": 1.0, "shouting": -1.0}, own)
    assert made.sums["shouting"].tolist() == [1.0, 0.5] and made.rewards.sum(1).tolist() == [0.0, -1.0]
    assert made.told["reward/shouting/mean"] == 0.75


@pytest.mark.parametrize(
    ("weights", "own", "told"),
    [
        ({"a": 1.0}, {"a": "no.such"}, "ppo.terms.a=no.such: No module named 'no'"),
        ({"a": 1.0}, {"a": "json.nothing"}, "ppo.terms.a=json.nothing: module 'json' has no attribute 'nothing'"),
        ({"a": 1.0}, {"a": "json.__name__"}, "ppo.terms.a=json.__name__: no function"),
        ({"rules": 1.0}, {"rules": "json.loads"}, "ppo.terms.rules: there is such a term already; give yours another"),
        ({"rules": 1.0}, {"a": "json.loads"}, "ppo.terms.a has no weight; try ppo.rewards.a=1"),
    ],
)
def test_a_function_that_is_none_is_named(weights: dict[str, float], own: dict[str, str], told: str) -> None:
    with pytest.raises(InputError) as refused:
        rewards.check(weights, own)
        for name, path in own.items():
            rewards.imported(name, path)
    assert str(refused.value).startswith(told)


def test_running_statistics_are_those_of_all_values_so_far() -> None:
    running = Running().with_these(torch.tensor([1.0, 2.0])).with_these(torch.tensor([6.0]))
    # mean 3, squares 4 + 1 + 9
    assert (running.count, running.mean, running.squares) == (3, 3.0, 14.0)
    assert running.std == pytest.approx((14 / 3) ** 0.5)


def test_a_normalised_term_is_less_its_mean_in_its_deviations() -> None:
    before = {"model": Running(2, 1.0, 8.0)}  # of the values -1 and 3
    made = rewards.total(JUDGED, {"model": 2.0, "length": 1.0}, running=before)
    # with 2 and -1: mean .75, squares 8 + 4.5 + (1 - .5)^2 * 2 * 2 / 4 = 12.75, deviation sqrt(12.75 / 4)
    assert made.running["model"].mean == pytest.approx(0.75) and made.running["model"].squares == pytest.approx(12.75)
    deviation = (12.75 / 4) ** 0.5
    lengths = [(0.25 - 0.375) / 0.125, (0.5 - 0.375) / 0.125]  # this term begins
    models = [2 * (2 - 0.75) / deviation, 2 * (-1 - 0.75) / deviation]
    assert made.rewards.sum(1).tolist() == pytest.approx([a + b for a, b in zip(models, lengths, strict=True)])
    assert made.told["reward/model/running_std"] == pytest.approx(deviation)
    constant = rewards.total(replace(JUDGED, model=torch.ones(2)), {"model": 1.0}, running={})
    assert constant.rewards.abs().max() == 0.0


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what a verdict places is earned when its character is complete",
        "rlhf/rewards.py",
        "bisect_right(written, place)",
        "place",
        "test_a_rhyme_is_paid_at_its_character_of_three_bytes",
    ),
    (
        "what is placed is not paid twice",
        "rlhf/rewards.py",
        "at_the_end(whole - placed.sum(1), mask)",
        "at_the_end(whole, mask)",
        "test_what_is_placed_is_earned_where_its_character_is_complete_and_the_rest_at_the_end",
    ),
    (
        "each term has its weight",
        "rlhf/rewards.py",
        "earned = earned + weights[name] * part",
        "earned = earned + part",
        "test_the_total_is_the_weighed_sum_and_each_term_is_told",
    ),
    (
        "a share is of sizes, whatever their sign",
        "rlhf/rewards.py",
        'said[f"reward/{name}/share"] = abs(sizes[name]) / whole',
        'said[f"reward/{name}/share"] = sizes[name] / whole',
        "test_the_total_is_the_weighed_sum_and_each_term_is_told",
    ),
    (
        "a weight above 0 on length asks for short answers",
        "rlhf/rewards.py",
        "1.0 - judged.used",
        "judged.used",
        "test_length_is_the_room_that_is_left",
    ),
    (
        "a reward that is not finite is named",
        "rlhf/rewards.py",
        "if not part.isfinite().all():",
        "if not part[0].isfinite().all():",
        "test_a_term_that_is_not_finite_is_named_with_its_iteration",
    ),
    (
        "a reward that is not a number never becomes 0",
        "rlhf/rewards.py",
        "        if not part.isfinite().all():\n",
        "        part = part.nan_to_num(0.0, 0.0, 0.0)\n        if not part.isfinite().all():\n",
        "test_a_term_that_is_not_finite_is_named_with_its_iteration",
    ),
    (
        "a reward of one number for many tokens is refused",
        "rlhf/rewards.py",
        "if part.shape != mask.shape:",
        "if len(part) != len(mask):",
        "test_a_term_of_another_shape_is_named_and_not_spread",
    ),
    (
        "a reward term with a typo is named",
        "rlhf/rewards.py",
        "if name not in TERMS and name not in own:",
        "if not name:",
        "test_a_term_that_there_is_none_of_is_named",
    ),
    (
        "running statistics weigh an iteration by its answers",
        "rlhf/rewards.py",
        "share = len(more) / count",
        "share = 0.5",
        "test_running_statistics_are_those_of_all_values_so_far",
    ),
    (
        "a normalised term is less its running mean",
        "rlhf/rewards.py",
        "(part - at_the_end(torch.full((len(part),), running.mean), mask)) / running.std",
        "part / running.std",
        "test_a_normalised_term_is_less_its_mean_in_its_deviations",
    ),
]

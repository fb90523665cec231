"""What the replies about a query's answers decide, worked by hand."""

import pytest

from conf.knobs.alignment import Compare, Judge
from rlhf.judges.votes import Comparison, Vote, comparisons, counted, scores, votes

UNIT = (0, "clear")


def test_every_two_texts_are_shown_in_both_orders() -> None:
    pairs = [(one.shown, swapped.shown) for one, swapped in comparisons(UNIT, 3, Judge())]
    assert pairs == [((0, 1), (1, 0)), ((0, 2), (2, 0)), ((1, 2), (2, 1))]
    lists = list(comparisons(UNIT, 3, Judge(compare=Compare.listwise, votes=2, temperature=1.0)))
    assert [(one.shown, swapped.shown, one.vote) for one, swapped in lists] == [
        ((0, 1, 2), (2, 1, 0), 0),
        ((0, 1, 2), (2, 1, 0), 1),
    ]
    assert [list(comparisons(UNIT, 1, Judge(compare=compare))) for compare in Compare] == [[], []]


@pytest.mark.parametrize(
    ("told", "swapped", "says", "contradicted"),
    [
        ([0, 1], [1, 0], 1, False),  # the first text, in both orders
        ([1, 0], [0, 1], -1, False),
        ([0, 0], [0, 0], 0, False),
        ([0, 1], [0, 1], 0, True),  # whatever is shown first
        ([0, 1], [0, 0], 0, True),
    ],
)
def test_a_vote_counts_where_both_orders_agree(
    told: list[int], swapped: list[int], says: int, contradicted: bool
) -> None:
    one, other = Comparison(UNIT, (0, 1), 0), Comparison(UNIT, (1, 0), 0)
    assert list(votes(one, other, {one: told, other: swapped})) == [Vote(0, 1, says, contradicted)]


def test_a_list_is_a_vote_on_each_two_of_it() -> None:
    one, other = Comparison(UNIT, (0, 1, 2), 0), Comparison(UNIT, (2, 1, 0), 0)
    cast = list(votes(one, other, {one: [1, 2, 3], other: [2, 1, 1]}))  # 0 > 1 > 2, and 0 = 1 > 2
    assert cast == [Vote(0, 1, 0, True), Vote(0, 2, 1, False), Vote(1, 2, 1, False)]


def test_an_answers_score_is_the_share_of_the_others_that_it_beats() -> None:
    """Texts 0 > 1, 0 > 2, 1 = 2, and answers 0, 1, 2, 1."""
    cast = [Vote(0, 1, 1, False), Vote(0, 2, 1, False), Vote(1, 2, 0, True)]
    assert scores([0, 1, 2, 1], cast) == [1.0, 1 / 3, 1 / 3, 1 / 3]
    assert scores([0, 0], []) == [0.5, 0.5]
    assert counted(1, cast) == {"better": 0, "tied": 1, "worse": 1, "contradicted": 1}


@pytest.mark.parametrize(
    ("says", "first"),
    [([1, 1, -1], 1.0), ([1, 0, 0], 0.5), ([1, -1], 0.5), ([-1, -1, 1], 0.0), ([1, 1, 0, 0], 0.5), ([1, 1, 1, 0], 1.0)],
)
def test_more_than_half_of_the_votes_decide(says: list[int], first: float) -> None:
    assert scores([0, 1], [Vote(0, 1, said, False) for said in says]) == [first, 1 - first]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a judge that contradicts itself when the order is swapped has said nothing",
        "rlhf/judges/votes.py",
        "says if says == says_again else 0",
        "says",
        None,
    ),
    (
        "a majority is more than half of the votes",
        "rlhf/judges/votes.py",
        "(says.count(1) > len(says) / 2)",
        "(says.count(1) > len(says) / 4)",
        None,
    ),
    (
        "answers are shown to a judge in both orders",
        "rlhf/judges/votes.py",
        "Comparison(unit, shown[::-1], vote)",
        "Comparison(unit, shown, vote)",
        None,
    ),
]

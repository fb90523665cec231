"""What several judges say together, and the places that it comes to."""

from rlhf.judges.opinions import Opinion, placed, together


def opinion(**scores: list[float]) -> Opinion:
    return Opinion(scores, [{} for _ in next(iter(scores.values()), [])])


def test_several_judges_rank_by_the_weighted_mean_of_their_scores() -> None:
    both = {"rules": opinion(clear=[1.0, 0.0, 0.5]), "ai": opinion(clear=[0.0, 0.0, 1.0])}
    assert together(both, {}) == {"clear": [0.5, 0.0, 0.75]}
    assert together(both, {"rules": 3.0}) == {"clear": [0.75, 0.0, 0.625]}
    assert together({"rules": both["rules"]}, {"rules": 0.3}) == {"clear": [1.0, 0.0, 0.5]}


def test_where_one_judge_has_no_verdict_there_is_none() -> None:
    both = {"rules": opinion(clear=[1.0, 0.0], kind=[0.0, 1.0]), "ai": opinion(kind=[0.0, 0.5])}
    scores = together(both, {})
    assert scores == {"kind": [0.0, 0.75]}
    assert placed(scores, [{"reasons": ["no"]}, {}], 0.05) == [
        {"scores": {"kind": 0.0}, "total": 0.0, "reasons": ["no"], "rank": 1, "ranks": {"kind": 1}},
        {"scores": {"kind": 0.75}, "total": 0.75, "rank": 0, "ranks": {"kind": 0}},
    ]
    assert placed({}, [{}, {}], 0.05) == [{"scores": {}, "ranks": {}}] * 2


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "under a principle on which one judge has no verdict there is no rank",
        "rlhf/judges/opinions.py",
        "        if all(principle in other.scores for other in others)\n",
        "",
        None,
    ),
    (
        "rank.weights weigh the judges' scores",
        "rlhf/judges/opinions.py",
        "name: weights.get(name, 1.0) / sum(",
        "name: 1.0 / sum(",
        None,
    ),
]

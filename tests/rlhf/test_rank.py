"""What the rules make of the answers to a query."""

import pytest

from conf.schema import Principle, Rank
from moe.verse import Copies
from rlhf.rank import ranking, summary

QUERY = {"id": "q", "task": "form", "label": "五言绝句", "messages": [{"role": "user", "content": "何体？"}]}


def test_places_are_given_in_total_and_under_each_principle_and_near_scores_tie() -> None:
    texts = ["五言绝句", "七言律诗", "五言绝句 hm", "hm"]
    answers = [{"text": text, "finished": True} for text in texts]
    cfg = Rank(principles=[Principle.helpful, Principle.clear], margin=0.4)
    made = ranking(QUERY, answers, Copies.of([]), cfg)["answers"]
    assert [answer["scores"] for answer in made] == [
        {"helpful": 1.0, "clear": 1.0},
        {"helpful": 0.0, "clear": 1.0},
        {"helpful": 0.0, "clear": 0.6667},
        {"helpful": 0.0, "clear": 0.6667},
    ]
    assert [answer["ranks"]["helpful"] for answer in made] == [0, 1, 1, 1]
    assert [answer["ranks"]["clear"] for answer in made] == [0, 0, 0, 0]  # a third is less than the margin
    assert [answer["rank"] for answer in made] == [0, 1, 1, 1]
    assert summary([{"answers": made}])["pairs"] == 3
    finer = ranking(QUERY, answers, Copies.of([]), Rank(principles=cfg.principles, margin=0.1))["answers"]
    assert [answer["ranks"]["clear"] for answer in finer] == [0, 0, 2, 2]
    assert [answer["total"] for answer in finer] == pytest.approx([1.0, 0.5, 1 / 3, 1 / 3])

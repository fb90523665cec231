"""The domain's rules as a judge: an answer's scores, and in words which rules it broke."""

from collections.abc import Sequence

from moe.tasks.task import Judge
from rlhf.judges.opinions import Asked, Opinion


def opinions(asked: Sequence[Asked], judge: Judge, principles: Sequence[str]) -> list[Opinion]:
    """One for each query."""
    found = []
    for each in asked:
        verdicts = [judge(each.query, answer["text"], answer["finished"]) for answer in each.answers]
        scores = {name: [verdict.scores[name] for verdict in verdicts] for name in principles}
        found.append(Opinion(scores, [{"reasons": list(verdict.reasons)} for verdict in verdicts]))
    return found

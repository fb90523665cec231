"""Rankings in rows, the losses over them, and what a model with several scores learns.

Planted bugs these turn red: ties put in order, an answer without a rank taken for the worst, the scores of two
principles exchanged, answers of two rankings compared, the margin's sign.
"""

import pickle
from collections.abc import Sequence
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from conf.errors import InputError
from conf.knobs.alignment import RewardLoss
from conf.knobs.model import Model
from conf.knobs.running import Cluster
from conf.knobs.training import Optim
from moe.decoder import Decoder, Head, new_decoder
from moe.formats import hugging_face
from moe.text.defaults import Defaults
from moe.training.objectives import Batch
from moe.training.optimizer import new_optimizer, set_learning_rate
from trainers.closing import of_reward
from trainers.rows.packing import Row
from trainers.rows.preferences import NO_SCORE, SCALE, Judged, Ranking, calibration, in_lists, judge, pack, preference
from trainers.rows.rows import write_rows

CFG = Model(hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=4, expert_size=32, context=32)
VOCABULARY = 64
HEAD = ("total", "helpful", "clear")


def ranking(answers: Sequence[Sequence[int]], *ranks: Sequence[int], scores: Sequence[float] = ()) -> Ranking:
    """`ranks` are those under each score of HEAD; `scores` are under the total."""
    given = np.full((len(answers), len(ranks)), NO_SCORE)
    if scores:
        given[:, 0] = [round(score * SCALE) for score in scores]
    return Ranking("rankings.jsonl:7", [list(ids) for ids in answers], np.array(ranks).T, given)


def batch_of(rows: Sequence[Row]) -> Batch:
    columns = [
        {"tokens": row.tokens, "segments": row.segments, "loss": row.loss, **row.extra}  #
        for row in rows
    ]
    return {name: torch.from_numpy(np.stack([row[name] for row in columns])).long() for name in columns[0]}


# two rankings in the first row, one in the second
RANKINGS = [
    ranking([[5, 6, 7], [5, 8], [5, 9, 9]], [0, 1, 1], [-1, 0, 1], [0, 0, 0], scores=[0.9, 0.4, 0.65]),
    ranking([[10], [11, 12]], [1, 0], [0, 1], [-1, -1], scores=[0.5, 0.2]),
    ranking([[13, 14], [15, 16], [17], [18]], [-1, 2, 0, 2], [1, 0, -1, -1], [0, 1, 2, 3]),
]
SCORES = torch.tensor([log(4), log(2), log(1), log(3), log(9), 7.0, log(5), log(10), log(6)])


def batch() -> Batch:
    return batch_of(list(pack(RANKINGS, 12, HEAD, pad=0)))


def test_rankings_lie_whole_in_rows() -> None:
    first, second = pack(RANKINGS, 12, HEAD, pad=63)
    assert first.tokens.tolist() == [5, 6, 7, 5, 8, 5, 9, 9, 10, 11, 12, 63]
    assert first.segments.tolist() == [1, 1, 1, 2, 2, 3, 3, 3, 4, 5, 5, 0]
    assert first.loss.tolist() == [0, 0, 1, 0, 1, 0, 0, 1, 1, 0, 1, 0]
    assert first.extra["query"][first.loss > 0].tolist() == [0, 0, 0, 1, 1]
    assert first.extra["rank_total"].tolist() == [-1, -1, 0, -1, 1, -1, -1, 1, 1, -1, 0, -1]
    assert first.extra["rank_helpful"][first.loss > 0].tolist() == [-1, 0, 1, 0, 1]
    assert first.extra["score_total"][first.loss > 0].tolist() == [9000, 4000, 6500, 5000, 2000]
    assert set(first.extra["score_clear"]) == {NO_SCORE}
    assert (first.documents, second.documents) == ((0, 0, 0, 1, 1), (2, 2, 2, 2))
    with pytest.raises(
        InputError, match=r"rankings.jsonl:7: .* 8 tokens and do not fit into reward.row_length=7; try "
    ):
        list(pack(RANKINGS, 7, HEAD, pad=0))


def test_answers_come_in_lists_of_their_own_ranking() -> None:
    lists = in_lists(batch(), torch.arange(9), -1)
    assert lists.tolist() == [[0, 1, 2, -1], [3, 4, -1, -1], [5, 6, 7, 8]]


PAIRS = {  # by how much each better answer is ahead, as odds
    "total": [4 / 2, 4 / 1, 9 / 3, 10 / 5, 10 / 6],
    "helpful": [2 / 1, 3 / 9, 5 / np.exp(7.0)],
}


@pytest.mark.parametrize("name", ["total", "helpful"])
def test_pairs_by_hand(name: str) -> None:
    judged = Judged.of(batch(), name, SCORES)
    assert judged.ahead().exp().tolist() == pytest.approx(PAIRS[name], rel=1e-5)
    wanted = sum(log(1 + 1 / odds) for odds in PAIRS[name])
    assert judged.loss(RewardLoss.pairwise).item() == pytest.approx(wanted, rel=1e-5)


def test_margins_by_hand() -> None:
    judged = Judged.of(batch(), "total", SCORES)
    # the second ranking's better answer has the lower score, and the third has no scores: no margin
    margins = [0.5, 0.25, 0.0, 0.0, 0.0]
    assert judged.margins().tolist() == pytest.approx(margins)
    wanted = sum(log(1 + np.exp(m) / odds) for m, odds in zip(margins, PAIRS["total"], strict=True))
    assert judged.loss(RewardLoss.margin).item() == pytest.approx(wanted, rel=1e-5)


def test_lists_by_hand() -> None:
    judged = Judged.of(batch(), "total", SCORES)
    # {4 of 4, 2, 1}; {9 of 9, 3}; {10 of 10, 5, 6}, its first answer left out and the other two tied
    assert judged.loss(RewardLoss.listwise).item() == pytest.approx(log(7 / 4 * 12 / 9 * 21 / 10), rel=1e-5)


def fixed(scores: Tensor) -> Decoder:
    """A model that gives these scores [A, S] to the answers of `batch()`, whatever they are."""
    model = new_decoder(CFG, VOCABULARY, head=HEAD, seed=0)
    model.principle_scores = lambda states: scores  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize(
    ("kind", "units"), [(RewardLoss.pairwise, 5), (RewardLoss.margin, 5), (RewardLoss.listwise, 3)]
)
def test_the_objective_weighs_the_principles(kind: RewardLoss, units: int) -> None:
    scores = torch.stack([SCORES, 2 * SCORES, -SCORES], 1)
    parts = [Judged.of(batch(), name, scores[:, n]).loss(kind).item() for n, name in enumerate(HEAD)]
    objective = pickle.loads(pickle.dumps(preference(HEAD, kind, 0.5)))
    made = objective.loss(fixed(scores), batch())
    assert made.total.item() == pytest.approx(parts[0] + 0.5 * (parts[1] + parts[2]) / 2, rel=1e-5)
    assert made.units == objective.units(batch()) == units
    assert (made.asked.item(), made.hits.item()) == (5, 5)
    only = preference(HEAD[:1], kind, 0.5).loss(fixed(scores), batch())
    assert only.total.item() == pytest.approx(parts[0], rel=1e-5)


@pytest.mark.parametrize("kind", list(RewardLoss))
def test_gradients_are_those_of_finite_differences(kind: RewardLoss) -> None:
    torch.autograd.gradcheck(
        lambda scores: Judged.of(batch(), "total", scores).loss(kind), (SCORES.double().requires_grad_(),)
    )


@pytest.mark.parametrize("kind", list(RewardLoss))
def test_micro_batches_add_up_even_without_rows_or_pairs(kind: RewardLoss) -> None:
    objective = preference(HEAD, kind, 0.5)
    model = new_decoder(CFG, VOCABULARY, head=HEAD, seed=1)
    whole = objective.loss(model, batch())
    mute = {**batch(), "rank_total": torch.full_like(batch()["tokens"], -1)}
    assert objective.units(mute) == 0 == objective.loss(model, mute).asked.item()
    parts = [
        objective.loss(model, {name: rows[a:b] for name, rows in batch().items()}) for a, b in pairwise((0, 1, 1, 2))
    ]
    assert sum(part.total.item() for part in parts) == pytest.approx(whole.total.item(), rel=1e-5)
    assert sum(part.units for part in parts) == whole.units and parts[1].units == 0
    parts[1].total.backward()


def test_calibration_by_hand() -> None:
    # of the pairs that are 3/4 sure two in three are right; one is 9/10 sure, and wrong
    ahead = torch.tensor([log(3.0), log(3.0), -log(3.0), -log(9.0)])
    found, bins = calibration(ahead)
    assert found["accuracy"] == 0.5
    assert found["brier"] == pytest.approx((2 * 0.25**2 + 0.75**2 + 0.9**2) / 4)
    assert found["ece"] == pytest.approx((3 * (0.75 - 2 / 3) + 1 * 0.9) / 4, abs=1e-6)
    assert [bin["pairs"] for bin in bins] == [3, 1] and bins[0]["from"] == 0.75
    assert [bin["observed"] for bin in bins] == pytest.approx([2 / 3, 0.0])
    assert [bin["predicted"] for bin in bins] == pytest.approx([0.75, 0.9])
    assert calibration(torch.zeros(4))[0] == pytest.approx({"accuracy": 0.0, "brier": 0.25, "ece": 0.5})


@pytest.mark.parametrize("kind", list(RewardLoss))
def test_a_principle_learns_what_the_total_does_not(tmp_path: Path, kind: RewardLoss) -> None:
    """In total a larger first number is better; helpful is a smaller second one, which is only sometimes told."""
    generator = np.random.default_rng(0)
    head: Head = HEAD[:2]
    made = []
    for number in range(440):
        answers = generator.integers(5, 60, size=(3, 2))
        ranks = [(-answers[:, 0]).argsort().argsort(), answers[:, 1].argsort().argsort()]
        if number % 3 == 0:
            ranks[1][:] = -1
        given = np.stack([answers[:, 0], 60 - answers[:, 1]], 1) * SCALE // 60
        made.append(Ranking(f"{number}", answers.tolist(), np.stack(ranks, 1), given))
    rows = list(pack(made[:400], 12, head, pad=0))
    assert len(rows) == 200
    objective = preference(head, kind, 1.0)
    model = new_decoder(CFG, VOCABULARY, head=head, seed=0)
    optimizer = new_optimizer(model, Optim())
    set_learning_rate(optimizer, 1e-2)
    for step in range(100):
        part = batch_of([rows[i % 200] for i in range(step * 10, step * 10 + 10)])
        loss = objective.loss(model, part)
        (loss.total / loss.units).backward()
        optimizer.step()
        optimizer.zero_grad()
    held = pack(made[400:], 12, head, pad=0)
    write_rows(tmp_path, held, row_length=12, rows_per_shard=64, meta={"tokenizer": "none"})
    hugging_face.save(model, tmp_path / "model", Defaults({}, (), None))
    metrics, bins = of_reward(tmp_path / "model", tmp_path, kind, Cluster())
    assert metrics["pair_accuracy"] > 0.85 and metrics["helpful/accuracy"] > 0.85
    assert 0 < metrics["ece"] < 0.25 and 0 < metrics["helpful/brier"] < 0.2
    assert sum(bin["pairs"] for bin in bins["total"]) == 3 * 40
    with torch.no_grad():  # and neither is the other
        judged, _ = judge(model, batch_of(rows), head)
        crossed = Judged(judged[0].scores, judged[1].ranks, judged[1].given).ahead()
    assert 0.3 < (crossed > 0).float().mean() < 0.7


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "answers to two queries are not compared",
        "trainers/rows/preferences.py",
        'owner = at // length * length + batch["query"].flatten()[at]',
        "owner = at // length * length",
        None,
    ),
    (
        "each score learns its own principle",
        "trainers/rows/preferences.py",
        "Judged.of(batch, name, scores[:, number])",
        "Judged.of(batch, name, scores[:, -1 - number])",
        None,
    ),
]

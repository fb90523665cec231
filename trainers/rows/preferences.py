"""Rankings as rows, what a reward model learns from them, and how far it can be trusted.

A row holds whole rankings: each answer is a segment, its query and itself, scored at its last token, where `loss` is 1.
Beside the tokens there are, at those places, `query` (which ranking of the row), and under each of the model's scores
`rank_<name>` (0 the best, -1 none) and `score_<name>` (in 1 / SCALE, NO_SCORE where there is none).

Letters: B rows, T positions, A scored answers of a batch, G rankings, K answers of the longest, S scores of the model
(the total, then principles), P pairs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from conf.errors import InputError
from conf.knobs.alignment import RewardLoss
from moe.decoder import SCALAR, Decoder, Head, Hidden
from moe.losses import comparisons, listwise_sum, pairwise_sum
from moe.training.objectives import Batch, Loss, Objective
from trainers.rows.packing import Row

(TOTAL,) = SCALAR
SCALE = 10_000  # scores lie in rows as whole numbers of 1 / SCALE
NO_SCORE = int(np.iinfo(np.int32).min)
BINS = 10  # of a calibration


@dataclass(frozen=True)
class Ranking:
    """The answers to one query that somebody ranked."""

    where: str  # file:line
    answers: list[list[int]]  # K: ids of query and answer
    ranks: np.ndarray  # [K, S] int32: 0 the best, equal where tied, -1 where an answer has none
    scores: np.ndarray  # [K, S] int32, in 1 / SCALE, or NO_SCORE

    @property
    def size(self) -> int:
        return sum(map(len, self.answers))

    def pairs(self, score: int) -> int:
        """Pairs of answers of which one is better."""
        return len(comparisons(torch.from_numpy(self.ranks[None, :, score]))[0])


def pack(rankings: Sequence[Ranking], row_length: int, head: Head, *, pad: int) -> Iterator[Row]:
    """Whole rankings into rows, in order. Raises `InputError` naming one that is longer than a row."""
    held: list[int] = []
    filled = 0
    for number, ranking in enumerate(rankings):
        if ranking.size > row_length:
            raise InputError(
                f"{ranking.where}: its answers, each with the query, have {ranking.size} tokens and do not fit into "
                f"reward.row_length={row_length}; try reward.row_length={ranking.size}"
            )
        if filled + ranking.size > row_length:
            yield _row(rankings, held, row_length, head, pad)
            held, filled = [], 0
        held.append(number)
        filled += ranking.size
    if held:
        yield _row(rankings, held, row_length, head, pad)


def _row(rankings: Sequence[Ranking], held: Sequence[int], row_length: int, head: Head, pad: int) -> Row:
    tokens = np.full(row_length, pad, dtype=np.int32)
    segments, query = (np.zeros(row_length, dtype=np.int32) for _ in range(2))
    loss = np.zeros(row_length, dtype=np.uint8)
    ranks = np.full((len(head), row_length), -1, dtype=np.int32)
    scores = np.full((len(head), row_length), NO_SCORE, dtype=np.int32)
    documents: list[int] = []
    at = 0
    for place, number in enumerate(held):
        ranking = rankings[number]
        for ids, rank, score in zip(ranking.answers, ranking.ranks, ranking.scores, strict=True):
            documents.append(number)
            end = at + len(ids)
            tokens[at:end], segments[at:end] = ids, len(documents)
            query[end - 1], loss[end - 1], ranks[:, end - 1], scores[:, end - 1] = place, 1, rank, score
            at = end
    extra = {"query": query}
    for number, name in enumerate(head):
        extra |= {f"rank_{name}": ranks[number], f"score_{name}": scores[number]}
    return Row(tokens, segments, loss, tuple(documents), extra)


def in_lists(batch: Batch, values: Tensor, empty: float) -> Tensor:
    """values [A] of the scored answers as [G, K]; a ranking of fewer answers is filled up with `empty`."""
    at = _scored(batch)
    length = batch["loss"].shape[1]
    owner = at // length * length + batch["query"].flatten()[at]  # a row has fewer queries than tokens
    _, ranking, sizes = owner.unique_consecutive(return_inverse=True, return_counts=True)
    answer = torch.arange(len(at), device=at.device) - (sizes.cumsum(0) - sizes)[ranking]
    longest = int(sizes.max()) if len(sizes) else 0
    return values.new_full((len(sizes), longest), empty).index_put((ranking, answer), values)


def _scored(batch: Batch) -> Tensor:
    """[A] positions in [B*T]."""
    return batch["loss"].flatten().nonzero().squeeze(1)


def _column(batch: Batch, name: str, empty: int) -> Tensor:
    """A column of the rows as [G, K]."""
    return in_lists(batch, batch[name].flatten()[_scored(batch)], empty)


@dataclass(frozen=True)
class Judged:
    """The rankings of a batch under one of the model's scores."""

    scores: Tensor  # [G, K] the model's
    ranks: Tensor  # [G, K]
    given: Tensor  # [G, K] the scores that the rankings came with, in 1 / SCALE, or NO_SCORE

    @classmethod
    def of(cls, batch: Batch, name: str, scores: Tensor) -> "Judged":
        """`scores` [A] are those that the model calls `name`."""
        return cls(
            in_lists(batch, scores, 0.0),
            _column(batch, f"rank_{name}", -1),
            _column(batch, f"score_{name}", NO_SCORE),
        )

    def ahead(self) -> Tensor:
        """[P] how far the model puts the better answer of each pair before the worse."""
        ranking, better, worse = comparisons(self.ranks)
        return self.scores[ranking, better] - self.scores[ranking, worse]

    def loss(self, kind: RewardLoss) -> Tensor:
        """[] summed over the pairs or the rankings."""
        if kind is RewardLoss.listwise:
            return listwise_sum(self.scores, self.ranks)
        return pairwise_sum(self.ahead(), self.margins() if kind is RewardLoss.margin else 0.0)

    def margins(self) -> Tensor:
        """[P] how far the given scores put it before; 0 where there are none, or people ranked against them."""
        ranking, better, worse = comparisons(self.ranks)
        more, less = self.given[ranking, better], self.given[ranking, worse]
        known = (more != NO_SCORE) & (less != NO_SCORE)
        return torch.where(known, (more - less) / SCALE, 0.0).clamp(min=0.0)


def preference(head: Head, kind: RewardLoss, principles: float) -> Objective:
    """What a model with the scores `head` minimises: the total's loss and `principles` x the mean of the principles'.

    The unit is a pair of answers of which one is better in total, or with `listwise` a ranking that has such a pair.
    """
    return Objective(
        unit="list" if kind is RewardLoss.listwise else "pair",
        units=partial(count_units, kind=kind),
        loss=partial(preference_loss, head=head, kind=kind, principles=principles),
    )


def count_units(batch: Batch, kind: RewardLoss) -> int:
    ranking = comparisons(_column(batch, f"rank_{TOTAL}", -1))[0]
    return len(ranking.unique() if kind is RewardLoss.listwise else ranking)


def preference_loss(model: Decoder, batch: Batch, head: Head, kind: RewardLoss, principles: float) -> Loss:
    judged, hidden = judge(model, batch, head)
    total, *rest = (one.loss(kind) for one in judged)
    if rest:
        total = total + principles * torch.stack(rest).mean()
    ahead = judged[0].ahead().detach()
    return Loss(
        total=total,
        units=count_units(batch, kind),
        asked=ahead.new_tensor(len(ahead)),
        hits=(ahead > 0).sum(),
        hidden=hidden,
    )


def judge(model: Decoder, batch: Batch, head: Head) -> tuple[list[Judged], Hidden]:
    """The model's scores `head` of the answers in a batch, each beside the rankings."""
    hidden = model(batch["tokens"], batch["segments"])
    scores = model.principle_scores(hidden.at(_scored(batch)))  # [A, S]
    return [Judged.of(batch, name, scores[:, number]) for number, name in enumerate(head)], hidden


def calibration(ahead: Tensor) -> tuple[dict[str, float], list[dict[str, float]]]:
    """How true the probabilities are that sigmoid makes of score differences [P] (better - worse), P > 0.

    ({"accuracy", "brier", "ece"}, bins). The model picks one answer of a pair with a probability from 1/2 to 1; a bin
    is a tenth of that range: {"from", "predicted", "observed", "pairs"}, and those without pairs are left out. `ece` is
    the expected calibration error (Guo et al. 2017), `brier` the mean of (1 - p(better))^2.
    """
    ahead = ahead.double()
    right, sure = (ahead > 0).double(), ahead.abs().sigmoid()
    bin_of = ((sure - 0.5) * 2 * BINS).long().clamp(max=BINS - 1)
    bins = [
        {
            "from": 0.5 + number / (2 * BINS),
            "predicted": float(sure[bin_of == number].mean()),
            "observed": float(right[bin_of == number].mean()),
            "pairs": float((bin_of == number).sum()),
        }
        for number in bin_of.unique().tolist()
    ]
    ece = sum(bin["pairs"] * abs(bin["predicted"] - bin["observed"]) for bin in bins) / len(ahead)
    return {"accuracy": float(right.mean()), "brier": float((-ahead).sigmoid().square().mean()), "ece": ece}, bins

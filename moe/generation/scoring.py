"""Log-probabilities of tokens that are given, not made: of answers, of choices, of what a client sends; and what a loss
comes to as a figure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, log

import torch
from torch import Tensor

from moe.decoder import Decoder
from moe.text.tokenizer import Tokenizer

BATCH = 4096  # tokens of one forward pass, unless a single sequence has more
CHUNK = 256  # positions whose whole softmax exists at once


@dataclass(frozen=True)
class Scores:
    """What the model says of some tokens of a sequence, each seen from those before it."""

    logprobs: list[float]  # nats, of the whole softmax at temperature 1
    top: list[list[tuple[int, float]]]  # for each of them the likeliest (id, nats), the best first

    @property
    def nats(self) -> float:
        return -sum(self.logprobs)


def score(
    model: Decoder, sequences: Sequence[Sequence[int]], *, starts: Sequence[int] | None = None, top: int = 0
) -> list[Scores]:
    """Scores of the tokens of each sequence from place `starts[i]` on, at least 1: the first token has nothing before
    it, and without `starts` all others are scored. Sequences are no longer than the model's context."""
    starts = [1] * len(sequences) if starts is None else starts
    scores: list[Scores] = []
    for part in _batches(sequences):
        scores += _score(model, sequences[part], starts[part], top)
    return scores


@torch.inference_mode()
def _score(model: Decoder, sequences: Sequence[Sequence[int]], starts: Sequence[int], top: int) -> list[Scores]:
    assert all(0 < start <= len(ids) <= model.cfg.context for ids, start in zip(sequences, starts, strict=True))
    lengths = torch.tensor([len(ids) for ids in sequences])
    tokens = torch.tensor([token for ids in sequences for token in ids])  # all in one row, each its own segment
    segments = torch.arange(1, len(sequences) + 1).repeat_interleave(lengths)
    wanted = torch.cat([torch.arange(len(ids)) >= start for ids, start in zip(sequences, starts, strict=True)])
    places = wanted.nonzero().squeeze(1)
    states = model(tokens.unsqueeze(0), segments.unsqueeze(0)).states[places - 1]
    logprobs: list[float] = []
    best: list[list[tuple[int, float]]] = []
    for some, targets in zip(states.split(CHUNK), tokens[places].split(CHUNK), strict=True):
        every = model.logits(some).float().log_softmax(-1)
        logprobs += every.gather(1, targets.unsqueeze(1)).squeeze(1).tolist()
        likely = every.topk(top)
        best += [
            list(zip(*both, strict=True)) for both in zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
        ]
    out, at = [], 0
    for ids, start in zip(sequences, starts, strict=True):
        end = at + len(ids) - start
        out.append(Scores(logprobs[at:end], best[at:end]))
        at = end
    return out


def _batches(sequences: Sequence[Sequence[int]]) -> Iterator[slice]:
    """Neighbours whose tokens fit into one forward pass."""
    first = tokens = 0
    for number, ids in enumerate(sequences):
        if number > first and tokens + len(ids) > BATCH:
            yield slice(first, number)
            first, tokens = number, 0
        tokens += len(ids)
    if sequences:
        yield slice(first, len(sequences))


def perplexity(nats: float, targets: int) -> float:
    return exp(min(nats / max(1, targets), 700.0))


def bits_per_byte(nats: float, text_bytes: int) -> float:
    """Cross-entropy of the tokens that are text, per UTF-8 byte of it: comparable between tokenizers, as perplexity is
    not. What has no bytes, such as the end of a document or an answer, is in the loss and not in here."""
    return nats / log(2) / max(1, text_bytes)


def piece_bytes(tokenizer: Tokenizer) -> Tensor:
    """UTF-8 bytes that each token id stands for, [padded vocabulary]; specials stand for none."""
    sizes = torch.zeros(tokenizer.padded_size, dtype=torch.long)
    for token in range(tokenizer.size):
        sizes[token] = len(tokenizer.bytes_of(token))
    return sizes

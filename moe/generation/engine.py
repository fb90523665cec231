"""Generation: continuous batching, sampling with per-request seeds, log-probs taken while decoding.

A sampled token depends on the request's seed and position only, never on what else is being decoded.

Letters: n requests, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from conf.errors import InputError
from moe.decoder import Decoder
from moe.generation.fastest import rows_of
from moe.generation.masks import Guide, masked
from moe.generation.penalties import Penalties, moved
from moe.generation.rows import Piece, Rows

Finish = Literal["stop", "length"]
_LIKELY = 64  # tokens that are sorted first when the unlikely ones are cut off
SHARED = 16  # tokens: a common beginning of fewer is not worth waiting for


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int
    temperature: float = 1.0  # 0: the likeliest token
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    seed: int = 0
    begun: int = 0  # tokens of the answer that the prompt ends with: it goes on as if they had been made here
    min_p: float = 0.0  # tokens with less than this share of the likeliest one's probability are left out
    repetition_penalty: float = 1.0  # what these four do: moe.generation.penalties
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what its logit gets)
    routes: bool = False  # for `generate`: tell which experts were chosen


@dataclass(frozen=True)
class Token:
    request: str
    id: int
    # nats, of the softmax at the request's temperature (1 when greedy) over all tokens that its guide lets come, after
    # bias and penalties and before top-p, top-k and min-p
    logprob: float
    finish: Finish | None  # set on the last token of a request
    cached: int = 0  # tokens of the request's prompt that another one's row had
    routes: Tensor | None = None  # on the last token, where the engine keeps them: of `Answer`


@dataclass(frozen=True)
class Answer:
    tokens: list[int]  # the stop token included
    logprobs: list[float]
    finish: Finish
    routes: Tensor | None = field(default=None, compare=False)  # [prompt and answer but the last, layers, k] experts


@dataclass(eq=False)
class _Request:
    name: str
    prompt: list[int]
    sampling: Sampling
    guide: Guide | None = None
    penalties: Penalties | None = None  # once its first token is due
    row: int = -1
    filled: int = 0  # tokens of the prompt that the row holds
    cached: int = 0  # of those, the ones that were another row's
    answer: list[int] = field(default_factory=list)

    @property
    def running(self) -> bool:
        """Whether the prompt is through."""
        return bool(self.answer)

    def whole(self) -> list[int]:
        """What its row holds, or will when the prompt is through."""
        return self.prompt + self.answer[:-1]

    def penalised(self, logits: Tensor) -> Penalties | None:
        """What moves its draws, of rows like `logits` [V], before its first token."""
        at = len(self.prompt) - self.sampling.begun
        return Penalties.of(self.sampling, self.prompt[:at], self.prompt[at:], logits)

    def held(self) -> list[int]:
        """What its row holds."""
        return self.whole() if self.answer else self.prompt[: self.filled]


@dataclass
class Engine:
    """Continuous batching over `slots` rows: `add` queues, `step` admits and makes a token for each active request."""

    model: Decoder
    slots: int
    stop: tuple[int, ...]
    keep: int = 0  # rows of ended requests whose beginnings later ones may share, as a conversation's next turn does
    routed: bool = False  # keep which experts were chosen
    _waiting: list[_Request] = field(default_factory=list)
    _active: list[_Request] = field(default_factory=list)
    _kept: list[_Request] = field(default_factory=list)  # the one used last at the end
    _rows: Rows | None = None

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._active

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, request: str, prompt: list[int], sampling: Sampling, guide: Guide | None = None) -> None:
        """Queue a request; its `guide` says which tokens may come, and log-probs are among those. Raises InputError if
        prompt and answer do not fit into the model's context."""
        context = self.model.cfg.context
        if not prompt:
            raise InputError(f"request {request}: the prompt is empty")
        if len(prompt) + sampling.max_new_tokens > context:
            raise InputError(
                f"request {request}: {len(prompt)} prompt tokens and max_new_tokens={sampling.max_new_tokens} "
                f"exceed the context of {context}; shorten the prompt or ask for at most "
                f"{max(0, context - len(prompt))} tokens"
            )
        self._waiting.append(_Request(request, prompt, sampling, guide))

    def cancel(self, request: str) -> None:
        """Forget a request, wherever it is; unknown names are ignored because it may just have finished."""
        self._waiting = [r for r in self._waiting if r.name != request]
        for active in self._active:
            if active.name == request:
                self._release(active)
                return

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """One token for every request whose prompt is through, and as much of the other prompts as a step takes."""
        if self._rows is None:
            self._rows = rows_of(self.model, self.slots)
            self._rows.routed = self.routed
        self._admit(self._rows)
        pieces, ended = [], []
        budget = self._rows.chunk or self.model.cfg.context * self.slots
        for request in self._active:
            if request.running:
                tokens = request.answer[-1:]
            else:
                tokens = request.prompt[request.filled : request.filled + budget]
                request.filled += len(tokens)
                budget -= len(tokens)
            if tokens:
                ends = request.filled == len(request.prompt)
                pieces.append(Piece(request.row, tokens, ends))
                if ends:
                    ended.append(request)
        if not pieces:
            return []
        logits = self._rows.feed(pieces)
        return self._emit(ended, logits) if ended else []

    def _admit(self, rows: Rows) -> None:
        """Give waiting requests a row, in turn. One that shares the beginning of its prompt with a row goes on from a
        copy of that; with one that is not there yet, it waits until it is."""
        kept: list[_Request] = []
        for number, request in enumerate(self._waiting):
            if len(self._active) == self.slots:
                kept += self._waiting[number:]
                break
            begun, length = self._likest(request.prompt) if rows.chunk else (None, 0)
            if begun is not None and length > len(begun.held()):
                kept.append(request)
                continue
            request.row = rows.take(len(request.prompt) + request.sampling.max_new_tokens)
            if begun is not None:
                rows.copy(begun.row, length, request.row)
                request.filled = request.cached = length
                if begun in self._kept:
                    self._kept.remove(begun)
                    self._kept.append(begun)
            self._active.append(request)
        self._waiting = kept

    def _likest(self, prompt: list[int]) -> tuple[_Request | None, int]:
        """The request with a row that has the longest beginning in common with a prompt, but for its last token: that
        one has to go through the model. Nothing below `SHARED` tokens."""
        best, most = None, SHARED - 1
        for other in (*self._kept, *self._active):
            whole = other.whole()
            limit = min(len(prompt) - 1, len(whole))
            if limit > most and prompt[: most + 1] == whole[: most + 1]:
                best, most = other, _common(prompt, whole, most + 1, limit)
        return best, most if best else 0

    def _emit(self, requests: list[_Request], logits: Tensor) -> list[Token]:
        logits = masked(logits, [r.guide for r in requests])
        for place, request in enumerate(requests):
            if not request.answer:
                request.penalties = request.penalised(logits[place])
        logits = moved(logits, [r.penalties for r in requests])
        positions = [len(r.answer) + r.sampling.begun for r in requests]
        ids, logprobs = sample(logits, [r.sampling for r in requests], positions)
        out = []
        for request, token, logprob in zip(requests, ids.tolist(), logprobs.tolist(), strict=True):
            request.answer.append(token)
            if request.guide is not None:
                request.guide.took(token)
            if request.penalties is not None:
                request.penalties.took(token)
            finish: Finish | None = None
            if token in self.stop:
                finish = "stop"
            elif len(request.answer) == request.sampling.max_new_tokens:
                finish = "length"
            told = self._rows.routes(request.row) if finish and self.routed and self._rows else None
            out.append(Token(request.name, token, logprob, finish, request.cached, told))
            if finish is not None:
                self._release(request)
        return out

    def _release(self, request: _Request) -> None:
        assert self._rows is not None
        self._active.remove(request)
        request.prompt, request.answer = request.held(), []  # what others may begin with
        request.filled, request.penalties = len(request.prompt), None
        self._kept.append(request)
        while len(self._kept) > (self.keep if self._rows.chunk else 0):
            self._rows.free(self._kept.pop(0).row)


def _common(a: list[int], b: list[int], low: int, high: int) -> int:
    """How long a beginning is common to both, at least `low` and at most `high`."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle - 1)
    return low


def sample(logits: Tensor, samplings: list[Sampling], positions: list[int]) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverse CDF. logits [n, V] -> (ids [n], log-probs [n]).

    The uniform number of row i is a hash of (seed, position), so a draw can be repeated alone.
    """
    temperatures = torch.tensor([s.temperature for s in samplings], device=logits.device)
    greedy = temperatures == 0
    scaled = logits.float() / torch.where(greedy, torch.ones_like(temperatures), temperatures).unsqueeze(1)
    logprobs = scaled.log_softmax(-1)
    likeliest = logits.argmax(-1)
    if all(s.temperature == 0 for s in samplings):
        return likeliest, logprobs.gather(1, likeliest.unsqueeze(1)).squeeze(1)
    probabilities = logprobs.exp()
    for row, sampling in enumerate(samplings):
        if sampling.temperature and (sampling.top_p < 1 or sampling.top_k or sampling.min_p):
            probabilities[row] = _truncate(probabilities[row], sampling)
    cumulative = probabilities.double().cumsum(-1)
    seeds = np.array([s.seed for s in samplings], dtype=np.uint64)
    drawn = torch.from_numpy(uniform(seeds, np.array(positions, dtype=np.uint64))).to(logits.device)
    ids = torch.searchsorted(cumulative, (drawn * cumulative[:, -1]).unsqueeze(1), right=True).squeeze(1)
    ids = torch.where(greedy, likeliest, ids.clamp(max=logits.shape[1] - 1))
    return ids, logprobs.gather(1, ids.unsqueeze(1)).squeeze(1)


def _truncate(probabilities: Tensor, sampling: Sampling) -> Tensor:
    """Zero all but the smallest set of likeliest tokens [V] that holds `top_p`, at most `top_k` of them and none below
    `min_p` times the likeliest (Nguyen et al. 2024)."""
    vocabulary = probabilities.shape[0]
    count = min(sampling.top_k or vocabulary, vocabulary)
    few = min(count, _LIKELY)  # mostly enough, and many times as fast as to sort them all
    ordered, ids = probabilities.topk(few)
    least = sampling.min_p * ordered[0]
    enough = ordered[-1] < least or (sampling.top_p < 1 and ordered.sum() > sampling.top_p)
    if few < count and not enough:
        ordered, ids = probabilities.sort(descending=True)
    keep = ordered >= least
    if sampling.top_p < 1:
        keep &= ordered.cumsum(0) - ordered < sampling.top_p
    if sampling.top_k:
        keep[sampling.top_k :] = False
    return torch.zeros_like(probabilities).scatter_(0, ids, ordered * keep)


def uniform(seeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1) from (seed, position), by two rounds of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = _split_mix(seeds) ^ (positions * np.uint64(0x9E3779B97F4A7C15))
        return (_split_mix(x) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _split_mix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def generate(
    model: Decoder, prompts: list[list[int]], samplings: list[Sampling], *, stop: tuple[int, ...], slots: int = 64
) -> list[Answer]:
    """Answer every prompt, in the order given. Rows whose answer ended make room for the next prompt at once."""
    routed = any(sampling.routes for sampling in samplings)
    engine = Engine(model, min(slots, max(1, len(prompts))), stop, routed=routed)
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    finishes: dict[int, Finish] = {}
    routes: dict[int, Tensor | None] = {}
    for number, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        engine.add(str(number), prompt, sampling)
    while not engine.idle:
        for token in engine.step():
            number = int(token.request)
            tokens[number].append(token.id)
            logprobs[number].append(token.logprob)
            if token.finish is not None:
                finishes[number], routes[number] = token.finish, token.routes
    return [Answer(t, p, finishes[n], routes[n]) for n, (t, p) in enumerate(zip(tokens, logprobs, strict=True))]

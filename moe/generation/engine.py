"""Generation: KV slots, continuous batching, sampling with per-request seeds, log-probs taken while decoding.

The engine keeps its active requests in the first rows of the cache, so that a step works on plain slices. A sampled
token depends on the request's seed and position only, never on what else is being decoded.

Letters: n active requests, V vocabulary, W filled width of the cache.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from conf.errors import InputError
from moe.decoder import Decoder, rotary

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int
    temperature: float = 1.0  # 0: the likeliest token
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    seed: int = 0


@dataclass(frozen=True)
class Token:
    request: str
    id: int
    logprob: float  # nats, of the whole softmax at the request's temperature (1 when greedy), before top-p and top-k
    finish: Finish | None  # set on the last token of a request


@dataclass(frozen=True)
class Answer:
    tokens: list[int]  # the stop token included
    logprobs: list[float]
    finish: Finish


@dataclass
class _Request:
    name: str
    prompt: list[int]
    sampling: Sampling
    made: int = 0
    last: int = 0
    length: int = 0  # positions filled in the cache


@dataclass
class Engine:
    """Continuous batching over `slots` rows: `add` queues, `step` admits and decodes one token for each active row."""

    model: Decoder
    slots: int
    stop: tuple[int, ...]
    _waiting: deque[_Request] = field(default_factory=deque)
    _active: list[_Request] = field(default_factory=list)
    _keys: list[Tensor] = field(default_factory=list)  # per layer [slots, kv_heads, context, D]
    _values: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._width = 0

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._active

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, request: str, prompt: list[int], sampling: Sampling) -> None:
        """Queue a request. Raises InputError if prompt and answer do not fit into the model's context."""
        context = self.model.cfg.context
        if not prompt:
            raise InputError(f"request {request}: the prompt is empty")
        if len(prompt) + sampling.max_new_tokens > context:
            raise InputError(
                f"request {request}: {len(prompt)} prompt tokens and max_new_tokens={sampling.max_new_tokens} "
                f"exceed the context of {context}; shorten the prompt or ask for at most "
                f"{max(0, context - len(prompt))} tokens"
            )
        self._waiting.append(_Request(request, prompt, sampling))

    @torch.inference_mode()
    def cancel(self, request: str) -> None:
        """Forget a request, wherever it is; unknown names are ignored because it may just have finished."""
        self._waiting = deque(r for r in self._waiting if r.name != request)
        for row, active in enumerate(self._active):
            if active.name == request:
                self._release(row)
                return

    @torch.inference_mode()
    def step(self) -> list[Token]:
        """One token for every active request, then the first token of the waiting ones that free rows can take."""
        made = self._decode() if self._active else []
        fresh: list[_Request] = []
        while self._waiting and len(self._active) + len(fresh) < self.slots:
            fresh.append(self._waiting.popleft())
        return made + self._prefill(fresh) if fresh else made

    def _prefill(self, fresh: list[_Request]) -> list[Token]:
        lengths, device = [len(r.prompt) for r in fresh], self.model.device
        padding = [[0] * (max(lengths) - length) for length in lengths]
        tokens = torch.tensor([r.prompt + zeros for r, zeros in zip(fresh, padding, strict=True)], device=device)
        filled = [[1] * length + zeros for length, zeros in zip(lengths, padding, strict=True)]
        hidden = self.model(tokens, torch.tensor(filled, device=device))
        ends = torch.tensor(lengths, device=device).cumsum(0) - 1
        first = len(self._active)
        width = max(len(r.prompt) + r.sampling.max_new_tokens for r in fresh)
        self._reserve(first + len(fresh), width, like=hidden.cache[0][0])
        for layer, (keys, values) in enumerate(hidden.cache):
            start = 0
            for row, request in enumerate(fresh, first):
                stop = start + len(request.prompt)
                self._keys[layer][row, :, : stop - start] = keys[start:stop].transpose(0, 1)
                self._values[layer][row, :, : stop - start] = values[start:stop].transpose(0, 1)
                start = stop
        for request in fresh:
            request.length = len(request.prompt)
        self._active += fresh
        return self._emit(list(range(first, first + len(fresh))), self.model.logits(hidden.states[ends]))

    def _decode(self) -> list[Token]:
        rows = list(self._active)
        count = len(rows)
        width, device = max(r.length for r in rows) + 1, self.model.device
        lengths = torch.tensor([r.length for r in rows], device=device)
        seen = (torch.arange(width, device=device) <= lengths.unsqueeze(1)).view(count, 1, 1, width)
        x = self.model.model.embed_tokens(torch.tensor([r.last for r in rows], device=device))
        rope = rotary(self.model.cfg, lengths)
        for index, layer in enumerate(self.model.model.blocks()):
            keys, values = self._keys[index][:count, :, :width], self._values[index][:count, :, :width]
            x = x + layer.self_attn.step(layer.input_layernorm(x), rope, keys, values, lengths, seen)
            x = x + layer.mlp(layer.post_attention_layernorm(x))[0]
        for request in rows:
            request.length += 1
        return self._emit(list(range(count)), self.model.logits(self.model.model.norm(x)))

    def _emit(self, rows: list[int], logits: Tensor) -> list[Token]:
        requests = [self._active[row] for row in rows]
        ids, logprobs = sample(logits, [r.sampling for r in requests], [r.made for r in requests])
        out = []
        for request, token, logprob in zip(requests, ids.tolist(), logprobs.tolist(), strict=True):
            request.made += 1
            request.last = token
            finish: Finish | None = None
            if token in self.stop:
                finish = "stop"
            elif request.made == request.sampling.max_new_tokens:
                finish = "length"
            out.append(Token(request.name, token, logprob, finish))
        for row, token in sorted(zip(rows, out, strict=True), key=lambda pair: -pair[0]):
            if token.finish is not None:
                self._release(row)
        return out

    def _release(self, row: int) -> None:
        """Free a row by moving the last active one into it."""
        last = len(self._active) - 1
        moved = self._active[last]
        if row != last:
            for cache in (*self._keys, *self._values):
                cache[row, :, : moved.length] = cache[last, :, : moved.length]
            self._active[row] = moved
        self._active.pop()

    def _reserve(self, rows: int, width: int, *, like: Tensor) -> None:
        """Grow the cache, of tensors like `like`, to hold `rows` x `width`; it grows by doubling and never past slots x
        context."""
        cfg = self.model.cfg
        have = self._keys[0].shape[0] if self._keys else 0
        if rows <= have and width <= self._width:
            return
        rows = max(have, min(self.slots, max(rows, 2 * have)))
        self._width = max(self._width, min(cfg.context, max(width, 2 * self._width)))
        for caches in (self._keys, self._values):
            for layer in range(cfg.layers):
                grown = like.new_zeros(rows, cfg.kv_heads, self._width, cfg.head_dim)
                if layer < len(caches):
                    old = caches[layer]
                    grown[: old.shape[0], :, : old.shape[2]] = old
                    caches[layer] = grown
                else:
                    caches.append(grown)


def sample(logits: Tensor, samplings: list[Sampling], positions: list[int]) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverse CDF. logits [n, V] -> (ids [n], log-probs [n]).

    The uniform number of row i is a hash of (seed, position), so a draw can be repeated alone.
    """
    temperatures = torch.tensor([s.temperature for s in samplings], device=logits.device)
    greedy = temperatures == 0
    scaled = logits.float() / torch.where(greedy, torch.ones_like(temperatures), temperatures).unsqueeze(1)
    logprobs = scaled.log_softmax(-1)
    probabilities = logprobs.exp()
    for row, sampling in enumerate(samplings):
        if sampling.temperature and (sampling.top_p < 1 or sampling.top_k):
            probabilities[row] = _truncate(probabilities[row], sampling.top_p, sampling.top_k)
    cumulative = probabilities.double().cumsum(-1)
    seeds = np.array([s.seed for s in samplings], dtype=np.uint64)
    drawn = torch.from_numpy(uniform(seeds, np.array(positions, dtype=np.uint64))).to(logits.device)
    ids = torch.searchsorted(cumulative, (drawn * cumulative[:, -1]).unsqueeze(1), right=True).squeeze(1)
    ids = torch.where(greedy, logits.argmax(-1), ids.clamp(max=logits.shape[1] - 1))
    return ids, logprobs.gather(1, ids.unsqueeze(1)).squeeze(1)


def _truncate(probabilities: Tensor, top_p: float, top_k: int) -> Tensor:
    """Zero all but the smallest set of likeliest tokens [V] that holds `top_p`, and at most `top_k` of them."""
    ordered, ids = probabilities.sort(descending=True)
    keep = ordered.cumsum(0) - ordered < top_p
    if top_k:
        keep[top_k:] = False
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
    engine = Engine(model, min(slots, max(1, len(prompts))), stop)
    tokens: list[list[int]] = [[] for _ in prompts]
    logprobs: list[list[float]] = [[] for _ in prompts]
    finishes: dict[int, Finish] = {}
    for number, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        engine.add(str(number), prompt, sampling)
    while not engine.idle:
        for token in engine.step():
            number = int(token.request)
            tokens[number].append(token.id)
            logprobs[number].append(token.logprob)
            if token.finish is not None:
                finishes[number] = token.finish
    return [Answer(t, p, finishes[n]) for n, (t, p) in enumerate(zip(tokens, logprobs, strict=True))]

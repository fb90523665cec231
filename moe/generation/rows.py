"""What an engine's sequences hold, and their next logits: by torch on any device, or in one call in C on the CPU.

A row is a sequence: its keys and values. All ways give the same to rounding; `moe.generation.fastest` chooses.

Letters: n sequences, N tokens, W filled width of the cache, V vocabulary, H hidden size, D head size.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from moe.decoder import Decoder, rotary
from moe.kernels.decode.step import Place, Shape, Source, Step
from moe.kernels.int8 import Int8

Stepped = tuple[Tensor, Tensor | None]
CHUNK = 256  # tokens of prompts that go through with a step's new tokens: more of them would make the others wait


class Piece(NamedTuple):
    """The next tokens of a row."""

    row: int
    tokens: list[int]
    wanted: bool  # whether the logits after the last of them are asked for


class Rows(Protocol):
    routed: bool  # whether what the router chooses is kept; set before a row is taken
    chunk: int  # a prompt may come in pieces, of so many tokens in a `feed`, and go on from a copy; 0: it comes whole

    def take(self, room: int) -> int:
        """A new row, of at most `room` positions."""

    def copy(self, row: int, length: int, to: int) -> None:
        """The first positions of a row become those of a new one. Where `chunk` is 0 nobody asks."""

    def free(self, row: int) -> None: ...

    def routes(self, row: int) -> Tensor:
        """The experts that were chosen for the tokens of a row [tokens, layers, k] int16, where `routed` is set."""

    def feed(self, pieces: Sequence[Piece]) -> Tensor:
        """Append the pieces to their rows -> logits [wanted pieces, V]. Where `chunk` is 0 every row that holds
        something gets one token."""


def step_of(model: Decoder) -> Step:
    """The model as the C step reads it."""
    cfg, trunk = model.cfg, model.model
    layers = [
        (
            Source(layer.input_layernorm, "weight"),
            Source(attention.q_norm, "weight") if attention.q_norm is not None else None,
            Source(attention.k_norm, "weight") if attention.k_norm is not None else None,
            Source(layer.post_attention_layernorm, "weight"),
            Source(layer.mlp.gate, "weight"),
            *(Source(part, "weight") for part in (attention.q_proj, attention.k_proj, attention.v_proj)),
            Source(attention.o_proj, "weight"),
            Source(layer.mlp.experts, "gate_up_proj"),
            Source(layer.mlp.experts, "down_proj"),
        )
        for layer in trunk.blocks()
        for attention in (layer.self_attn,)
    ]
    table = trunk.embed_tokens
    ends = (
        Source(trunk, "embed_tokens") if isinstance(table, Int8) else Source(table, "weight"),
        Source(trunk.norm, "weight"),
        Source(model.lm_head, "weight"),
    )
    shape = Shape(
        cfg.layers,
        cfg.hidden_size,
        cfg.heads,
        cfg.kv_heads,
        cfg.head_dim,
        cfg.experts,
        cfg.top_k,
        cfg.expert_size,
        model.vocab_size,
    )
    return Step(shape, layers, ends, cfg.norm_eps)


class ByC:
    """Each row has a cache of its own, so none moves, and rows of any kind go through one call. A row's numbers are the
    same in any company and however its prompt was cut."""

    chunk = CHUNK

    def __init__(self, model: Decoder, step: Step) -> None:
        self._cfg, self._step = model.cfg, step
        self._caches: dict[int, Tensor] = {}
        self._lengths: dict[int, int] = {}
        self._rooms: dict[int, int] = {}
        self._made = 0
        self._angles = torch.empty(2, 0, 0, device="cpu")
        self.routed = False
        self._routes: dict[int, list[Tensor]] = {}

    @torch.inference_mode()
    def take(self, room: int) -> int:
        row, self._made = self._made, self._made + 1
        self._caches[row], self._lengths[row], self._rooms[row] = self._step.cache(room), 0, room
        self._routes[row] = []
        if room > self._angles.shape[1]:
            positions = torch.arange(max(room, 2 * self._angles.shape[1]), device="cpu")
            self._angles = torch.stack(rotary(self._cfg, positions)).squeeze(2).contiguous()
        return row

    @torch.inference_mode()
    def copy(self, row: int, length: int, to: int) -> None:
        assert not self._lengths[to] and length <= self._lengths[row]
        self._step.copy(self._caches[row], length, self._caches[to])
        self._lengths[to] = length
        if self.routed:
            self._routes[to] = [self.routes(row)[:length]]

    def free(self, row: int) -> None:
        del self._caches[row], self._lengths[row], self._rooms[row], self._routes[row]

    def routes(self, row: int) -> Tensor:
        return torch.cat(self._routes[row])

    def feed(self, pieces: Sequence[Piece]) -> Tensor:
        places, ends = [], []
        for piece in pieces:
            start, cache = self._lengths[piece.row], self._caches[piece.row]
            places += [Place(token, position, cache) for position, token in enumerate(piece.tokens, start)]
            self._lengths[piece.row] = start + len(piece.tokens)
            assert self._lengths[piece.row] <= self._rooms[piece.row], (
                f"row {piece.row} has no room for its next tokens"
            )
            if piece.wanted:
                ends.append(len(places) - 1)
        if not self.routed:
            return self._step(places, ends, self._angles)
        chosen = torch.empty(len(places), self._cfg.layers, self._cfg.top_k, dtype=torch.int16, device="cpu")
        logits = self._step(places, ends, self._angles, chosen)
        for piece, part in zip(pieces, chosen.split([len(piece.tokens) for piece in pieces]), strict=True):
            self._routes[piece.row].append(part)
        return logits


class ByTorch:
    """The rows lie in the first places of one cache, so that a step works on plain slices."""

    chunk = 0

    def __init__(self, model: Decoder, slots: int) -> None:
        self._model, self._slots = model, slots
        self._held: list[int] = []  # the row at each place
        self._lengths: dict[int, int] = {}
        self._rooms: dict[int, int] = {}
        self._made = 0
        self._width = 0
        self._keys: list[Tensor] = []  # per layer [places, kv_heads, W, D]
        self._values: list[Tensor] = []
        self.routed = False
        self._routes: dict[int, list[Tensor]] = {}

    def take(self, room: int) -> int:
        row, self._made = self._made, self._made + 1
        self._held.append(row)
        self._lengths[row], self._rooms[row], self._routes[row] = 0, room, []
        return row

    def copy(self, row: int, length: int, to: int) -> None:
        raise AssertionError("prompts come whole")

    @torch.inference_mode()
    def free(self, row: int) -> None:
        """The last row moves into its place."""
        place, last = self._held.index(row), len(self._held) - 1
        moved = self._held.pop()
        if moved != row:
            length = self._lengths[moved]
            for cache in (*self._keys, *self._values):
                cache[place, :, :length] = cache[last, :, :length]
            self._held[place] = moved
        del self._lengths[row], self._rooms[row], self._routes[row]

    def routes(self, row: int) -> Tensor:
        return torch.cat(self._routes[row])

    @torch.inference_mode()
    def feed(self, pieces: Sequence[Piece]) -> Tensor:
        running = [piece for piece in pieces if self._lengths[piece.row]]
        fresh = [piece for piece in pieces if not self._lengths[piece.row]]
        states = [self._decode(running)] if running else []
        states += [self._prefill(fresh)] if fresh else []
        order = [piece.row for piece in (*running, *fresh)]
        wanted = [order.index(piece.row) for piece in pieces if piece.wanted]
        joined = torch.cat(states)
        return self._model.logits(joined if wanted == list(range(len(order))) else joined[wanted])

    def _prefill(self, fresh: list[Piece]) -> Tensor:
        """The states [n, H] after the prompts; equal ones are computed once."""
        device = self._model.device
        prompts = list(dict.fromkeys(tuple(piece.tokens) for piece in fresh))
        lengths = [len(prompt) for prompt in prompts]
        padding = [[0] * (max(lengths) - length) for length in lengths]
        tokens = torch.tensor([[*p, *zeros] for p, zeros in zip(prompts, padding, strict=True)], device=device)
        filled = [[1] * length + zeros for length, zeros in zip(lengths, padding, strict=True)]
        hidden = self._model(tokens, torch.tensor(filled, device=device))
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        which = [prompts.index(tuple(piece.tokens)) for piece in fresh]
        self._reserve(like=hidden.cache[0][0])
        for piece, prompt in zip(fresh, which, strict=True):
            place, start, stop = self._held.index(piece.row), starts[prompt], starts[prompt + 1]
            for layer, (keys, values) in enumerate(hidden.cache):
                self._keys[layer][place, :, : stop - start] = keys[start:stop].transpose(0, 1)
                self._values[layer][place, :, : stop - start] = values[start:stop].transpose(0, 1)
            self._lengths[piece.row] = stop - start
            if self.routed:
                self._routes[piece.row].append(hidden.experts()[start:stop])
        ends = torch.tensor([starts[prompt + 1] - 1 for prompt in which], device=device)
        return hidden.states[ends]

    def _decode(self, running: list[Piece]) -> Tensor:
        """The states [n, H] after one token for each row."""
        given = {piece.row: piece.tokens for piece in running}
        rows = self._held[: len(running)]
        assert set(rows) == set(given) and all(len(tokens) == 1 for tokens in given.values())
        states, chosen = self._states([given[row][0] for row in rows], [self._lengths[row] for row in rows])
        if chosen is not None:
            kept = chosen.to("cpu", copy=True)  # what is there is overwritten by the next step
            for row, one in zip(rows, kept.split(1), strict=True):
                self._routes[row].append(one)
        for row in rows:
            self._lengths[row] += 1
        if rows == [piece.row for piece in running]:
            return states
        return states[[rows.index(piece.row) for piece in running]]

    def _states(self, tokens: list[int], lengths: list[int]) -> Stepped:
        """(the states [n, H] after a token for each of the first places, which hold so many; where `routed` the experts
        [n, layers, k] that they went through)."""
        device = self._model.device
        given = torch.tensor(tokens, device=device), torch.tensor(lengths, device=device)
        return self._through(*given, max(lengths) + 1)

    def _through(self, tokens: Tensor, lengths: Tensor, width: int) -> Stepped:
        """tokens, lengths [n] of the first n places, within the first `width` positions -> what `_states` gives."""
        model, count, device = self._model, tokens.shape[0], tokens.device
        seen = (torch.arange(width, device=device) <= lengths.unsqueeze(1)).view(count, 1, 1, width)
        x = model.model.embed_tokens(tokens)
        rope = rotary(model.cfg, lengths)
        at = torch.arange(count, device=device), lengths
        chosen: list[Tensor] | None = [] if self.routed else None
        for layer, keys, values in zip(model.model.blocks(), self._keys, self._values, strict=True):
            x = layer.step(x, rope, keys[:count, :, :width], values[:count, :, :width], at, seen, chosen)
        states: Tensor = model.model.norm(x)
        return states, None if chosen is None else torch.stack(chosen, 1).to(torch.int16)

    def _grown(self) -> None:
        """The cache lies elsewhere now."""

    def _reserve(self, *, like: Tensor) -> None:
        """Grow the cache, of tensors like `like`, to hold the rows; it grows by doubling and never past slots x
        context."""
        cfg = self._model.cfg
        rows, width = len(self._held), max(self._rooms[row] for row in self._held)
        have = self._keys[0].shape[0] if self._keys else 0
        if rows <= have and width <= self._width:
            return
        rows = max(have, min(self._slots, max(rows, 2 * have)))
        self._width = max(self._width, min(cfg.context, max(width, 2 * self._width)))
        self._grown()
        for caches in (self._keys, self._values):
            for layer in range(cfg.layers):
                grown = like.new_zeros(rows, cfg.kv_heads, self._width, cfg.head_dim)
                if layer < len(caches):
                    old = caches[layer]
                    grown[: old.shape[0], :, : old.shape[2]] = old
                    caches[layer] = grown
                else:
                    caches.append(grown)

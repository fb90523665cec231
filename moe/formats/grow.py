"""Rows in a model for the pieces that its tokenizer was extended by."""

import torch
from torch import Tensor

from conf.errors import InputError
from moe.decoder import LANGUAGE, Decoder
from moe.text.tokenizer import Tokenizer, is_text


def grow(model: Decoder, before: Tokenizer, after: Tokenizer) -> Decoder:
    """A model with rows for all of `after`, from one for `before`; other weights are shared with `model`.

    In embedding and head a new row is the mean of the rows of the ids that the piece was encoded to, and a row that
    only pads the vocabulary the mean of all. Old rows stay bitwise the same; the first new ids take the rows that
    padded the old vocabulary. The same model is returned if nothing is new. Raises InputError if `after` gives an old
    id another meaning.
    """
    known = min(before.size, model.vocab_size)
    rows = max(model.vocab_size, after.padded_size)
    same = all(before.bytes_of(index) == after.bytes_of(index) for index in range(known))
    if not same or not before.specials.items() <= after.specials.items():
        raise InputError("the two tokenizers give ids another meaning; the second must be an extension of the first")
    if after.size <= known:
        return model
    parts = [[old for old in _parts(before, after, index) if old < known] for index in range(known, after.size)]

    def grown(old: Tensor) -> Tensor:
        new = old[:known].mean(0).repeat(rows, 1)
        new[: model.vocab_size] = old
        for index, ids in enumerate(parts, known):
            if ids:  # a byte that the parent has no piece for stays at the mean of all
                new[index] = old[ids].mean(0)
        return new

    with torch.device("meta"):
        larger = Decoder(model.cfg, rows, model.head)
    state = model.state_dict()
    names = ["model.embed_tokens.weight"] + ["lm_head.weight"] * (model.head == LANGUAGE)
    larger.load_state_dict(state | {name: grown(state[name]) for name in names}, assign=True)
    return larger.train(model.training)


def _parts(before: Tokenizer, after: Tokenizer, index: int) -> list[int]:
    """The ids that `before` has for what an id of `after` stands for."""
    piece = after.bytes_of(index) or after.specials.get(index, "").encode()
    if is_text(piece):
        return before.encode(piece.decode())
    return [before.byte_id(byte) for byte in piece]

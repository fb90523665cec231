"""More pieces for a tokenizer that exists; `moe.formats.grow` makes rows for them in a model.

New pieces are real vocabulary with merges, ranked after all that are there: the old merges run to their end first, and
the new ones only join what they left. So text without a new piece is encoded as before (and with a byte-level
tokenizer, a character that shares its first bytes with a new one in at most as many ids), and old ids keep their
meaning.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import inf

from moe.text.families import serialise
from moe.text.tokenizer import Tokenizer, is_text


def extend_with_characters(tokenizer: Tokenizer, texts: Iterable[str], count: int) -> Tokenizer:
    """Add the `count` most frequent characters of `texts` that take more than one id; fewer if there are fewer.

    A byte-level tokenizer gets the beginnings of these characters as pieces too, where it lacks them.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    ranked = sorted(counts, key=lambda char: (-counts[char], char))
    return _with_characters(tokenizer, _costly(tokenizer, ranked)[:count])


def extend_with_pieces(tokenizer: Tokenizer, second: Tokenizer) -> Tokenizer:
    """Add the pieces of `second` that `tokenizer` doesn't have and can produce, in the order of their ids."""
    new = compare(tokenizer, second)["new"]
    extended = _with_characters(tokenizer, _costly(tokenizer, list(dict.fromkeys("".join(new)))))
    growth = _Growth(extended)
    for ids in extended.encode_batch(new):
        growth.join(ids)
    return growth.tokenizer()


def compare(tokenizer: Tokenizer, second: Tokenizer) -> dict[str, list[str]]:
    """The pieces of `second` (no specials) by what becomes of them in `tokenizer`: `new`; `duplicate`, which it has;
    `cut`, which its pre-tokeniser would never leave whole; `fragment`, which are parts of characters."""
    known = {tokenizer.bytes_of(index) for index in range(tokenizer.size)}
    out: dict[str, list[str]] = {"new": [], "duplicate": [], "cut": [], "fragment": []}
    for index in range(second.size):
        if not (piece := second.bytes_of(index)):
            continue
        text = piece.decode(errors="backslashreplace")
        if piece in known:
            out["duplicate"].append(text)
        elif not is_text(piece):
            out["fragment"].append(text)
        else:
            out["new" if tokenizer.whole(text) else "cut"].append(text)
    return out


def report(
    before: Tokenizer, after: Tokenizer, texts: Sequence[str], *, second: Tokenizer | None = None
) -> dict[str, float]:
    """Ids per character of `texts` before and after, how many pieces came, how many of them are mere parts of
    characters, and how many of `second` were left out, by the reasons of `compare`."""
    characters = max(1, sum(map(len, texts)))
    out: dict[str, float] = {
        "tokens_per_character_before": sum(map(len, before.encode_batch(texts))) / characters,
        "tokens_per_character": sum(map(len, after.encode_batch(texts))) / characters,
        "pieces_added": after.size - before.size,
        "fragments_added": len(after.byte_ids) - len(before.byte_ids),
    }
    if second is not None:
        found = compare(before, second)
        out |= {f"left_out_{reason}": len(pieces) for reason, pieces in found.items() if reason != "new"}
        # joining these needs a piece that old merges already use for something else
        out["left_out_blocked"] = len(_costly(after, found["new"]))
    return out


def _costly(tokenizer: Tokenizer, pieces: Sequence[str]) -> list[str]:
    return [piece for piece, ids in zip(pieces, tokenizer.encode_batch(pieces), strict=True) if len(ids) > 1]


def _with_characters(tokenizer: Tokenizer, characters: Sequence[str]) -> Tokenizer:
    growth = _Growth(tokenizer)
    if not tokenizer.byte_level:  # where a character that has a piece never falls to bytes
        for character in characters:
            growth.add(character)
    else:
        for ids in tokenizer.encode_batch(characters):
            growth.join(ids)
    return growth.tokenizer()


class _Growth:
    """The vocabulary and merges of a tokenizer while they grow."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._before = tokenizer
        self._description = tokenizer.description
        self._vocabulary: dict[str, int] = self._description["model"]["vocab"]
        self._pieces = {index: piece for piece, index in self._vocabulary.items()}
        self._old = frozenset(self._vocabulary)
        self._ranks: dict[tuple[str, str], int] = {}  # of the new merges
        self._free = tokenizer.size

    def add(self, piece: str) -> None:
        if piece not in self._vocabulary:
            self._vocabulary[piece] = self._free
            self._free += 1

    def join(self, ids: Sequence[int]) -> None:
        """Add the merges, left to right, that make one piece of old ids. Adds nothing if one of them would make an
        old piece: the old merges could go on from there, in text that has nothing new."""
        pieces = self._merged([self._pieces[index] for index in ids])
        made: list[tuple[str, str]] = []
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            if "".join(pair) in self._old:
                for undone in made:
                    del self._ranks[undone]
                return
            self._ranks[pair] = len(self._ranks)
            made.append(pair)
            pieces = self._merged(pieces)
        for pair in made:
            self.add("".join(pair))

    def _merged(self, pieces: list[str]) -> list[str]:
        """Apply the new merges as BPE does: always the first of those that rank lowest."""
        while True:
            ranks = [self._ranks.get(pair, inf) for pair in pairwise(pieces)]
            if (lowest := min(ranks, default=inf)) == inf:
                return pieces
            at = ranks.index(lowest)
            pieces = [*pieces[:at], pieces[at] + pieces[at + 1], *pieces[at + 2 :]]

    def tokenizer(self) -> Tokenizer:
        if self._free == self._before.size:
            return self._before
        self._description["model"]["merges"] += [list(pair) for pair in self._ranks]
        return Tokenizer(serialise(self._description), self._before.form.where, self._before.form)

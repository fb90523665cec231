"""The engine's hook for answers that must have a form: which tokens may come next."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Guide(Protocol):
    """Says of one answer, token by token, which may come next."""

    error: str  # why it cannot say so any more; ""

    def allowed(self) -> Tensor:
        """[up to V] bool, at least one of them true; an id beyond its end may not come."""

    def took(self, token: int) -> None:
        """This one came."""


def masked(logits: Tensor, guides: Sequence[Guide | None]) -> Tensor:
    """`logits` [n, V] with -inf where the guide of a row lets no token come."""
    for row, guide in zip(logits, guides, strict=True):
        if guide is not None:
            allowed = guide.allowed().to(row.device)
            row[: len(allowed)].masked_fill_(~allowed, float("-inf"))
            row[len(allowed) :] = float("-inf")
    return logits

"""What answers: two calls that rankings, reinforcement learning, evaluation and the closing measurements go through.

An engine is opened on a model folder. Another one, such as a server of its own, is one file that has `Generation`'s
methods, and a line of `ENGINES`.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from moe.decoder import Decoder
from moe.formats import hugging_face
from moe.generation.engine import Answer, Sampling, generate
from moe.text.tokenizer import Tokenizer


class Generation(Protocol):
    """Answers with the weights of one version."""

    @property
    def context(self) -> int:
        """Positions that prompt and answer have together."""

    @property
    def version(self) -> int:
        """What `load_weights` was told last; 0 of a folder just opened."""

    def generate(self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]) -> list[Answer]:
        """An answer to each prompt, in their order; `Answer` and `Sampling` say what its parts mean. The
        same prompt, sampling and weights give the same tokens in any company."""

    def load_weights(self, version: int, named: Iterable[tuple[str, Tensor]]) -> None:
        """Take over weights, each under its name in a Hugging Face folder. All are given, in any order."""


class Ours:
    """The engine of `moe.generation.engine`, in this process."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, *, slots: int = 128) -> None:
        self.model, self._stop, self._slots = model, tokenizer.stop, slots
        self._version = 0

    @classmethod
    def open(cls, folder: Path) -> "Ours":
        return cls(hugging_face.load(folder), Tokenizer.load(folder))

    @property
    def context(self) -> int:
        return self.model.cfg.context

    @property
    def version(self) -> int:
        return self._version

    def generate(self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]) -> list[Answer]:
        asked = [list(prompt) for prompt in prompts]
        return generate(self.model, asked, list(samplings), stop=self._stop, slots=self._slots)

    def load_weights(self, version: int, named: Iterable[tuple[str, Tensor]]) -> None:
        hugging_face.from_disk(dict(named), self.model, f"the weights of version {version}")
        self._version = version


ENGINES: dict[str, Callable[[Path], Generation]] = {"ours": Ours.open}

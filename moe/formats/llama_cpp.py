"""llama.cpp itself, where its binding `cyllama` is installed: what a .gguf file computes there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conf.errors import InputError

_FP32 = 0  # ggml's number for the type
_WIDTH = 512  # positions


def installed() -> bool:
    return find_spec("cyllama") is not None


@dataclass(frozen=True)
class Opened:
    """A model that llama.cpp holds."""

    context: Any
    vocabulary: Any

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of tokens [B, T], in fp32 and with an fp32 cache."""
        return torch.stack([self._row(row) for row in tokens.tolist()])

    def _row(self, row: list[int]) -> Tensor:
        from cyllama.llama.llama_cpp import LlamaBatch

        self.context.kv_cache_clear()
        batch = LlamaBatch(n_tokens=len(row), embd=0, n_seq_max=1)
        for place, token in enumerate(row):
            batch.add(token, place, [0], True)
        self.context.decode(batch)
        return torch.tensor([self.context.get_logits_ith(place) for place in range(len(row))])

    def feed(self, places: Sequence[tuple[int, int, int]]) -> None:
        """Let (token, position, sequence) through, and compute the logits after each."""
        from cyllama.llama.llama_cpp import LlamaBatch

        batch = LlamaBatch(n_tokens=len(places), embd=0, n_seq_max=1)
        for token, position, sequence in places:
            batch.add(token, position, [sequence], True)
        self.context.decode(batch)

    def answer(self, prompt: list[int], limit: int) -> list[int]:
        """The likeliest tokens after a prompt, at most `limit`, up to and with the first on which llama.cpp ends."""
        made: list[int] = []
        while len(made) < limit and not (made and self.ends(made[-1])):
            made.append(int(self._row(prompt + made)[-1].argmax()))
        return made

    def ends(self, token: int) -> bool:
        """Whether llama.cpp takes the token for an answer's end."""
        return bool(self.vocabulary.is_eog(token))

    def ids(self, text: str) -> list[int]:
        """The ids of a text in which nothing is special."""
        return list(self.vocabulary.tokenize(text, False, False))


@contextmanager
def opened(path: Path, *, sequences: int = 1, width: int = _WIDTH) -> Iterator[Opened]:
    """Load a .gguf file on the CPU, for so many sequences of so many positions at once. Raises InputError if llama.cpp
    refuses it."""
    from cyllama.llama import llama_cpp

    class Model(llama_cpp.LlamaModel):
        @property
        def n_vocab(self) -> int:  # what a context asks for its logits, and the class lacks
            return int(self.get_vocab().n_vocab)

    llama_cpp.disable_logging()
    llama_cpp.llama_backend_init()
    chosen = llama_cpp.LlamaModelParams()
    chosen.n_gpu_layers = 0
    try:
        model = Model(str(path), chosen)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path}: llama.cpp cannot load it: {error}") from None
    sizes = llama_cpp.LlamaContextParams()
    sizes.n_ctx, sizes.n_seq_max = sequences * width, sequences
    sizes.n_batch = sizes.n_ubatch = max(sequences, _WIDTH)
    sizes.n_threads = sizes.n_threads_batch = torch.get_num_threads()
    sizes.type_k = sizes.type_v = _FP32
    sizes.flash_attn_type = 0  # off: it would round the cache
    context = llama_cpp.LlamaContext(model, sizes)
    try:
        yield Opened(context, model.get_vocab())
    finally:
        context.close()
        model.close()

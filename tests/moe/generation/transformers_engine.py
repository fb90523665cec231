"""Another engine behind the seam of `moe.generation.engines`: transformers' own `generate`, one prompt at a time."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from conf.errors import InputError
from moe.generation.engine import Answer, Sampling
from moe.text.tokenizer import Tokenizer


class Transformers:
    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = Tokenizer.load(folder)
        self._stop, self._version = tokenizer.stop, 0

    @property
    def context(self) -> int:
        return int(self._model.config.max_position_embeddings)

    @property
    def version(self) -> int:
        return self._version

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]) -> list[Answer]:
        return [self._answer(list(prompt), asked) for prompt, asked in zip(prompts, samplings, strict=True)]

    def _answer(self, prompt: list[int], asked: Sampling) -> Answer:
        if asked.temperature:
            raise InputError(f"temperature={asked.temperature}: this engine only takes the likeliest token; try 0")
        made = self._model.generate(
            torch.tensor([prompt]),
            generation_config=GenerationConfig(
                max_new_tokens=asked.max_new_tokens,
                do_sample=False,
                eos_token_id=list(self._stop),
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            ),
        )
        tokens = made.sequences[0, len(prompt) :].tolist()
        logprobs = torch.cat(made.logits).float().log_softmax(-1)[range(len(tokens)), tokens].tolist()
        return Answer(tokens, logprobs, "stop" if tokens[-1] in self._stop else "length")

    def load_weights(self, version: int, named: Iterable[tuple[str, Tensor]]) -> None:
        given = dict(named)
        # This library fuses the experts in memory, so new weights go the way of a folder's.
        fresh = type(self._model).from_pretrained(None, config=self._model.config, state_dict=given)
        self._model, self._version = fresh.eval(), version

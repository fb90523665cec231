"""What a tool that opens a model does by itself: how text becomes ids, which ids end an answer, how it samples.

Whatever writes a model takes one of these, so no folder and no .gguf file goes out that another tool cannot stop on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from moe.text.format import CONFIG_FILE
from moe.text.tokenizer import Tokenizer

# The model's own distribution. Said in full: what a file leaves out, a tool fills with limits of its own.
PLAIN: Mapping[str, Any] = MappingProxyType({"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0})


@dataclass(frozen=True)
class Defaults:
    files: Mapping[str, bytes]  # the tokenizer with its chat template, by their names in a Hugging Face folder
    stop: tuple[int, ...]  # ids that end an answer; the first is the one that ends a turn
    pad: int | None
    bos: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=lambda: PLAIN)

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, chat: bool, also: Sequence[int] = ()) -> "Defaults":
        """Of a model that was trained here: one that chats ends its turns, one that does not ends documents. `also`
        are ids on which its parent ended."""
        own = tokenizer.stop if chat else (tokenizer.eos,)
        bos = tokenizer.opening[0] if tokenizer.opening else None
        return cls(tokenizer.files(), tuple(dict.fromkeys((*own, *also))), tokenizer.pad, bos)

    @property
    def ids(self) -> dict[str, int | None]:
        """What config.json says of them."""
        return {
            "pad_token_id": self.pad,
            "bos_token_id": self.bos,
            "eos_token_id": self.stop[0] if self.stop else None,
        }

    @property
    def generation(self) -> dict[str, Any]:
        """generation_config.json."""
        return {**self.ids, "eos_token_id": list(self.stop) or None, **self.sampling}

    def write(self, folder: Path, *, context: int) -> None:
        """Put the tokenizer's files into `folder`; they then know how many positions the model has."""
        for name, content in self.files.items():
            if name == CONFIG_FILE:
                settings = json.loads(content) | {"model_max_length": context}
                content = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
            (folder / name).write_bytes(content)

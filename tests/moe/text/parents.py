"""Small folders as five families publish them: a tokenizer of theirs, their settings, and their real chat template."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken

from moe.text.families import LETTERS
from tests.moe.text.foreign_tokenizers import LLAMA3, byte_level, llama2, llama3, qwen, smollm, special

TEMPLATES = Path(__file__).parent / "templates"
BEGIN, END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"


def _with_headers() -> tokenizers.Tokenizer:
    made = llama3()
    made.add_special_tokens([special("<|start_header_id|>"), special("<|end_header_id|>")])
    return made


def _qwen3() -> tokenizers.Tokenizer:
    made = qwen()
    names = ("</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
    made.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
    return made


def _deepseek() -> tokenizers.Tokenizer:
    """The marks of its turns are no special tokens."""
    from tokenizers import Regex, pre_tokenizers

    words = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    splitter = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made = byte_level(splitter, [*LETTERS], [BEGIN, END])
    made.add_tokens([AddedToken(f"<｜{role}｜>", normalized=False, special=False) for role in ("User", "Assistant")])
    return made


@dataclass(frozen=True)
class Family:
    tokenizer: Callable[[], tokenizers.Tokenizer]
    settings: dict[str, Any]
    end: str  # of a turn
    stop: list[int] | None = None  # what generation_config.json says

    def write(self, folder: Path, template: str | None) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_text(self.tokenizer().to_str())
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", **self.settings}
        settings |= {"chat_template": template} if template else {}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "config.json").write_text('{"model_type": "mixtral"}')
        if self.stop:
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": self.stop}))
        return folder


PARENTS = {
    "smollm2": Family(smollm, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, "<|im_end|>"),
    "qwen3": Family(_qwen3, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, "<|im_end|>", [3, 5]),
    "llama3": Family(_with_headers, {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}, "<|eot_id|>"),
    "llama2": Family(llama2, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, "</s>"),
    "deepseek_v3": Family(_deepseek, {"bos_token": BEGIN, "eos_token": END, "add_bos_token": True}, END),
}


def parent(name: str, folder: Path) -> Path:
    """The folder of a family, with its template."""
    return PARENTS[name].write(folder, (TEMPLATES / f"{name}.jinja").read_text("utf-8"))

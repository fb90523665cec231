"""Tokenizers out of GGUF, which keeps pieces and merges and names a splitter instead of spelling it out.

What we write (`moe.formats.gguf_vocabulary`) also carries the whole tokenizer.json, and what carries it is read from
there. Anything else is built from the pieces, so that ids are those of the original.
"""

import json
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import normalizers, pre_tokenizers

from conf.errors import InputError

FILES = (  # what a Hugging Face folder may hold of a tokenizer
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json chat_template.jinja tokenizer.model"
).split()
WHOLE = "tokenizer.huggingface.json"  # the field of a .gguf file that holds a whole tokenizer.json
_JSON, _CONFIG = "tokenizer.json", "tokenizer_config.json"
# Splitters of llama.cpp that transformers' reader does not build: digits stand alone, and the rest splits as in GPT-2.
_DIGITS_THEN_GPT2 = ("smollm", "starcoder", "refact", "command-r", "codeshell")
_GPT2 = ("gpt-2", "phi-2", "mpt", "olmo")


def open_file(path: Path) -> GGUFReader:
    """A .gguf file. Raises InputError if it is none."""
    try:
        return GGUFReader(path)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise InputError(f"{path}: not a GGUF file that can be read: {error}") from None


def read_tokenizer(path: Path) -> dict[str, bytes]:
    """The tokenizer of a .gguf file as the files of a Hugging Face folder."""
    from transformers.integrations.gguf import get_gguf_tokenizer

    reader = open_file(path)
    if (field := reader.get_field("tokenizer.ggml.model")) is None:
        raise InputError(f"{path}: has no tokenizer")
    _, spec, settings = get_gguf_tokenizer(str(path))
    whole = reader.get_field(WHOLE)
    serialised = str(whole.contents()) if whole else _build(path, spec, str(field.contents()))
    return {_JSON: serialised.encode(), _CONFIG: _plain({"tokenizer_class": "PreTrainedTokenizerFast", **settings})}


def _build(path: Path, spec: dict[str, Any], model: str) -> str:
    """tokenizer.json of the pieces and merges of a file."""
    from transformers.integrations.gguf import convert_gguf_tokenizer
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    pre = spec.get("pre_tokenizer_type", "default")
    known = (*GGUF_PRE_TOKENIZER_SPLITS, *_DIGITS_THEN_GPT2, *_GPT2)
    if model not in ("gpt2", "llama") or (model == "gpt2" and pre not in known):
        raise InputError(f"{path}: tokenizer {model} with the splitter {pre!r} is not supported")
    backend, _ = convert_gguf_tokenizer("llama", spec)
    if pre in _DIGITS_THEN_GPT2:
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    elif pre == "qwen2":
        backend.normalizer = normalizers.NFC()  # llama.cpp leaves it out; the original has it
    moved = [piece for index, piece in enumerate(spec["tokens"]) if backend.id_to_token(index) != piece]
    if moved:
        raise InputError(f"{path}: piece {moved[0]!r} of the tokenizer would get another id")
    return str(backend.to_str())


def _plain(settings: dict[str, Any]) -> bytes:
    return (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()

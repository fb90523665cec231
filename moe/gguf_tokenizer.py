"""Tokenizers in and out of GGUF, which keeps pieces and merges and names a splitter instead of spelling it out.

What we write also carries the whole tokenizer.json under `tokenizer.huggingface.json`, and what carries it is read
from there. Anything else is built from the pieces, so that ids are those of the original.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFReader, GGUFWriter, TokenType

from conf.schema import InputError

FILES = (  # what a Hugging Face folder may hold of a tokenizer
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json chat_template.jinja tokenizer.model"
).split()
_JSON, _CONFIG, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes a space
_WHOLE = "tokenizer.huggingface.json"
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
    whole = reader.get_field(_WHOLE)
    serialised = str(whole.contents()) if whole else _build(path, spec, str(field.contents()))
    return {_JSON: serialised.encode(), _CONFIG: _plain({"tokenizer_class": "PreTrainedTokenizerFast", **settings})}


def _build(path: Path, spec: dict[str, Any], model: str) -> str:
    """tokenizer.json of the pieces and merges of a file."""
    from tokenizers import normalizers, pre_tokenizers
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


def add_tokenizer(out: GGUFWriter, files: Mapping[str, bytes], vocab_size: int) -> None:
    """Put a tokenizer (files by name) for a model of `vocab_size` rows into a GGUF file. Raises InputError for one that
    llama.cpp has no counterpart of."""
    if _JSON not in files:
        raise InputError(f"{_JSON} is missing beside the model; a GGUF file needs a tokenizer")
    spec, settings = json.loads(files[_JSON]), json.loads(files.get(_CONFIG, b"{}"))
    if spec["model"].get("type", "BPE") != "BPE":
        raise InputError(f"{_JSON}: a {spec['model']['type']} tokenizer cannot be written as GGUF; only BPE can")
    vocabulary: dict[str, int] = spec["model"]["vocab"]
    added: list[dict[str, Any]] = spec["added_tokens"]
    ids = vocabulary | {token["content"]: token["id"] for token in added}
    if max(ids.values()) >= vocab_size:
        raise InputError(f"{_JSON}: piece id {max(ids.values())} has no row in a model of vocab_size={vocab_size}")
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in spec["model"]["merges"]]
    spelled, alone = {piece: piece for piece in vocabulary}, set[str]()
    if _is_sentencepiece(spec):
        out.add_tokenizer_model("llama")
        out.add_tokenizer_pre("default")
        out.add_add_space_prefix(_opens_with_space(spec))
        ranks = {left + right: -float(rank) for rank, (left, right) in reversed(list(enumerate(merges)))}
        scores = {index: ranks.get(piece, -float(len(merges))) for piece, index in vocabulary.items()}
        out.add_token_scores([scores.get(index, 0.0) for index in range(vocab_size)])
        spelled = {piece: piece.replace(" ", _SPACE) for piece in vocabulary}
    else:
        out.add_tokenizer_model("gpt2")
        out.add_tokenizer_pre(_splitter(spec))
        if spec["model"].get("byte_fallback"):
            spelled, merges, alone = _in_bytes(vocabulary, merges)
        out.add_token_merges([f"{left} {right}" for left, right in merges])
    tokens = [f"[PAD{index}]" for index in range(vocab_size)]  # rows without a piece
    types = [TokenType.UNUSED] * vocab_size
    for piece, text in spelled.items():
        tokens[vocabulary[piece]] = text
        types[vocabulary[piece]] = (
            TokenType.USER_DEFINED if piece in alone else TokenType.NORMAL if _byte(text) is None else TokenType.BYTE
        )
    for token in added:
        tokens[token["id"]] = token["content"]
        types[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    if (unknown := spec["model"].get("unk_token")) in vocabulary:
        types[vocabulary[unknown]] = TokenType.UNKNOWN
    out.add_token_list(tokens)
    out.add_token_types(types)
    _add_ends(out, ids, settings, spec)
    out.add_string(_WHOLE, files[_JSON].decode())
    template = files[_TEMPLATE].decode() if _TEMPLATE in files else settings.get("chat_template")
    if isinstance(template, str):
        out.add_chat_template(template)


def _add_ends(out: GGUFWriter, ids: dict[str, int], settings: dict[str, Any], spec: dict[str, Any]) -> None:
    found: dict[str, int] = {}
    for name in ("bos", "eos", "pad", "unk"):
        piece = settings.get(f"{name}_token")
        piece = piece["content"] if isinstance(piece, dict) else piece
        if piece in ids:
            found[name] = ids[piece]
            getattr(out, f"add_{name}_token_id")(found[name])
    if "bos" not in found and "eos" in found:
        out.add_bos_token_id(found["eos"])  # else llama.cpp takes piece 11 for it
    single = ((spec.get("post_processor") or {}).get("single") or [{}])[0]
    out.add_add_bos_token(bool(settings.get("add_bos_token", "SpecialToken" in single)) and "bos" in found)


def _is_sentencepiece(spec: dict[str, Any]) -> bool:
    """Pieces over characters, bytes for the rest, and nothing cut before the merges."""
    pre_tokenizer = spec.get("pre_tokenizer") or {"type": "Metaspace"}
    return bool(spec["model"].get("byte_fallback")) and pre_tokenizer["type"] == "Metaspace"


def _opens_with_space(spec: dict[str, Any]) -> bool:
    around = json.dumps([spec.get("normalizer"), spec.get("pre_tokenizer")])
    return '"Prepend"' in around or '"prepend_scheme": "first"' in around or '"prepend_scheme": "always"' in around


def _splitter(spec: dict[str, Any]) -> str:
    """llama.cpp's name of what cuts text into words before any merge."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    whole = spec.get("pre_tokenizer") or {}
    parts = whole.get("pretokenizers", [whole])
    kinds = [part.get("type") for part in parts]
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0]["individual_digits"] and parts[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not parts[1].get("use_regex", True):
        for name, pattern in GGUF_PRE_TOKENIZER_SPLITS.items():
            if parts[0]["pattern"] == {"Regex": pattern}:
                return name
    if kinds == ["Split"] and spec["model"].get("byte_fallback"):
        # Ours. GPT-2 cuts less between marks and digits, but no merge of ours crosses those places.
        return "gpt-2"
    raise InputError(f"{_JSON}: llama.cpp has no name for its pre_tokenizer; write convert.forms=[hugging_face]")


Merges = list[tuple[str, ...]]


def _in_bytes(vocabulary: Mapping[str, int], merges: Merges) -> tuple[dict[str, str], Merges, set[str]]:
    """Pieces over characters, with bytes to fall back on, as pieces over bytes in GPT-2's alphabet: (piece: spelling,
    merges, the pieces that stay characters).

    A character of two bytes is merged from them. One of three or four is found in the text before any merge, for
    llama.cpp drops what such merges leave half done; so it must not merge further.
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    alphabet = bytes_to_unicode()

    def written(text: str) -> str:
        return "".join(alphabet[byte] for byte in text.encode())

    merging = {character for pair in merges for character in "".join(pair)}
    spelled = {piece: written(piece) for piece in vocabulary if _byte(piece) is None}
    single = {piece: text for piece, text in spelled.items() if len(piece) == 1}
    joined: Merges = [tuple(text) for text in single.values() if len(text) == 2]
    alone = {piece for piece, text in single.items() if len(text) > 2}
    if stuck := sorted(alone & merging):
        raise InputError(
            f"{_JSON}: merges {stuck[0]!r} with others, which llama.cpp cannot do with characters of three bytes; "
            "train with tokenizer.isolate_han=true, or write convert.forms=[hugging_face]"
        )
    spelled |= {piece: piece for piece in alone}
    taken = set(spelled.values())
    for piece in vocabulary:
        byte = _byte(piece)
        if byte is not None and alphabet[byte] not in taken:  # else the character's own piece stands for it
            spelled[piece] = alphabet[byte]
    return spelled, [*joined, *((written(left), written(right)) for left, right in merges)], alone


def _byte(piece: str) -> int | None:
    """42 of "<0x2A>"."""
    found = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
    return int(found[1], 16) if found else None


def _plain(settings: dict[str, Any]) -> bytes:
    return (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()

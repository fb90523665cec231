"""A tokenizer as the vocabulary of a GGUF file, which keeps pieces and merges and names a splitter."""

import json
import re
from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter, TokenType

from conf.errors import InputError
from moe.text.defaults import Defaults
from moe.text.format import CONFIG_FILE
from moe.text.gguf_tokenizer import WHOLE
from moe.text.tokenizer import FILE

_TEMPLATE = "chat_template.jinja"
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes a space


def add_tokenizer(out: GGUFWriter, defaults: Defaults, vocab_size: int) -> None:
    """Put the tokenizer and the ends of a model of `vocab_size` rows into a GGUF file. Raises InputError for one that
    llama.cpp has no counterpart of."""
    files = defaults.files
    if FILE not in files:
        raise InputError(f"{FILE} is missing beside the model; a GGUF file needs a tokenizer")
    spec, settings = json.loads(files[FILE]), json.loads(files.get(CONFIG_FILE, b"{}"))
    if spec["model"].get("type", "BPE") != "BPE":
        raise InputError(f"{FILE}: a {spec['model']['type']} tokenizer cannot be written as GGUF; only BPE can")
    vocabulary: dict[str, int] = spec["model"]["vocab"]
    added: list[dict[str, Any]] = spec["added_tokens"]
    ids = vocabulary | {token["content"]: token["id"] for token in added}
    if max(ids.values()) >= vocab_size:
        raise InputError(f"{FILE}: piece id {max(ids.values())} has no row in a model of vocab_size={vocab_size}")
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
    _add_ends(out, ids, settings, spec, defaults)
    out.add_string(WHOLE, files[FILE].decode())
    template = files[_TEMPLATE].decode() if _TEMPLATE in files else settings.get("chat_template")
    if isinstance(template, str):
        out.add_chat_template(template)


def _add_ends(
    out: GGUFWriter, ids: dict[str, int], settings: dict[str, Any], spec: dict[str, Any], defaults: Defaults
) -> None:
    found: dict[str, int] = {}
    given = {"bos": defaults.bos, "eos": defaults.stop[0] if defaults.stop else None, "pad": defaults.pad}
    for name in ("bos", "eos", "pad", "unk"):
        piece = settings.get(f"{name}_token")
        piece = piece["content"] if isinstance(piece, dict) else piece
        known = given.get(name)
        if known is None and piece in ids:
            known = ids[str(piece)]
        if known is not None:
            found[name] = known
            getattr(out, f"add_{name}_token_id")(found[name])
    if len(defaults.stop) > 1:  # llama.cpp has one place for what ends a turn and one for what ends a text
        out.add_eot_token_id(defaults.stop[1])
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
    # over plain spaces it is one of ours for ChatML: llama.cpp would put its space behind the marks too
    first = '"prepend_scheme": "first"' in around and '"replacement": " "' not in around
    return '"Prepend"' in around or first or '"prepend_scheme": "always"' in around


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
    raise InputError(f"{FILE}: llama.cpp has no name for its pre_tokenizer; write convert.forms=[hugging_face]")


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
            f"{FILE}: merges {stuck[0]!r} with others, which llama.cpp cannot do with characters of three bytes; "
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

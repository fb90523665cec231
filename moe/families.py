"""Existing BPE tokenizers of two families, made to keep the promises of `moe.tokenizer`.

Bytes: GPT-2, LLaMA-3, Qwen, SmolLM2. A piece is a string of bytes, each spelled as one printable letter.
Characters: LLaMA-2, Mistral, our own. A piece is text; a character without a piece becomes `<0xE6>` `<0x98>` `<0xA5>`.

What a tokenizer knows keeps its id; what it lacks comes after. A SentencePiece-like one spells a space as U+2581 and
puts one before every text: here the pieces hold plain spaces and nothing is put before a text, so that U+2581 itself
survives and the parts of a conversation can be encoded one by one.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from conf.schema import InputError

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>")  # how families spell the mark between documents
BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_others = iter(range(0x100, 0x200))
LETTERS = tuple(chr(byte) if byte in _PRINTABLE else chr(next(_others)) for byte in range(256))  # GPT-2's spelling
_IN_TEXT = [byte for byte in range(256) if byte not in (0xC0, 0xC1) and byte < 0xF5]  # the others are in no UTF-8
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"

_LOSSLESS = {"ByteLevel", "Digits", "Punctuation", "Split"}  # pre-tokenisers that only cut
_COMPOSING = {"NFC", "NFKC"}  # normalisers that may go: normalised text is the same without them
_BYTES_DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_CHARACTERS_DECODER = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}

Description = dict[str, Any]  # a parsed tokenizer.json


def adopt(source: Mapping[str, Any], where: str) -> Description:
    """The description of a tokenizer with what is missing for a chat and for an exact round trip of any text; equal to
    `source` if nothing is. Raises InputError, naming file and part, for a tokenizer that cannot be made so."""
    absent: Description = {"normalizer": None, "pre_tokenizer": None, "added_tokens": []}
    out: Description = absent | json.loads(json.dumps(source))
    model = out["model"]
    if "merges" not in model or model.get("type", "BPE") != "BPE":
        raise InputError(f"{where}: model.type={model.get('type')} is not supported; BPE is")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise InputError(f"{where}: model.{name}={model[name]!r} is not supported; it must be null")
    # an old file spells a merge as "left right"
    model["merges"] = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    if is_bytes(out):
        _bytes(out, where)
    elif model.get("byte_fallback"):
        _characters(out, where)
    else:
        raise InputError(f"{where}: neither byte-level nor with byte_fallback: it cannot encode every text")
    out |= {"truncation": None, "padding": None, "post_processor": None}
    _complete(out)
    return out


def serialise(tokenizer: Description) -> bytes:
    """tokenizer.json."""
    return (json.dumps(tokenizer, ensure_ascii=False, indent=2) + "\n").encode()


def is_bytes(tokenizer: Mapping[str, Any]) -> bool:
    return any(part["type"] == "ByteLevel" for part in _parts(tokenizer["pre_tokenizer"]))


def document_end(names: Mapping[str, Any]) -> str:
    """The spelling of the mark between documents among `names`."""
    return next((name for name in _ENDS if name in names), END_OF_TEXT)


def _parts(node: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A pre-tokeniser or normaliser as a flat sequence."""
    if node is None:
        return
    if node["type"] != "Sequence":
        yield dict(node)
        return
    for child in node.get("pretokenizers", node.get("normalizers", [])):
        yield from _parts(child)


def _sequence(parts: list[dict[str, Any]]) -> Description | None:
    return {"type": "Sequence", "pretokenizers": parts} if len(parts) > 1 else parts[0] if parts else None


def _bytes(out: Description, where: str) -> None:
    _refuse(out["normalizer"], _COMPOSING, where, "normalizer")
    _refuse(out["pre_tokenizer"], _LOSSLESS, where, "pre_tokenizer")
    prefix = {"add_prefix_space": False}
    parts = [part | prefix if part["type"] == "ByteLevel" else part for part in _parts(out["pre_tokenizer"])]
    out |= {"normalizer": None, "pre_tokenizer": _sequence(parts), "decoder": _BYTES_DECODER}


def _characters(out: Description, where: str) -> None:
    normalizers, splitters = list(_parts(out["normalizer"])), list(_parts(out["pre_tokenizer"]))
    spelling = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    metaspace = [part for part in splitters if part["type"] == "Metaspace"]
    if spelling in normalizers:  # a splitter at spaces, which then are none, does nothing
        splitters = [part for part in splitters if part.get("pattern") != {"String": " "}]
    if metaspace:
        words = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithNext", "invert": False}
        cut = [words] if metaspace[0].get("split", True) else []
        splitters = [part for part in splitters if part not in metaspace] + cut
    rest = [part for part in normalizers if part not in (spelling, {"type": "Prepend", "prepend": _SPACE})]
    _refuse({"type": "Sequence", "normalizers": rest}, _COMPOSING, where, "normalizer")
    pre_tokenizer = _sequence(splitters)
    _refuse(pre_tokenizer, _LOSSLESS, where, "pre_tokenizer")
    if metaspace or spelling in normalizers:
        _respell(out, where)
    out |= {"normalizer": None, "pre_tokenizer": pre_tokenizer, "decoder": _CHARACTERS_DECODER}


def _refuse(node: Mapping[str, Any] | None, known: set[str], where: str, name: str) -> None:
    for part in _parts(node):
        if part["type"] not in known or part.get("behavior") == "Removed":
            raise InputError(f"{where}: {name} {part['type']} changes the text; there are: {', '.join(sorted(known))}")


def _respell(out: Description, where: str) -> None:
    """Pieces with plain spaces in the place of U+2581."""
    model = out["model"]
    vocabulary = {piece.replace(_SPACE, " "): index for piece, index in model["vocab"].items()}
    if len(vocabulary) < len(model["vocab"]):
        raise InputError(f"{where}: some pieces differ in a plain space and U+2581 only")
    model["vocab"] = vocabulary
    model["merges"] = [[half.replace(_SPACE, " ") for half in merge] for merge in model["merges"]]
    for token in out["added_tokens"]:
        token["content"] = token["content"].replace(_SPACE, " ")


def _complete(out: Description) -> None:
    """Give the marks of a chat and the bytes of UTF-8 an id, and keep every special out of reach of the merges."""
    model, added = out["model"], out["added_tokens"]
    vocabulary: dict[str, int] = model["vocab"]
    for token in added:
        token |= {"single_word": False, "lstrip": False, "rstrip": False}  # else they swallow the blanks beside them
        vocabulary.setdefault(token["content"], token["id"])
    free = max(vocabulary.values()) + 1
    spelled = LETTERS if is_bytes(out) else BYTES
    marks = (document_end(vocabulary), IM_START, IM_END)
    for piece in (*marks, *(spelled[byte] for byte in _IN_TEXT)):
        if piece not in vocabulary:
            vocabulary[piece] = free
            free += 1
    known = {token["content"]: token for token in added}
    for mark in marks:
        blank = {"id": vocabulary[mark], "content": mark, "single_word": False, "lstrip": False, "rstrip": False}
        if mark not in known:
            added.append(blank | {"normalized": False, "special": True})
        else:
            known[mark]["special"] = True
    added.sort(key=lambda token: int(token["id"]))
    specials = {token["content"] for token in added if token["special"]}
    model["merges"] = [merge for merge in model["merges"] if "".join(merge) not in specials]

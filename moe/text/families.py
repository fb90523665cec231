"""Existing BPE tokenizers of two families, made to keep the promises of `moe.text.tokenizer`.

Bytes: GPT-2, LLaMA-3, Qwen, SmolLM2. A piece is a string of bytes, each spelled as one printable letter.
Characters: LLaMA-2, Mistral, our own. A piece is text; a character without a piece becomes `<0xE6>` `<0x98>` `<0xA5>`.

What a tokenizer knows keeps its id; what it lacks comes after. A SentencePiece-like one spells a space as U+2581: here
the pieces hold plain spaces, so that U+2581 itself survives. What it puts before a text, a space or a mark (BOS), stays
in the description; `middle` is the same without, for text that goes on from other text.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from conf.errors import InputError
from moe.text.format import Format

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

_LEADING = {"type": "Prepend", "prepend": " "}  # a space before every text, and behind every mark in it

Description = dict[str, Any]  # a parsed tokenizer.json


def adopt(source: Mapping[str, Any], where: str, form: Format) -> Description:
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
        _characters(out, where, own=bool(form.template))
    else:
        raise InputError(f"{where}: neither byte-level nor with byte_fallback: it cannot encode every text")
    out |= {"truncation": None, "padding": None}
    marks = opening(out, form)
    _complete(out, form)
    if unknown := [mark for mark in marks if mark not in out["model"]["vocab"]]:
        raise InputError(f"{where}: {unknown[0]!r}, which is to stand before every text, is no piece")
    out["post_processor"] = _begun(marks, out["model"]["vocab"])
    return out


def middle(tokenizer: Description) -> Description:
    """The same tokenizer with nothing put before a text."""
    parts = [part | {"prepend_scheme": "never"} if _is_metaspace(part) else part for part in _splitters(tokenizer)]
    decoder = tokenizer["decoder"] if is_bytes(tokenizer) else _CHARACTERS_DECODER
    without = {"normalizer": None, "pre_tokenizer": _sequence(parts), "post_processor": None, "decoder": decoder}
    return tokenizer | without


def led(tokenizer: Description, text: str, *, first: bool) -> str:
    """`text` with the space that the tokenizer puts before it; `first`: nothing stands before it, no mark either."""
    if not text:
        return text
    if tokenizer["normalizer"] == _LEADING:
        return " " + text
    schemes = [part["prepend_scheme"] for part in _splitters(tokenizer) if _is_metaspace(part)]
    wanted = "always" in schemes or ("first" in schemes and first)
    return " " + text if wanted and text[0] != " " else text


def opening(tokenizer: Description, form: Format) -> list[str]:
    """The marks that come before every text, by their spelling."""
    if form.begins is not None:
        return [form.spelled("bos_token")] if form.begins else []
    whole = tokenizer.get("post_processor") or {}
    for part in whole.get("processors", [whole]):
        if part.get("type") == "TemplateProcessing":
            single = [next(iter(piece.items())) for piece in part["single"]]
            before = single[: next((at for at, (kind, _) in enumerate(single) if kind == "Sequence"), 0)]
            return [token for _, mark in before for token in part["special_tokens"][mark["id"]]["tokens"]]
    return []


def serialise(tokenizer: Description) -> bytes:
    """tokenizer.json."""
    return (json.dumps(tokenizer, ensure_ascii=False, indent=2) + "\n").encode()


def is_bytes(tokenizer: Mapping[str, Any]) -> bool:
    return any(part["type"] == "ByteLevel" for part in _parts(tokenizer["pre_tokenizer"]))


def document_end(names: Mapping[str, Any], form: Format) -> str:
    """The spelling of the mark between documents among `names`."""
    ends = (*_ENDS, form.spelled("eos_token"))
    return next((name for name in ends if name in names), END_OF_TEXT)


def _splitters(tokenizer: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(_parts(tokenizer["pre_tokenizer"]))


def _is_metaspace(part: Mapping[str, Any]) -> bool:
    return bool(part["type"] == "Metaspace")


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


def _characters(out: Description, where: str, *, own: bool) -> None:
    """`own`: in the chat format of its own, where the space comes behind every mark too if it did; in ours it comes
    before a text only."""
    normalizers, splitters = list(_parts(out["normalizer"])), _splitters(out)
    spelling = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    leading = [part for part in normalizers if part["type"] == "Prepend"]
    rest = [part for part in normalizers if part not in (spelling, *leading)]
    _refuse({"type": "Sequence", "normalizers": rest}, _COMPOSING, where, "normalizer")
    if spelling in normalizers:  # a splitter at spaces, which then are none, does nothing
        splitters = [part for part in splitters if part.get("pattern") != {"String": " "}]
    if leading and not own:
        splitters = [_metaspace("first", split=False), *splitters]
    parts = [_in_spaces(part, own=own) if _is_metaspace(part) else part for part in splitters]
    pre_tokenizer = _sequence([part for part in parts if part not in (_metaspace("never", split=False),)])
    _refuse(pre_tokenizer, _LOSSLESS | {"Metaspace"}, where, "pre_tokenizer")
    if spelling in normalizers or any(part.get("replacement") == _SPACE for part in splitters):
        _respell(out, where)
    out |= {"normalizer": _LEADING if leading and own else None, "pre_tokenizer": pre_tokenizer}
    out["decoder"] = _CHARACTERS_DECODER
    if led(out, "x", first=True) != "x":  # as it came, so it goes
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        out["decoder"] = {"type": "Sequence", "decoders": [*_CHARACTERS_DECODER["decoders"], strip]}


def _metaspace(scheme: str, *, split: bool) -> Description:
    return {"type": "Metaspace", "replacement": " ", "prepend_scheme": scheme, "split": split}


def _in_spaces(part: Mapping[str, Any], *, own: bool) -> Description:
    """A Metaspace over plain spaces; old files say add_prefix_space."""
    scheme = part.get("prepend_scheme") or ("always" if part.get("add_prefix_space", True) else "never")
    return _metaspace("first" if scheme == "always" and not own else scheme, split=part.get("split", True))


def _begun(marks: list[str], ids: Mapping[str, int]) -> Description | None:
    """A post-processor that puts the marks before every text."""
    if not marks:
        return None
    before = [{"SpecialToken": {"id": mark, "type_id": 0}} for mark in marks]
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {mark: {"id": mark, "ids": [ids[mark]], "tokens": [mark]} for mark in marks}
    pair = [*before, *text, {"Sequence": {"id": "B", "type_id": 1}}]
    return {"type": "TemplateProcessing", "single": [*before, *text], "pair": pair, "special_tokens": tokens}


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


def _complete(out: Description, form: Format) -> None:
    """Give the marks of a chat and the bytes of UTF-8 an id, and keep every special out of reach of the merges."""
    model, added = out["model"], out["added_tokens"]
    vocabulary: dict[str, int] = model["vocab"]
    for token in added:
        if not (token["special"] and form.template):  # where only the template writes them, they stay as they are
            token |= {"single_word": False, "lstrip": False, "rstrip": False}  # they swallow the blanks beside them
        vocabulary.setdefault(token["content"], token["id"])
    free = max(vocabulary.values()) + 1
    spelled = LETTERS if is_bytes(out) else BYTES
    marks = (document_end(vocabulary, form), *(() if form.template else (IM_START, IM_END)))
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

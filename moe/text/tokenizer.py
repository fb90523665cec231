"""Text to token ids and back: byte-pair encoding, trained here over characters or taken from another family.

Every string survives the round trip exactly, and no string ever encodes to a special token: those are put into a
sequence by id alone (see `moe.text.chat`). What is done to a tokenizer that came from elsewhere: `moe.text.families`.
"""

import codecs
import hashlib
import json
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from conf.errors import InputError
from conf.knobs.text import Tokenizer as Settings
from moe.text.families import (
    BYTES,
    END_OF_TEXT,
    IM_END,
    IM_START,
    LETTERS,
    Description,
    adopt,
    document_end,
    is_bytes,
    led,
    middle,
    opening,
    serialise,
)
from moe.text.format import CONFIG_FILE, TEMPLATE_FILE, Format, ends
from moe.text.learning import learnt
from moe.text.rendering import Rendered, Writer, finder
from moe.text.template import BEGUN, ROLES, TEMPLATE

PAD = "<|pad|>"
SPECIALS = (PAD, END_OF_TEXT, IM_START, IM_END)  # their ids, in this order, are the first of a trained vocabulary
# Always pieces: users write ASCII and these marks even where the corpus has none.
ALWAYS = ("\n", "\t", *map(chr, range(0x20, 0x7F)), *"，。！？；：、·《》（）“”‘’—…\u3000")
COVERAGE = 0.9995  # share of the text's characters that get a piece before merges compete for what is left
FILE = "tokenizer.json"
_FILES = (CONFIG_FILE, "special_tokens_map.json", TEMPLATE_FILE)  # what else of a folder says how it writes

# Alternatives in order: one newline; a word with the space before it; one digit; one mark; blanks up to the one that
# belongs to the next word. Marks and newlines stand alone, so that a piece never spans a clause.
_WORDS = r"[\r\n]| ?[^\s\p{{P}}\p{{S}}\p{{N}}{han}]+|\p{{N}}|[^\s]|[^\S\r\n]+(?!\S)|[^\S\r\n]"


class Tokenizer:
    """A vocabulary with its merges. `encode` gives ordinary pieces only; the specials are the ids `pad`, `eos`, ...

    `eos` is the mark between documents, `<|endoftext|>` or what its family has for it; an answer in a chat ends with
    `turn_end`, which in ChatML is `im_end`. Where there is no `<|pad|>`, `eos` pads: `im_end`, which some models pad
    with, is a target. `opening` are the ids that its family puts before every text (BOS), often none.
    `size` counts the ids; `padded_size`, the next multiple of 128, is what a new model allots (fast matrix shapes on
    every device). One that came with its tokenizer may have more rows than that, or too few: `vocabulary.grow`.
    """

    def __init__(self, serialised: bytes, where: str = FILE, form: Format | None = None) -> None:
        self.form = form or Format(given=False, where=where)
        try:
            self._backend = tokenizers.Tokenizer.from_str(serialised.decode())
        except Exception as error:  # the library raises bare Exception; whatever it says, the file is at fault
            raise InputError(f"{where}: not a tokenizer: {' '.join(str(error).split())}") from None
        source = json.loads(serialised)
        if (whole := adopt(source, where, self.form)) != source:
            serialised = serialise(whole)
        if (inner := middle(whole)) != source:
            self._backend = tokenizers.Tokenizer.from_str(json.dumps(inner))
        self._backend.encode_special_tokens = True  # "<|im_end|>" typed by a user is ten characters, not a token
        self._serialised = serialised
        self._spelled = LETTERS if is_bytes(whole) else BYTES  # how this family writes the 256 bytes
        self._description = whole
        self._ids = ids = dict[str, int](self._backend.get_vocab(with_added_tokens=True))
        self.size = max(ids.values()) + 1
        self.padded_size = -(-self.size // 128) * 128
        self.eos = ids[document_end(ids, self.form)]
        self.pad = ids.get(PAD, self.eos)
        self.im_start, self.im_end = ids.get(IM_START, self.eos), ids.get(IM_END, self.eos)  # of ChatML only
        self.opening = tuple(ids[mark] for mark in opening(whole, self.form))
        self.specials = {token["id"]: str(token["content"]) for token in whole["added_tokens"] if token["special"]}
        for name, encoded in zip(self.specials.values(), self.encode_batch([*self.specials.values()]), strict=True):
            if not self.specials.keys().isdisjoint(encoded):
                raise InputError(f"{where}: the text {name!r} encodes to a special token; rename that token")

    @classmethod
    def train(cls, texts: Iterable[str], cfg: Settings) -> "Tokenizer":
        """Learn at most `cfg.vocab_size` pieces. The same texts in the same order give the same bytes on disk."""
        texts = list(texts)
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        roles = _whole_words(ROLES)
        room = cfg.vocab_size - len(SPECIALS) - len(BYTES) - len(roles)
        ranked = sorted((char for char in counts if counts[char] >= cfg.min_frequency), key=lambda c: (-counts[c], c))
        first = _alphabet(counts, ranked, room, all_room=cfg.isolate_han)
        splitter = _splitter(cfg.isolate_han)
        merges = learnt(texts, splitter, set(first), len(counts), room - len(first), cfg.min_frequency)
        pieces = list(dict.fromkeys([*first, *(left + right for left, right in merges)]))
        pieces = list(dict.fromkeys([*pieces, *ranked]))[:room]  # room that merges left over goes to rarer characters
        # the roles' words stand in every chat: one piece each, wherever the corpus comes from
        merges = [*roles, *(merge for merge in merges if merge not in roles)]
        pieces = list(dict.fromkeys([*pieces, *(left + right for left, right in roles)]))
        vocabulary = {piece: index for index, piece in enumerate([*SPECIALS, *BYTES, *pieces])}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True))
        backend.pre_tokenizer = splitter
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
        backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
        return cls(backend.to_str(pretty=True).encode())

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of a folder or of a .gguf file, which may be of another family, with its chat format."""
        if (path := Path(folder)).suffix == ".gguf" and path.is_file():
            from moe.text.gguf_tokenizer import read_tokenizer

            files = read_tokenizer(path)
            return cls(files[FILE], str(path), Format.of(files, str(path)))
        if not (path / FILE).is_file():
            raise InputError(f"{path / FILE}: no such file; a tokenizer folder holds {FILE}")
        files = {name: (path / name).read_bytes() for name in _FILES if (path / name).is_file()}
        return cls((path / FILE).read_bytes(), str(path / FILE), Format.of(files, str(path), ends(path)))

    def save(self, folder: str | Path) -> None:
        """Write a folder that `transformers.AutoTokenizer` opens: same ids, same chat template."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (folder / name).write_bytes(content)

    def files(self) -> dict[str, bytes]:
        """What `save` writes, by name."""
        ours = {
            "eos_token": IM_END,  # what ends an answer; `eos` ends a document
            "additional_special_tokens": [self.specials[self.eos], IM_START],
        }
        begun = {"bos_token": self.specials[self.opening[0]]} if self.opening else {}
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **(dict(self.form.names) if self.form.template else begun),
            "pad_token": self.specials[self.pad],
            **({} if self.form.template else ours),
            "clean_up_tokenization_spaces": False,
            "model_max_length": 10**9,  # the model's config knows its context
            "chat_template": self.form.template or (BEGUN if self.opening else TEMPLATE),
        }
        written = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        return {FILE: self._serialised, CONFIG_FILE: written.encode()}

    @cached_property
    def turn_end(self) -> int:
        """The id of the mark that ends an answer in a chat."""
        return self._ids.get(self.writer.end(), self.eos) if self.form.template else self.im_end

    @cached_property
    def stop(self) -> tuple[int, ...]:
        """The ids on which generation ends: that of an answer, that of a document, and what the folder's model has."""
        return tuple(dict.fromkeys((self.turn_end, self.eos, *self.form.ends)))

    @cached_property
    def writer(self) -> Writer:
        """Writes conversations in the folder's own format."""
        added = [str(token["content"]) for token in self._description["added_tokens"] if not token["special"]]
        return Writer(self.form, self.specials.values(), added)

    @cached_property
    def _added(self) -> re.Pattern[str]:
        return finder(self._description["added_tokens"])

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text as one that nothing stands before: as its family begins a text, but for `opening`."""
        return self.encode_batch([led(self._description, text, first=True) for text in texts])

    def encode_rendered(self, rendered: Rendered) -> tuple[list[int], list[tuple[int, int]]]:
        """(ids of a conversation, the places in them of each answer, which begins with an id of its own)."""
        text, at = rendered.text, 0
        edges = {edge for answer in rendered.answers for edge in answer}
        edges |= {place for place, char in enumerate(text) if char == rendered.cut}
        ordered = sorted(edges)
        parts: list[tuple[int, int | str]] = []  # (where it begins, a mark's id or text)

        def stretch(stop: int) -> None:
            inside = ordered[bisect_right(ordered, at) : bisect_left(ordered, stop)]
            for start, end in pairwise([at, *inside, stop]):
                piece = text[start:end].replace(rendered.cut, "").replace(rendered.dropped, "")
                parts.append((start, led(self._description, piece, first=not at) if start == at else piece))

        for found in self._added.finditer(text):
            stretch(found.start())
            parts.append((found.start(), self._ids[found[found.lastindex or 0]]))
            at = found.end()
        stretch(len(text))
        pieces = iter(self.encode_batch([part for _, part in parts if isinstance(part, str)]))
        begins, ids = [], list[int]()
        for start, part in parts:
            begins.append((start, len(ids)))
            ids += next(pieces) if isinstance(part, str) else [part]
        begins.append((len(text) + 1, len(ids)))  # behind all
        starts = [start for start, _ in begins]

        def place(edge: int) -> int:
            return begins[bisect_left(starts, edge)][1]

        return ids, [(place(start), place(stop)) for start, stop in rendered.answers]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, never a special one. A lone surrogate, which is no text, raises `InputError`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        try:
            encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:  # what the library says of a string that has no UTF-8
            for text in texts:
                check_text(text)
            raise
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; specials and ids beyond `size` are dropped, bytes that are no UTF-8 become U+FFFD."""
        return self._backend.decode(list(ids), skip_special_tokens=True)

    def written(self, ids: Sequence[int]) -> list[int]:
        """For each id, how many characters of the decoded text are complete once it is there."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return list(accumulate(len(decoder.decode(self.bytes_of(index))) for index in ids))

    def bytes_of(self, index: int) -> bytes:
        """The UTF-8 that an id stands for, which may be a part of a character; none for specials and unused ids."""
        return self._bytes[index] if index < self.size else b""

    def byte_id(self, byte: int) -> int:
        """The id of the piece of one byte."""
        index = self._backend.token_to_id(self._spelled[byte])
        assert index is not None, "moe.text.families gives every byte of UTF-8 a piece"
        return index

    @property
    def byte_level(self) -> bool:
        """Pieces are bytes spelled with `moe.text.families.LETTERS`; else text, and bytes for the rest."""
        return self._spelled is LETTERS

    @property
    def description(self) -> Description:
        """A copy of tokenizer.json."""
        described: Description = json.loads(self._serialised)
        return described

    def whole(self, text: str) -> bool:
        """Whether the merges see `text` in one: the pre-tokeniser doesn't cut it, and it holds no added token."""
        splitter, added = self._backend.pre_tokenizer, self._backend.get_added_tokens_decoder().values()
        if any(token.content in text for token in added if not token.special):
            return False
        return splitter is None or len(splitter.pre_tokenize_str(text)) == 1

    @cached_property
    def _bytes(self) -> list[bytes]:
        byte_of = {piece: bytes([byte]) for byte, piece in enumerate(self._spelled)}
        out = [b""] * self.size
        for piece, index in self._backend.get_vocab(with_added_tokens=False).items():
            if self.byte_level:
                out[index] = b"".join(byte_of.get(letter, b"") for letter in piece)
            else:
                out[index] = byte_of.get(piece) or piece.encode()
        for index, token in self._backend.get_added_tokens_decoder().items():
            out[index] = b"" if index in self.specials else token.content.encode()
        return out

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """The ids that are no text by themselves: single bytes, or parts of characters in a byte-level vocabulary."""
        if not self.byte_level:
            ids = map(self._backend.token_to_id, BYTES)
            return frozenset(index for index in ids if index is not None)
        return frozenset(index for index, piece in enumerate(self._bytes) if not is_text(piece))

    @cached_property
    def digest(self) -> str:
        """sha256 of tokenizer.json, kept beside whatever was made with these ids."""
        return hashlib.sha256(self._serialised).hexdigest()

    def __reduce__(self) -> tuple[type["Tokenizer"], tuple[bytes, str, Format]]:
        return Tokenizer, (
            self._serialised,
            self.form.where,
            self.form,
        )  # to other processes as bytes: the backend forgets its switch


def check_text(text: str) -> None:
    """Raise `InputError` if `text` holds half of a surrogate pair: it is no Unicode text and has no bytes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"text holds a lone surrogate at character {error.start}; it must be valid Unicode") from None


def is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _whole_words(words: Sequence[str]) -> list[tuple[str, str]]:
    """The merges that make one piece of each word, letter by letter."""
    return list(dict.fromkeys((word[:end], word[end]) for word in words for end in range(1, len(word))))


def _splitter(isolate_han: bool) -> pre_tokenizers.PreTokenizer:
    words = _WORDS.format(han=r"\p{Han}" if isolate_han else "")
    return pre_tokenizers.Split(Regex(words), behavior="isolated")


def _alphabet(counts: Counter[str], ranked: Sequence[str], room: int, *, all_room: bool) -> list[str]:
    """Characters that become pieces before any merge: `ALWAYS`, then the most frequent up to `COVERAGE` of the text."""
    # When Han characters may merge, half of the room is kept for words.
    limit = room if all_room else (room + len(ALWAYS)) // 2
    chosen = list(ALWAYS)
    seen, enough = sum(counts[char] for char in ALWAYS), COVERAGE * counts.total()
    for char in ranked:
        if seen >= enough or len(chosen) >= limit:
            break
        if char not in ALWAYS:
            chosen.append(char)
            seen += counts[char]
    return chosen[:limit]

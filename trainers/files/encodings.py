"""Bytes to text: by their mark, as strict UTF-8, or as what they must have been written in, where that is plain.

A guess counts only if every byte fits and nearly all characters are ones that people write. Bytes most of which are
UTF-8 are damaged UTF-8 and nothing else. Who knows better says `corpus.encoding`.
"""

import codecs
import re
from functools import cache

from conf.errors import InputError
from trainers.files.streams import BadRecord

DETECT, UTF8 = "detect", "utf-8"
LOOKED_AT = 2**16  # bytes; an encoding does not hang on the end of a text
LEAST = 4  # characters beyond ASCII that a guess at an Asian encoding needs
MOSTLY = 0.9  # share of a text that fits an encoding from which on it is named as what the text may be
COMMON = 0.9  # share of these that must be characters that people write
LETTERS = 8  # ASCII letters for each one beyond it that a text in Latin-1 may have at the least, as 1 / LETTERS of them
# Python's name for what a detector says, the wider one of two: what GBK or Big5 lack, later editions have.
KNOWN = {
    "gbk": "gb18030",
    "gb2312": "gb18030",
    "x-gbk": "gb18030",
    "big5-hkscs": "big5hkscs",
    "iso-8859-1": "cp1252",
    "latin1": "cp1252",
    "us-ascii": "cp1252",
    "gb18030": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc-jp": "euc_jp",
    "euc-kr": "cp949",
    "windows-1252": "cp1252",
}
_ASIAN = ("gb18030", "big5hkscs", "cp932", "euc_jp", "cp949")
_TITLES = {"big5hkscs": "big5", "cp932": "shift_jis", "cp949": "euc-kr", "cp1252": "latin-1"}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FIRST = frozenset(mark[:1] for mark, _ in _MARKS)
_BEYOND = re.compile("[^\0-\x7f]")
# Kana, hangul, the marks of Chinese and Japanese, letters and digits of full width.
_ASIA = re.compile("[\u2010-\u2026\u3000-\u3017\u3041-\u30fe\uac00-\ud7a3\uff01-\uff5e\uffe5·×÷℃—]")
_WESTERN = re.compile("[àáâãäåæçèéêëìíîïñòóôõöøùúûüßœÀÁÄÅÆÇÈÉÊËÌÍÎÏÑÒÓÔÖØÙÚÛÜŒ‘’“”«»–—…•€£©®°§·¿¡º\u00a0]")
_LATIN = re.compile("[A-Za-z]")
_WORDS = re.compile("[\uac00-\ud7a3][.,]? (?=[\uac00-\ud7a3])")


def check(name: str) -> None:
    """Raise `InputError` for an encoding that there is not."""
    if name != DETECT and not _is_text(name):
        raise InputError(
            f"corpus.encoding={name}: no encoding; try {DETECT}, utf-8, gb18030, big5, utf-16, shift_jis or latin-1"
        )


def decoded(content: bytes, encoding: str = UTF8, said: str = "") -> tuple[str, str]:
    """(text, name of the encoding, "" for UTF-8). `said`: what the document says of itself, which must fit.

    Raises `BadRecord` for bytes that are no text in `encoding`, and where that is `detect` in none that is plain.
    """
    if encoding == DETECT:
        if content[:1] in _FIRST:
            for mark, name in _MARKS:
                if content.startswith(mark):
                    return _strict(content, name), "" if name == "utf-8-sig" else name
    elif encoding != UTF8 and not encoding.lower().startswith(("utf-16", "utf-32")):
        return _strict(content, encoding), encoding  # those were made UTF-8 where the file was opened
    try:
        return content.decode(), ""
    except UnicodeDecodeError as error:
        wrong = f"invalid UTF-8 at byte {error.start} of the record ({error.reason})"
    if encoding != DETECT:
        raise BadRecord(wrong)
    found, why = _guessed(content, said)
    if not found:
        raise BadRecord(wrong + (f"; {why}" if why else ""))
    return content.decode(found), _TITLES.get(found, found)


def detected(content: bytes) -> str:
    """The encoding of a file that begins so, as Python names it, UTF-8 where no other is plain."""
    for mark, name in _MARKS:
        if content.startswith(mark):
            return name
    start = content[:LOOKED_AT]
    at = _first_wrong(start, UTF8)
    if at < 0 or at >= len(start) - 3:  # where the start was cut off
        return UTF8
    return _guessed(start, "")[0] or UTF8


def plausible(text: str, encoding: str) -> bool:
    """Whether what was decoded from an encoding is such as people write."""
    beyond = _BEYOND.findall(text)
    if encoding in _ASIAN:
        usual = sum(char in _han() for char in beyond) + len(_ASIA.findall(text))
        # Chinese bytes are Korean syllables too, but Korean has blanks between its words
        apart = encoding != "cp949" or len(_WORDS.findall(text)) * 12 >= len(beyond)
        return len(beyond) >= LEAST and usual >= COMMON * len(beyond) and apart
    letters = len(_LATIN.findall(text))
    return len(_WESTERN.findall(text)) == len(beyond) and letters >= max(LETTERS, len(beyond) * 2)


def _is_text(name: str) -> bool:
    try:
        return bool(getattr(codecs.lookup(name), "_is_text_encoding", True))  # hex, say, is none
    except LookupError:
        return False


def _strict(content: bytes, name: str) -> str:
    try:
        return content.decode(name)
    except UnicodeError as error:
        at = f" at byte {error.start} of the record" if isinstance(error, UnicodeDecodeError) else ""
        reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
        raise BadRecord(f"invalid {name}{at} ({reason})") from None


def _guessed(content: bytes, said: str) -> tuple[str, str]:
    """(the encoding of bytes that are no UTF-8, what may be said instead): "" where none is plain."""
    start = content[:LOOKED_AT]
    high = len(start) - len(start.translate(None, bytes(range(0x80, 0x100))))
    text = start.decode(errors="ignore")
    if 2 * (len(text.encode()) - (len(start) - high)) >= high and "\0" not in text:
        return "", ""  # most of it is UTF-8
    if name := _wide(start):
        return (name, "") if _fits(content, name) else ("", f"it seems to be {name}, but not all of it is")
    named = said.strip().lower()
    guess = _detector(start)
    almost = ""
    for label in dict.fromkeys((KNOWN.get(named, ""), KNOWN.get(guess.lower(), ""), *_ASIAN, "cp1252")):
        at = _first_wrong(content, label) if label else 0
        fits = at < 0 or at >= MOSTLY * len(start)
        shown = (start[:at] if at >= 0 else start).decode(label, errors="ignore") if fits else ""
        if fits and plausible(shown, label):
            if at < 0:
                return label, ""
            almost = almost or f"it seems to be {_TITLES.get(label, label)}, but not at byte {at}"
    if almost:
        return "", almost
    if named and named not in KNOWN and _is_text(named) and _fits(content, named):
        return named, ""  # nobody but the document knows
    if guess.lower() in KNOWN:
        return "", ""
    return "", f"it may be {guess}, which corpus.encoding={guess.lower()} reads"


def _detector(content: bytes) -> str:
    from chardetng_py import detect

    return detect(content)


def _wide(content: bytes) -> str:
    """UTF-16 without its mark: every second byte is the same for many characters, and all of them are plausible."""
    even = content[: len(content) // 2 * 2]
    for name in ("utf-16-le", "utf-16-be"):
        text = even.decode(name, errors="replace")
        usual = sum("\u4e00" <= char <= "\u9fff" or char.isascii() or "\u3000" <= char <= "\u30fe" for char in text)
        han = [char for char in text if "\u4e00" <= char <= "\u9fff"]
        common = sum(char in _han() for char in han) >= 0.6 * len(han)  # a third of them by chance
        if len(text) >= 2 * LEAST and usual >= COMMON * len(text) and common and "\0" not in text:
            return name
    return ""


def _fits(content: bytes, name: str) -> bool:
    return _first_wrong(content, name) < 0


def _first_wrong(content: bytes, name: str) -> int:
    """The first byte that does not fit, -1 if all do."""
    try:
        content.decode(name)
    except UnicodeDecodeError as error:
        return error.start
    return -1


@cache
def _han() -> frozenset[str]:
    """The characters of the first level of GB 2312 and of Big5: those in use, simplified and traditional."""
    pairs = [
        *((bytes([lead, trail]), "gb2312") for lead in range(0xB0, 0xD8) for trail in range(0xA1, 0xFF)),
        *(
            (bytes([lead, trail]), "big5")
            for lead in range(0xA4, 0xC7)
            for trail in (*range(0x40, 0x7F), *range(0xA1, 0xFF))
        ),
    ]
    return frozenset("".join(pair.decode(name, errors="ignore") for pair, name in pairs))

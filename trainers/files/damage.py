"""Text that was damaged before it came here: repaired where its bytes prove what it was, refused where it is lost."""

import re
from functools import cache
from unicodedata import combining

from trainers.files.encodings import plausible
from trainers.files.streams import BadRecord

REPLACED, BOX = "\ufffd", "\u25a1"
LOST = {REPLACED: 0.1, "锟斤拷": 0.1, BOX: 0.5}  # share of the characters above which a text is refused
MARKS = 256  # accents on one letter: to put them in order takes their square, and no script has more than a few
_FEW = 8  # characters that someone may have written on purpose
_PROOF = 4  # characters of three bytes that only UTF-8 read as GBK makes by chance of none
# What Windows-1252 shows of the bytes 0x80 to 0x9f; those that it lacks come through as control characters.
_BYTE_OF = {ord(bytes([byte]).decode("cp1252")): byte for byte in {*range(0x80, 0xA0)} - {0x81, 0x8D, 0x8F, 0x90, 0x9D}}
_LATIN = re.compile("[\xc2-\xf4][\x80-\xbf]{1,3}")
_ABOVE = re.compile("[^\0-\x7f]")
# Not blanks to Python, and yet nothing to see: joiners, marks of direction, selectors, fillers, soft hyphens.
_VISIBLE = re.compile(
    r"[^\s\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)


def visible(text: str) -> bool:
    """Whether there is anything to read."""
    return _VISIBLE.search(text) is not None


def check(text: str) -> None:
    """Raise `BadRecord` for a text of which so much is lost that nobody should learn it."""
    if len(text) > MARKS and not text.isascii():
        for run in _marks().finditer(text):
            if run.end() - run.start() > MARKS:
                raise BadRecord(f"{run.end() - run.start()} accents on one letter, at most {MARKS} are allowed")
    for sign, most in LOST.items():
        lost = text.count(sign) * len(sign)
        if lost > most * len(text):
            raise BadRecord(f"{lost} of {len(text)} characters are {sign}, which stands where a character was lost")
    pairs = sum(len(pair) for pair in _LATIN.findall(text.translate(_BYTE_OF))) if _may_be_latin(text) else 0
    if pairs > max(_FEW, len(text) / 2):
        raise BadRecord(f"{pairs} of {len(text)} characters are UTF-8 read as Latin-1, not all of which can be undone")


def repaired(text: str) -> str:
    """`text`; or, where all of it is UTF-8 that was read as Windows-1252, Latin-1 or GBK, what it was; so too
    Chinese in GB 18030 or Big5 that was read as Latin-1."""
    if text.isascii():
        return text
    first = _ABOVE.search(text)
    if first is not None and first[0] <= "\xff":
        latin = "\xc2" <= first[0] <= "\xf4"
        undone = _undone(text.translate(_BYTE_OF), "latin-1", at_least=2, above=0x7F) if latin else ""
        return undone or _chinese(text) or text
    # the first characters tell, nearly always, so that ordinary Chinese costs nothing
    return (_undone(text[:48], "gb18030", at_least=1, above=0x7FF, cut=True) and _undone(text, "gb18030")) or text


def _chinese(text: str) -> str:
    """What was read as Latin-1 or Windows-1252 and is Chinese by GB 18030 or Big5; "" if that is not plain."""
    content = text.translate(_BYTE_OF).encode("latin-1", errors="ignore")
    beyond = len(_ABOVE.findall(text))
    if len(content) < len(text) or beyond < 2 * _FEW or 2 * beyond < sum(map(str.isalpha, text)):
        return ""
    for encoding in ("gb18030", "big5hkscs"):
        try:
            was = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if plausible(was, encoding):
            return was
    return ""


def _undone(text: str, encoding: str, at_least: int = _PROOF, above: int = 0x7FF, *, cut: bool = False) -> str:
    """The text whose UTF-8 is `text` in `encoding`, with so many characters `above`; "" if there is none."""
    try:
        content = text.encode(encoding)
        was = content.decode()
    except UnicodeEncodeError:
        return ""
    except UnicodeDecodeError as error:
        if not cut or error.start < len(content) - 3:
            return ""
        was = content[: error.start].decode()
    characters = [char for char in was if char > "\x7f"]
    found = sum(ord(char) > above for char in characters)
    return was if REPLACED not in was and found >= max(at_least, len(characters) / 2) else ""


def _may_be_latin(text: str) -> bool:
    first = _ABOVE.search(text)
    return first is not None and "\xc2" <= first[0] <= "\xf4"


@cache
def _marks() -> re.Pattern[str]:
    return re.compile(f"[{''.join(char for char in map(chr, range(0x300, 0x1F000)) if combining(char))}]+")

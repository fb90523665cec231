"""How an answer in any script is read: its words, sentences, items and numbers, and the writing that it is in.

Everything takes time linear in the length of the text, whatever the text is: answers come from models.
"""

import re
import unicodedata
from collections.abc import Iterator
from decimal import Decimal

HAN = r"\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
KANA = r"\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9f"
THAI = r"\u0e01-\u0e3a\u0e40-\u0e4e"
_ALONE = HAN + KANA + THAI  # written without spaces: each character stands for a word
# Vowel signs and accents belong to the word that they stand in, though they are no letters.
_MARKS = r"\u0300-\u036f\u0591-\u05bd\u05bf-\u05c7\u064b-\u065f\u0900-\u0963\u0966-\u0df3\u200c\u200d"
_LETTER = rf"[^\W_{_ALONE}]"
_WORD = re.compile(
    rf"[{_ALONE}]|{_LETTER}(?:{_LETTER}|[{_MARKS}]|['’\-](?={_LETTER})|(?<=\d)[.,:/](?=\d))*+",
)
_SPELT = re.compile(_LETTER)

# What letters are of which writing. Kana count as Han: who is asked in Japanese answers in both.
WRITINGS = {
    "han": HAN + KANA,
    "latin": r"A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff",
    "greek": r"\u0370-\u03ff\u1f00-\u1fff",
    "cyrillic": r"\u0400-\u052f",
    "hebrew": r"\u05d0-\u05ea",
    "arabic": r"\u0620-\u064a\u066e-\u06d3\u0750-\u077f",
    "indic": r"\u0904-\u0939\u0958-\u0961\u0985-\u0df3",
    "thai": THAI,
    "hangul": r"\u1100-\u11ff\uac00-\ud7a3",
}
_PER_WORD = {"han": 1.5, "thai": 4.0}  # letters, in scripts without spaces
_WRITTEN = [
    (name, re.compile(f"[{letters}]" if name in _PER_WORD else f"[{letters}]++")) for name, letters in WRITINGS.items()
]

MARKS = ".!?。！？…．؟।॥"  # that end a sentence
CLOSING = "\"'”’」』）)]】》*_`~"  # that may follow such a mark
_STOP = re.compile(
    rf"[{re.escape(MARKS)}]++[{re.escape(CLOSING)}]*+|\n[ \t]*+(?:\n\s*+|(?=[-*•‣][ \t]|\d{{1,3}}[.)、]))"
)
_SHORT = frozenset("e.g i.e cf vs mr mrs ms dr prof st no fig approx jr sr al".split())
_ITEM = re.compile(
    r"^[ \t]*+(?:[-*+–][ \t]|[•‣·●◦]|\(?\d{1,3}(?:[.)](?!\d)|[、．）])|[（(][一二三四五六七八九十]{1,3}[)）]"
    r"|[一二三四五六七八九十]{1,3}[、.．)）]|[①-⑳])[ \t]*+(?=\S)",
    re.MULTILINE,
)

_NUMBER = re.compile(
    r"(?<![\w.])(?P<minus>(?<![\d\w)])[-−–])?(?P<digits>(?:\d{1,3}(?:,\d{3})++(?!\d)|\d++)(?:\.\d++)?+|\.\d++)"
    r"(?P<power>[eE][+-]?\d{1,2}(?!\w))?",
    re.ASCII,
)
_CHINESE_NUMBER = re.compile("(?P<minus>负)?(?P<digits>[零〇一二两三四五六七八九十百千万]++)")
_DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_UNITS = {"十": 10, "百": 100, "千": 1000}
_LONGEST_NUMBER = 100  # digits; what is longer is no number that anybody asked for


def fold(text: str) -> str:
    """NFKC without case, so that texts which a reader takes for the same are the same."""
    if text.isascii():
        return text.lower()
    # Piece by piece, for a long run of combining marks is sorted in quadratic time.
    pieces = (text[at : at + 256] for at in range(0, len(text), 256))
    return "".join(unicodedata.normalize("NFKC", piece) for piece in pieces).casefold()


def words(text: str) -> list[str]:
    """Runs of letters and digits ("don't", "well-known" and "3.14" are one each), and each Han character."""
    return _WORD.findall(text)


def word_starts(text: str) -> list[int]:
    return [match.start() for match in _WORD.finditer(text)]


def sentences(text: str) -> list[str]:
    """The sentences, each with its mark, the last one even without. Decimals, abbreviations and "1." end none."""
    return [text[start:end] for start, end in spans(text)]


def spans(text: str) -> list[tuple[int, int]]:
    """(start, end) of each sentence, without the white space around it."""
    found, start = [], 0
    for stop in _STOP.finditer(text):
        if _ends(text, stop):
            found.append((start, stop.end()))
            start = stop.end()
    found.append((start, len(text)))
    bare = ((text[start:end], start) for start, end in found)
    whole = ((start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip()), piece) for piece, start in bare)
    return [(start, end) for start, end, piece in whole if _WORD.search(piece)]


def _ends(text: str, stop: re.Match[str]) -> bool:
    mark, after = stop[0], text[stop.end() : stop.end() + 1]
    if mark[0] not in ".!?":
        return True
    if _SPELT.match(after):
        return False
    if mark != ".":
        return True
    line = text[max(0, stop.start() - 12) : stop.start()].rpartition("\n")[2]
    last = line.split(" ")[-1].lstrip('(（"“')
    initial = len(last) == 1 and last.isupper() and last != "I"
    counted = last.isdecimal() and len(last) <= 3 and not line[: -len(last)].strip() and len(line) < 12
    return not (initial or counted or last.lower() in _SHORT)


def items(text: str) -> int:
    """How many lines begin with a bullet or a number: "- ", "* ", "•", "1.", "1)", "一、", "（一）"."""
    return sum(1 for _ in _ITEM.finditer(text))


def is_item(line: str) -> bool:
    return _ITEM.match(line) is not None


def places(needle: str, text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of every place where `needle` stands in `text`, both folded, as words of their own: "cat" is not in
    "category", "5" neither in "15" nor in "5.2"; scripts without spaces have no such bounds."""
    if not needle:
        return
    left, right = _SPELT.match(needle[0]), _SPELT.match(needle[-1])
    start = text.find(needle)
    while start >= 0:
        end = start + len(needle)
        if not (left and start and _continues(text, start - 1, -1)) and not (right and _continues(text, end, 1)):
            yield start, end
        start = text.find(needle, start + 1)


def _continues(text: str, place: int, step: int) -> bool:
    """Whether the word or number goes on at `place`."""
    if not 0 <= place < len(text):
        return False
    beyond, within = place + step, place - step
    decimal = text[place] in ".," and 0 <= beyond < len(text) and text[beyond].isdigit() and text[within].isdigit()
    return decimal or _SPELT.match(text[place]) is not None


def numbers(text: str) -> list[tuple[Decimal, int]]:
    """(value, place after it) of the numbers in a folded text: "1,000", "-3.5", "2e3"; where there are none of these,
    Chinese ones below a hundred million (of which 一 alone counts only if there is no other)."""
    found = []
    for match in _NUMBER.finditer(text):
        if len(match["digits"]) <= _LONGEST_NUMBER:
            value = Decimal(match["digits"].replace(",", "") + (match["power"] or ""))
            found.append((-value if match["minus"] else value, match.end()))
    if found:
        return found
    spelt = [match for match in _CHINESE_NUMBER.finditer(text) if len(match["digits"]) <= 16]
    told = [match for match in spelt if match["digits"] not in ("一", "万")] or spelt
    return [
        (-value if match["minus"] else value, match.end()) for match in told for value in [_chinese(match["digits"])]
    ]


def _chinese(digits: str) -> Decimal:
    """一万二千零三 -> 12003; without units digit by digit: 二〇二四 -> 2024."""
    if not any(character in _UNITS or character == "万" for character in digits):
        return Decimal("".join(str(_DIGITS[character]) for character in digits))
    total, part, digit = 0, 0, 0
    for character in digits:
        if character == "万":
            total, part, digit = (total + part + digit or 1) * 10_000, 0, 0
        elif character in _UNITS:
            part, digit = part + (digit or 1) * _UNITS[character], 0
        else:
            digit = _DIGITS[character]
    return Decimal(total + part + digit)


def writing(text: str) -> dict[str, float]:
    """The share of each writing, by words. Empty where there are no letters."""
    counts = {name: sum(1 for _ in letters.finditer(text)) / _PER_WORD.get(name, 1.0) for name, letters in _WRITTEN}
    total = sum(counts.values())
    return {name: count / total for name, count in counts.items() if count}


def main_writing(text: str) -> str:
    """The writing with the largest share, "" where there are no letters."""
    shares = writing(text)
    return max(shares, key=lambda name: shares[name]) if shares else ""


def prose(text: str) -> str:
    """The text without its fenced blocks of code."""
    return "".join(text.split("```")[::2]) if "```" in text else text


def fenced(text: str) -> list[str]:
    """The insides of the blocks between lines of three backticks."""
    blocks: list[str] = []
    inside: list[str] | None = None
    for line in text.splitlines():
        if not line.lstrip().startswith("```"):
            if inside is not None:
                inside.append(line)
        elif inside is None:
            inside = []
        else:
            blocks.append("\n".join(inside))
            inside = None
    return blocks

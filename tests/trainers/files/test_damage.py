"""Text that is none: repaired where its bytes prove what it was, empty where there is nothing to see, or refused."""

import pytest

from trainers.files.damage import repaired
from trainers.files.documents import clean, renderer
from trainers.files.streams import BadRecord

POEM = "床前明月光，疑是地上霜。举头望明月，低头思故乡。"
FRENCH = "Les élèves français préfèrent le café ; l’été, déjà…"


@pytest.mark.parametrize("text", [POEM, FRENCH, "你好", "naïve façade — “quoted” €5"])
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_utf8_read_as_latin_is_undone(text: str, encoding: str) -> None:
    broken = "".join(
        bytes([byte]).decode(encoding, errors="ignore") or chr(byte)  # as readers of Windows-1252 do
        for byte in text.encode()
    )
    assert broken != text and repaired(broken) == text


def test_utf8_read_as_gbk_is_undone() -> None:
    assert repaired("浣犲ソ锛屼笘鐣岋紒浣犲ソ") == "你好，世界！你好"
    text = "春眠不觉晓处处闻啼鸟"
    assert repaired(text.encode().decode("gb18030")) == text


@pytest.mark.parametrize(
    "text",
    [
        POEM,
        FRENCH,
        "联通",
        "联通联通联通联通联通联通",
        "ÀÉÎÕÜ ÄÖÜ",
        "Ã©",
        "Ça coûte 5 £",
        "ASCII",
        "Привет",
        "Ελληνικά",
        "日本語",
    ],
)
def test_what_is_not_proven_is_left_alone(text: str) -> None:
    assert repaired(text) == text
    assert clean(text) == text


@pytest.mark.parametrize("text", ["\u200b", "\u00ad\u00ad", "\ufeff\u2060 \n", "\u200d\ufe0f", "\u3164\u2800"])
def test_a_text_with_nothing_to_see_is_empty(text: str) -> None:
    assert clean(text) == ""
    assert clean(f"a{text}b") != ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\ufffd\ufffd", "2 of 2 characters are \ufffd, which stands where a character was lost"),
        ("明月\ufffd光" * 3, "3 of 12 characters are \ufffd"),
        ("锟斤拷锟斤拷 text", "6 of 11 characters are 锟斤拷"),
        ("□□□□明月", "4 of 6 characters are □"),
        (POEM.encode().decode("latin-1")[:-1], "are UTF-8 read as Latin-1, not all of which can be undone"),
        ("a" + "\u0301" * 300, "300 accents on one letter, at most 256 are allowed"),
    ],
)
def test_a_text_that_is_lost_is_refused_and_says_why(text: str, reason: str) -> None:
    with pytest.raises(BadRecord, match=reason):
        clean(repaired(text))


def test_a_few_lost_characters_are_a_text_still() -> None:
    poem = "□□山下百花開，□□□前萬里來。" + POEM
    assert clean(poem) == poem
    assert clean(POEM * 2 + "\ufffd") == POEM * 2 + "\ufffd"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("page one\x0cStart", "page one\nStart"),
        ("a\x0bb\x85c", "a\nb\nc"),
        ("a\r\nb\rc\r\r\nd", "a\nb\nc\n\nd"),
        ("\x1b[1;31mred\x1b[0m \x1b[?25lx\x1b(B", "red x"),
        ("\x1b]0;a title\x07text \x1b]8;;http://x\x1b\\link", "text link"),
        ("\x1bHello \x1b[", "Hello ["),
    ],
)
def test_breaks_break_and_what_a_terminal_is_told_goes_whole(text: str, right: str) -> None:
    assert clean(text) == right


@pytest.mark.parametrize(
    ("template", "right"),
    [("{a}\\n{b}", "x\ny"), ("{a}\\t\\nby {b}", "x\t\nby y"), ("{a}\\\\n{b}", "x\\ny"), ("{a}\n{b}", "x\ny")],
)
def test_a_line_break_in_single_quotes_is_one(template: str, right: str) -> None:
    assert renderer(template)({"a": "x", "b": "y"}) == right


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    ("mojibake is undone", "trainers/files/damage.py", 'text.translate(_BYTE_OF), "latin-1"', 'text, "latin-1"', None),
    ("what GBK made of UTF-8 is undone", "trainers/files/damage.py", '_undone(text, "gb18030"))', '"")', None),
    (
        "what is lost is refused",
        "trainers/files/damage.py",
        "if lost > most * len(text):",
        "if lost > len(text):",
        None,
    ),
    ("a document has something to see", "trainers/files/documents.py", 'if damage.visible(text) else ""', "", None),
    ("a page ends a line", "trainers/files/documents.py", "\\r\\n?|[\\x0b\\x0c\\x85]", "\\r\\n?", None),
    (
        "a template's backslash n breaks the line",
        "trainers/files/documents.py",
        "Formatter().parse(meant)",
        "Formatter().parse(template)",
        None,
    ),
]

"""Text in any encoding is read where it is plain which, and refused by its byte where it is not: never half of it."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from conf.errors import InputError
from trainers.files import encodings
from trainers.files.damage import repaired
from trainers.files.encodings import decoded, detected
from trainers.files.kinds import Form
from trainers.files.readers import parse, read_records
from trainers.files.streams import BadRecord

POEMS = Path(__file__).parents[3] / "data" / "poems.jsonl.gz"
TEXTS = {
    "gb18030": "这是一个测试文件，里面有很多汉字。第二行是“引文”——也算数。",
    "big5": "中華民國的歷史與文化，這是一個測試檔案，裡面有很多漢字。",
    "shift_jis": "これはテストです。日本語の文章をシフトジスで書きました。",
    "euc-kr": "이것은 시험입니다. 한국어로 쓰여진 글입니다.",
    "latin-1": "Le café était très agréable, déjà vu. L'été à Genève: Straße, Übung.",
    "utf-16-le": "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "utf-16-be": "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_is_read_in_the_encoding_that_it_has(name: str) -> None:
    assert decoded(TEXTS[name].encode(name), "detect") == (TEXTS[name], name)


@pytest.mark.parametrize("name", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_mark_decides(name: str) -> None:
    text, found = decoded("a".encode(name), "detect")
    assert (text, found) == ("a", "" if name == "utf-8-sig" else name)


def test_a_guess_is_right_or_none_is_made() -> None:
    found: Counter[tuple[str, str]] = Counter()
    lines = gzip.decompress(POEMS.read_bytes()).decode().splitlines()[:2000:2]
    for line in lines:
        text = json.loads(line)["text"]
        for name in ("gb18030", "utf-16-le"):
            try:
                found[name, "right" if decoded(text.encode(name), "detect")[0] == text else "wrong"] += 1
            except BadRecord:
                found[name, "refused"] += 1
    assert {name: found[name, "wrong"] for name in ("gb18030", "utf-16-le")} == {"gb18030": 0, "utf-16-le": 0}
    # of old poems of a line or two, in rare characters
    assert found["gb18030", "right"] >= 0.96 * len(lines) and found["utf-16-le", "right"] >= 0.96 * len(lines)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("好文章，有一些字。".encode() + b"\xff", "invalid UTF-8 at byte 27 of the record (invalid start byte)"),
        (
            "He said “yes, and “no, and “perhaps, and then he went on.".encode() + b"\xe2\x80",
            "invalid UTF-8 at byte 63",
        ),
        (b"hello w\xffrld, and more", "invalid UTF-8 at byte 7 of the record (invalid start byte)"),
        (TEXTS["gb18030"].encode("gb18030") + b"\xff", "it seems to be gb18030, but not at byte 62"),
        (
            "Привет мир, как дела? Это тест.".encode("cp1251"),
            "it may be windows-1251, which corpus.encoding=windows-1251",
        ),
        ("你好".encode("gb18030"), "invalid UTF-8 at byte 0"),
        (bytes(range(128, 256)) * 8, "invalid UTF-8 at byte 0"),
    ],
)
def test_what_is_not_plain_is_refused_by_its_byte(content: bytes, reason: str) -> None:
    with pytest.raises(BadRecord) as raised:
        decoded(content, "detect")
    assert reason in str(raised.value)


def test_who_knows_says_it(tmp_path: Path) -> None:
    text = "Привет мир"
    assert decoded(text.encode("cp1251"), "windows-1251") == (text, "windows-1251")
    with pytest.raises(BadRecord, match=r"invalid gb18030 at byte 2 of the record"):
        decoded(b"ab\xff", "gb18030")
    with pytest.raises(InputError, match=r"corpus\.encoding=gb18031: no encoding; try detect, utf-8, gb18030"):
        encodings.check("gb18031")
    with pytest.raises(InputError, match=r"corpus\.encoding=hex: no encoding"):
        encodings.check("hex")
    encodings.check("shift_jis")
    assert (detected("a".encode("utf-16")), detected(TEXTS["big5"].encode("big5"))) == ("utf-16", "big5hkscs")
    path = tmp_path / "x.jsonl"
    path.write_bytes('{"text": "春"}\n{"text": "b"}\n'.encode("utf-16-le"))
    found = list(read_records(path, form=Form(encoding="utf-16-le")))
    assert found == [(1, {"text": "春"}), (2, {"text": "b"})]
    path.write_bytes(b"\xff\xfe" + '{"text": "春"}\n'.encode("utf-16-le")[:-1])
    with pytest.raises(InputError, match=r"x\.jsonl:1: damaged after byte 0 \(.*truncated data\)"):
        list(read_records(path))


def test_each_document_has_its_own_encoding_and_it_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    for name in ("gb18030", "big5"):
        content = json.dumps({"text": TEXTS[name]}, ensure_ascii=False).encode(name)
        assert parse("x.jsonl", content, Form(encoding="detect"), told.append) == {"text": TEXTS[name]}
    assert told == ["gb18030", "big5"]
    with pytest.raises(BadRecord, match="invalid UTF-8"):  # unless it is asked for
        parse("x.jsonl", content)


@pytest.mark.parametrize("said", ["detect", "big5"])
@pytest.mark.parametrize("name", ["x.json", "y.json", "x.jsonl"])
def test_a_bracket_within_a_character_is_none(tmp_path: Path, name: str, said: str) -> None:
    # 功, 蓋, 珆 ...: their second bytes in Big5 are \\, [ and {
    texts = ["功蓋許成功" + TEXTS["big5"] + "成功", "許" * 70 + "育傳" * 70]
    assert b'\\"' in texts[0].encode("big5") + b'"'
    lines = [json.dumps({"許": "[" * 70, "text": text}, ensure_ascii=False) for text in texts]
    content = f"[{','.join(lines)}]" if name == "x.json" else "\n".join(lines)
    (tmp_path / name).write_bytes(content.encode("big5"))
    assert [record["text"] for _, record in read_records(tmp_path / name, form=Form(encoding=said))] == texts


@pytest.mark.parametrize("name", ["gb18030", "big5"])
def test_chinese_that_was_read_as_latin_1_is_repaired(name: str) -> None:
    broken = TEXTS[name].encode(name).decode("latin-1")
    assert repaired(broken) == TEXTS[name]
    for fine in (TEXTS["latin-1"], "ÀÁÂ ÃÄÅ", "Ýsland er eyja. Þór á sér bróður, og það er gott að vita af því."):
        assert repaired(fine) == fine


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "damaged UTF-8 is taken for nothing else",
        "trainers/files/encodings.py",
        'high and "\\0" not in text:',
        "high and False:",
        "test_what_is_not_plain_is_refused_by_its_byte",
    ),
    (
        "a guess must be such as people write",
        "trainers/files/encodings.py",
        "fits and plausible(shown, label):",
        "fits:",
        None,
    ),
    (
        "no text is Korean because its bytes are",
        "trainers/files/encodings.py",
        'encoding != "cp949" or',
        "True or",
        "test_a_guess_is_right_or_none_is_made",
    ),
    (
        "every byte must fit a guess, not the first ones alone",
        "trainers/files/encodings.py",
        "            if at < 0:\n                return label",
        "            if True:\n                return label",
        "test_what_is_not_plain_is_refused_by_its_byte",
    ),
    (
        "an encoding that was detected is told",
        "trainers/files/readers.py",
        "        note(encoding)",
        "        pass",
        "test_each_document_has_its_own_encoding_and_it_is_told",
    ),
    (
        "Chinese read as Latin-1 is undone only where it is plain",
        "trainers/files/damage.py",
        "        if plausible(was, encoding):",
        "        if True:",
        "test_chinese_that_was_read_as_latin_1_is_repaired",
    ),
    (
        "a character is no bracket, whatever its bytes are",
        "trainers/files/readers.py",
        "content = text.encode() if encoding else content",
        "content = bytes(content)",
        "test_a_bracket_within_a_character_is_none",
    ),
    (
        "an array in another encoding is taken apart as UTF-8",
        "trainers/files/readers.py",
        'other = "" if encoding.lower().startswith("utf-8") else encoding',
        'other = ""',
        "test_a_bracket_within_a_character_is_none",
    ),
]

"""The same poem in every format is the same document; what is cut, damaged, encrypted or a bomb is refused by name."""

import bz2
import gzip
import json
import lzma
import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import brotli
import pyarrow as pa
import pytest

from conf.errors import InputError
from conf.knobs.text import Corpus, Html
from conf.schema import Config
from tests.trainers.files.inputs import DUMP, PACKERS, answer, book, page, put, warc
from trainers.corpus import check
from trainers.files.formats import pages, wiki
from trainers.files.kinds import Form
from trainers.files.readers import expand, parse, read_records, read_sources
from trainers.files.streams import BadRecord, LeftOut

DETECT = Form(encoding="detect")


def texts(path: Path, form: Form = DETECT) -> list[str]:
    return [record["text"] for _, record in read_records(path, form=form)]


MAIN = "<nav><a href=/>Home</a></nav><main><h1>Head</h1><p>One &lt;two&gt;.</p><p>第二段落。<br>第二行。</p></main>"


def test_a_page_is_its_text(tmp_path: Path) -> None:
    path = put(tmp_path, "x.html", page(MAIN + "<footer>Copyright</footer>"))
    assert list(read_records(path)) == [(1, {"text": "Head\n\nOne <two>.\n\n第二段落。\n第二行。", "title": "T"})]
    assert "Home" in texts(path, Form(encoding="detect", html=Html.all))[0]
    said = '<meta charset="gb2312"><p>春眠不觉晓，处处闻啼鸟。</p>'.encode("gb18030")
    assert texts(put(tmp_path, "y.htm", said)) == ["春眠不觉晓，处处闻啼鸟。"]
    said = '<meta http-equiv=Content-Type content="text/html; charset=windows-1251"><p>Привет, мир</p>'.encode("cp1251")
    assert texts(put(tmp_path, "z.htm", said)) == ["Привет, мир"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("<div>" * 300, "elements lie more than 256 deep"),
        ("<div></b>" * 300, "elements lie more than 256 deep"),
        ('<div a="</div>">' * 300, "elements lie more than 256 deep"),
        ("<svg><title>" + "<div>" * 300 + "</title>", "elements lie more than 256 deep"),
        ("<!--><p>" + "<div>" * 300 + "-->", "elements lie more than 256 deep"),
        ("<p " + "".join(f"a{n}=b " for n in range(600)) + ">", "an element <p> has more than 512 attributes"),
        ("<font size=1>" * 200 + "<p>x" * 6000, "the page has more than 1000000 elements"),
    ],
)
def test_a_page_that_no_parser_could_bear_is_refused(body: str, reason: str) -> None:
    with pytest.raises(BadRecord, match=reason):
        pages.check(body)


def test_a_page_of_any_length_is_let_through() -> None:
    pages.check("<p>x<div><b>y</b></div><script>'<div>'</script><!-- <div> --><br>" * 1000)
    pages.check('<a title="' + "<div> " * 1000 + '">x</a>')


def test_a_web_archive(tmp_path: Path) -> None:
    chunked = b"4\r\n<p>x\r\n5\r\ny</p>\r\n0\r\n\r\n"
    records = [
        warc("warcinfo", b"software: x\r\n", "application/warc-fields"),
        warc("request", b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request"),
        warc("response", answer(page("<p>one</p>")), url="http://a/1"),
        warc("response", answer(b"gone", status="404 Not Found")),
        warc("response", answer(b"\x89PNG", "Content-Type: image/png")),
        warc("response", answer(chunked, "Content-Type: text/html\r\nTransfer-Encoding: chunked")),
        warc("response", answer(gzip.compress(b"<p>packed"), "Content-Type: text/html\r\nContent-Encoding: gzip")),
        warc("response", answer(brotli.compress(b"<p>packed too"), "Content-Encoding: br")),
        warc("conversion", "一段文字。".encode(), "text/plain"),
    ]
    content = b"".join(records)
    form = Form(encoding="detect", html=Html.all)
    for name, packed in (("x.warc", content), ("x.warc.gz", b"".join(map(gzip.compress, records)))):
        path = put(tmp_path, name, packed)
        found = [(line, record["text"], record["url"]) for line, record in read_records(path, form=form)]
        assert found == [
            (3, "one", "http://a/1"),
            (6, "xy", "http://a/"),
            (7, "packed", "http://a/"),
            (8, "packed too", "http://a/"),
            (9, "一段文字。", "http://a/"),
        ]
        offsets = [source.offset for source in read_sources(path)]
        assert [content[offset : offset + 5] for offset in offsets] == [b"WARC/"] * 7
        left = []
        for source in read_sources(path):
            try:
                parse(path, source.content, form)
            except LeftOut as error:
                left.append(error.rule)
        assert left == ["status 404", "type image/png"]
    for cut in (len(content) - 10, len(content) - 20, len(content) - 100):
        lines = []
        with pytest.raises(
            InputError, match=r"x\.warc:9: it ends (\d+ bytes before its record does|within the headers)"
        ):
            for source in read_sources(put(tmp_path, "x.warc", content[:cut])):
                lines.append(source.line)
        assert lines == [3, 4, 5, 6, 7, 8]  # half of a page is no page
    with pytest.raises(InputError, match=r"y\.wet:2: no record begins at byte \d+; is it a WARC file"):
        list(read_sources(put(tmp_path, "y.wet", records[-1] + b"<html>")))
    bomb = warc("response", answer(gzip.compress(b" " * 3_000_000), "Content-Encoding: gzip"))
    (source,) = read_sources(put(tmp_path, "z.warc", bomb), 2**20)
    assert source.reason == "unpacked the page has more than 1048576 bytes, which are allowed"


def test_a_dump_of_a_wiki(tmp_path: Path) -> None:
    path = put(tmp_path, "x.xml.bz2", bz2.compress(DUMP.encode()))
    assert list(read_records(path)) == [(3, {"text": "春是四季之一。", "title": "春", "id": "7"})]
    sources = list(read_sources(path))
    assert [(one.line, DUMP.encode()[one.offset : one.offset + 6]) for one in sources] == [
        (3, b"<page>"),
        (5, b"<page>"),
        (6, b"<page>"),
    ]
    for source, rule in zip(sources[1:], ("redirect", "namespace 1"), strict=True):
        with pytest.raises(LeftOut, match=rule):
            parse(path, source.content)
    for content, message in (
        (DUMP[:-20], r"y\.xml:6: it was cut"),
        (DUMP.replace("<ns>1", "<ns>&"), r"y\.xml:6: the XML is broken"),
        ("<rss></rss>", r"^\S+y\.xml: its root is <rss>, not <mediawiki>"),
        ('<!DOCTYPE x [<!ENTITY a "b">]>' + DUMP, r"y\.xml:1: a dump has no DOCTYPE"),
        (DUMP.replace("季节", "长" * 2000), ""),
    ):
        path = put(tmp_path, "y.xml", content.encode())
        if message:
            with pytest.raises(InputError, match=message):
                list(read_sources(path))
        else:
            assert next(iter(read_sources(path, 1000))).reason.endswith("bytes, at most 1000 are allowed")


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("== 歷史 ==\n* [[File:a.jpg|thumb|[[b]]]]第一\n# [http://x y z]\n", "歷史\n第一\ny z"),
        ("a {{b|{{c}}|}} d\n{|\n| x || y\n|}\ne", "a  d\n\ne"),
        ("-{zh-hans:计算机;zh-hant:電腦}- -{A|zh-cn:甲;zh-tw:乙}-", "计算机 乙"),
        ("x<!-- y --><math>z</math><br>v &amp; w __NOTOC__", "x\nv & w"),
        ("a {{ b [[c", "a {{ b [[c"),
        ("]] }} |}", "]] }} |}"),
    ],
)
def test_wikitext_is_read_as_it_is_shown(wikitext: str, text: str) -> None:
    assert wiki.plain(wikitext) == text


def test_a_book_is_its_chapters(tmp_path: Path) -> None:
    path = put(tmp_path, "x.epub", book(["<p>一</p>", "<p>二</p>"]))
    shared = {"book": "书", "author": "某", "title": ""}
    assert list(read_records(path)) == [
        (1, {"text": "一", "chapter": 1, **shared}),
        (2, {"text": "二", "chapter": 2, **shared}),
    ]
    whole = path.read_bytes()
    at = whole.index(b"O/c1.xhtml") + 40  # in the packed bytes of the second chapter
    for content, message in (
        (whole[:-10] + b"\xff" * 4 + whole[-6:], r"y\.epub: the list of its entries is too long for a book"),
        (whole[:-30], r"y\.epub: damaged EPUB file \(File is not a zip file"),
        (whole[:at] + b"\0\0\0" + whole[at + 3 :], r"y\.epub: damaged EPUB file"),
        (book(["<p>" + "x" * 9_000_000]), r"y\.epub: its entries grow more than 200-fold"),
        (book([], **{"O/p.opf": b'<!DOCTYPE p [<!ENTITY a "b">]><p/>'}), r"y\.epub: O/p.opf defines entities"),
        (
            book(["a"], **{"META-INF/container.xml": b"<c/>"}),
            r"y\.epub: damaged EPUB file \(META-INF/container.xml names",
        ),
    ):
        with pytest.raises(InputError, match=message):
            list(read_sources(put(tmp_path, "y.epub", content)))


def test_the_format_can_be_said(tmp_path: Path) -> None:
    path = put(tmp_path, "dump.2024", b'{"text": "a"}\n')
    assert expand([str(path)], asked_format="jsonl") == [str(path)]
    assert list(read_records(path, form=Form(format="jsonl"))) == [(1, {"text": "a"})]
    assert len(expand([str(tmp_path)], asked_format="jsonl")) == 1
    with pytest.raises(InputError, match=r"corpus\.format=docx: no such format; there are text, json, "):
        expand([str(path)], asked_format="docx")
    with pytest.raises(InputError, match=r"dump\.2024: unknown kind of file; .* or corpus\.format say what"):
        expand([str(path)])


def test_one_folder_of_all_formats(tmp_path: Path) -> None:
    poem = "春眠不觉晓，处处闻啼鸟。"
    line = json.dumps({"text": poem}, ensure_ascii=False).encode()
    put(tmp_path, "a.jsonl.zst", PACKERS[".zst"](line))
    put(tmp_path, "b.json.xz", lzma.compress(b"[" + line + b"]"))
    put(tmp_path, "c.txt", poem.encode("gb18030"))
    put(tmp_path, "d.md", poem.encode("utf-16"))
    put(tmp_path, "e.csv", f"text\n{poem}\n".encode("gb18030"))
    put(tmp_path, "f.tsv.bz2", bz2.compress(f"text\tn\n{poem}\t1\n".encode()))
    put(tmp_path, "g.html", page(f"<p>{poem}</p>"))
    put(tmp_path, "h.warc.gz", gzip.compress(warc("response", answer(page(f"<p>{poem}</p>")))))
    put(tmp_path, "i.wet", warc("conversion", poem.encode(), "text/plain"))
    put(tmp_path, "j.xml", DUMP.replace("'''春'''是[[季节|四季]]之一。", poem).encode())
    put(tmp_path, "k.epub", book([f"<p>{poem}</p>"]))
    form = Form(encoding="detect", html=Html.all)
    found = {Path(path).name: texts(Path(path), form) for path in expand([str(tmp_path)])}
    assert found == {path.name: [poem] for path in sorted(tmp_path.iterdir())}
    assert len(found) == 11


def mutated(content: bytes, dice: random.Random) -> bytes:
    """Cut, or with bytes that are others, more or fewer."""
    at, kind = dice.randrange(len(content)), dice.random()
    if kind < 0.2:
        return content[:at]
    if kind < 0.5:
        return content[:at] + dice.randbytes(dice.randint(0, 8)) + content[at + dice.randint(0, 8) :]
    changed = bytearray(content)
    for _ in range(dice.randint(1, 3)):
        changed[dice.randrange(len(changed))] = dice.randrange(256)
    return bytes(changed)


def test_whatever_is_wrong_with_a_file_is_said_in_a_line_that_names_it(tmp_path: Path) -> None:
    stream = pa.BufferOutputStream()
    table = pa.table({"text": ["春眠不觉晓"] * 20, "n": [[1, 2]] * 20})
    with pa.ipc.new_stream(stream, table.schema) as target:
        target.write_table(table)
    archive = warc("response", answer(gzip.compress(b"<p>x"), "Content-Encoding: gzip")) + warc(
        "conversion", b"x", "text/plain"
    )
    files = {
        "x.warc": archive,
        "y.warc.gz": gzip.compress(archive),
        "x.xml": DUMP.encode(),
        "x.epub": book(["<p>one</p>", "<p>two</p>"]),
        "x.arrow": stream.getvalue().to_pybytes(),
        "x.csv": b'id,text\n1,"a ""b""\nc"\n2,"d"\n',
        "x.html": page(MAIN),
        "x.jsonl.zst": PACKERS[".zst"](b'{"text": "a"}\n' * 50),
        "x.json.xz": lzma.compress(b'[{"text": "a"}, {"text": "b"}]'),
        "x.txt": "春眠不觉晓，处处闻啼鸟。".encode("gb18030"),
    }
    dice, ended = random.Random(4), Counter[str]()
    for name, content in files.items():
        for _ in range(40):
            path = put(tmp_path, name, mutated(content, dice))
            try:
                for source in read_sources(path, 2**20, form=DETECT):
                    try:
                        ended["read"] += not source.reason and bool(parse(path, source.content, DETECT))
                    except (BadRecord, LeftOut):
                        ended["record"] += 1
            except InputError as error:  # and nothing else
                assert name in str(error) and "\n" not in str(error)
                ended["file"] += 1
    assert min(ended["read"], ended["record"], ended["file"]) > 50


FERRY = "<p>The river rises in the hills above the town, and for most of the year one can wade across it.</p>" * 2
POST = (
    f"<ul><li><a href=/>Home</a></li></ul><article><h1>The ferry</h1>{FERRY}</article>"
    "<div id=comments class=comments><p>Nice post! I liked it a lot.</p></div><footer>Copyright</footer>"
)


def test_a_page_as_trafilatura_finds_it(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura", reason="not installed: pip install -e '.[html]' -c constraints.txt")
    pages.check_reader(Html.trafilatura)
    path = put(tmp_path, "x.html", page(POST))
    (text,) = texts(path, Form(encoding="detect", html=Html.trafilatura))
    assert text.startswith("The ferry\nThe river rises") and "Home" not in text
    assert "Nice post" not in text and "Nice post" in texts(path)[0]  # readers' comments: of both only one leaves them


def test_without_the_package_one_line_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trafilatura", None)
    put(tmp_path, "x.html", page(POST))
    corpus = Corpus(files=[f"{tmp_path}/x.html"], html=Html.trafilatura)
    with pytest.raises(InputError, match=r"^corpus\.html=trafilatura needs the package trafilatura .*\.\[html\]"):
        check(Config(corpus=corpus))
    check(Config(corpus=replace(corpus, html=Html.main)))


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a package that is not there is named before anything is read",
        "trainers/corpus.py",
        "pages.check_reader(cfg.corpus.html)",
        "pass",
        "test_without_the_package_one_line_names_it",
    ),
    (
        "how deep a page goes is counted by what a parser sees",
        "trainers/files/formats/pages.py",
        "            if opened[name]:",
        "            if True:",
        None,
    ),
    (
        "what a page repeats is counted before it is parsed",
        "trainers/files/formats/pages.py",
        "elements += 1 + formatting",
        "elements += 1",
        "test_a_page_that_no_parser_could_bear_is_refused",
    ),
    (
        "a web archive that was cut is not taken for a whole one",
        "trainers/files/formats/warc.py",
        "    if size:\n        raise InputError",
        "    if False:\n        raise InputError",
        "test_a_web_archive",
    ),
    (
        "an answer that is no page is left out by its reason",
        "trainers/files/formats/warc.py",
        'status != ["200"]',
        "False",
        "test_a_web_archive",
    ),
    (
        "a redirect is no article",
        "trainers/files/formats/wiki.py",
        'if "redirect" in page:',
        "if False:",
        "test_a_dump_of_a_wiki",
    ),
    (
        "a dump that was cut is not taken for a whole one",
        "trainers/files/formats/wiki.py",
        'state.feed(b"", last=True)',
        "pass",
        "test_a_dump_of_a_wiki",
    ),
    (
        "what a book grows to is counted while it is read",
        "trainers/files/formats/epub.py",
        "self._grown += len(content)",
        "self._grown += 0",
        "test_a_book_is_its_chapters",
    ),
]

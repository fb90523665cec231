"""The same poem in every format is the same document; what is cut, damaged, encrypted or a bomb is refused by name."""

import bz2
import gzip
import io
import json
import lzma
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import brotli
import pyarrow as pa
import pytest

from conf.errors import InputError
from conf.knobs.text import Html
from trainers.files.formats import delimited, pages, wiki
from trainers.files.kinds import Form
from trainers.files.readers import expand, parse, read_records, read_sources
from trainers.files.streams import BadRecord, LeftOut

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd.compress,
}
DETECT = Form(encoding="detect")


def put(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def texts(path: Path, form: Form = DETECT) -> list[str]:
    return [record["text"] for _, record in read_records(path, form=form)]


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("name", ["x.jsonl", "x.txt", "x.json", "x.csv"])
def test_a_packed_file_is_what_it_was(tmp_path: Path, name: str, suffix: str) -> None:
    content = {
        "x.jsonl": b'{"text": "a"}\n{"text": "b"}\n',
        "x.txt": b"a\n\nb\n",
        "x.json": b'[{"text": "a"}, {"text": "b"}]',
        "x.csv": b"text\na\nb\n",
    }[name]
    bare = list(read_sources(put(tmp_path, name, content)))
    assert list(read_sources(put(tmp_path, name + suffix, PACKERS[suffix](content)))) == bare
    half = len(content) // 2
    two = PACKERS[suffix](content[:half]) + PACKERS[suffix](content[half:])
    assert list(read_sources(put(tmp_path, name + suffix, two))) == bare
    with pytest.raises(InputError, match="is empty"):
        list(read_sources(put(tmp_path, name + suffix, b"")))


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_packed_file_that_was_cut_or_damaged_is_named(tmp_path: Path, suffix: str) -> None:
    whole = PACKERS[suffix](b"".join(b'{"text": "%d"}\n' % n for n in range(5000)))
    for cut in (5, len(whole) // 2, len(whole) - 1):
        path = put(tmp_path, f"x.jsonl{suffix}", whole[:cut])
        with pytest.raises(InputError, match=rf"x\.jsonl\{suffix}:\d+: damaged or cut .* after byte \d+"):
            list(read_sources(path))
    path = put(tmp_path, f"x.jsonl{suffix}", whole + b"not packed")
    with pytest.raises(InputError, match=r":5001: damaged or cut"):
        list(read_sources(path))


@pytest.mark.parametrize("suffix", [".bz2", ".xz", ".zst"])
def test_a_bomb_is_stopped_before_it_grows(tmp_path: Path, suffix: str) -> None:
    import tracemalloc

    path = put(tmp_path, f"x.jsonl{suffix}", PACKERS[suffix](b'{"text": "a"}\n' + b" " * 30_000_000))
    tracemalloc.start()
    with pytest.raises(InputError, match=rf"x\.jsonl\{suffix}:2: the .* grows more than 200-fold"):
        list(read_sources(path, 2**20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


def test_tables_of_text(tmp_path: Path) -> None:
    path = put(tmp_path, "x.csv", b'\xef\xbb\xbfid,text,n\r\n1,"a ""b""\r\nc, d",2\r\n\r\n2,5" pipe,\r\n')
    assert list(read_records(path)) == [
        (2, {"id": "1", "text": 'a "b"\nc, d', "n": "2"}),
        (5, {"id": "2", "text": '5" pipe', "n": ""}),
    ]
    assert [source.offset for source in read_sources(path)] == [14, 37]
    assert list(read_records(put(tmp_path, "y.csv", "a;text\n1;春\n".encode()))) == [(2, {"a": "1", "text": "春"})]
    quoted = put(tmp_path, "x.tsv", b'a\ttext\n1\t"as it is\n')
    assert list(read_records(quoted)) == [(2, {"a": "1", "text": '"as it is'})]


def test_a_row_that_is_none_is_named(tmp_path: Path) -> None:
    rows = b'text,n\na,1\nb\nc,1,2\n"d" e,1\nf,"g\ng,h\n'
    found = list(read_sources(put(tmp_path, "x.csv", rows)))
    assert [(one.line, one.offset, one.reason) for one in found] == [
        (2, 7, ""),
        (3, 11, "the row has 1 fields, the first line names 2"),
        (4, 13, "the row has 3 fields, the first line names 2"),
        (5, 19, "no row: ',' expected after '\"'"),
        (6, 27, "a quotation mark opens here that the file never closes"),
    ]
    with pytest.raises(InputError, match=r"y\.csv:1: two columns 'a'; rename one"):
        list(read_sources(put(tmp_path, "y.csv", b"a,a\n1,2\n")))
    long = b'text\n"' + b"x\n" * 1000 + b'"\nb\n'
    found = list(delimited.rows(put(tmp_path, "z.csv", long), 500, "utf-8"))
    assert [(one.line, bool(one.reason)) for one in found] == [(2, True), (1003, False)]


def page(body: str, title: str = "T") -> bytes:
    return f"<html><head><title>{title}</title></head><body>{body}</body></html>".encode()


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


def answer(body: bytes, headers: str = "Content-Type: text/html; charset=utf-8", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + body


def warc(kind: str, body: bytes, media: str = "application/http; msgtype=response", url: str = "http://a/") -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Type: {media}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n\r\n"


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
        with pytest.raises(
            InputError, match=r"x\.warc:9: it ends (\d+ bytes before its record does|within the headers)"
        ):
            list(read_sources(put(tmp_path, "x.warc", content[:cut])))
    with pytest.raises(InputError, match=r"y\.wet:2: no record begins at byte \d+; is it a WARC file"):
        list(read_sources(put(tmp_path, "y.wet", records[-1] + b"<html>")))
    bomb = warc("response", answer(gzip.compress(b" " * 3_000_000), "Content-Encoding: gzip"))
    (source,) = read_sources(put(tmp_path, "z.warc", bomb), 2**20)
    assert source.reason == "unpacked the page has more than 1048576 bytes, which are allowed"


DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="zh">
  <siteinfo><sitename>W</sitename></siteinfo>
  <page><title>春</title><ns>0</ns><id>7</id><revision><id>9</id><model>wikitext</model>
    <text bytes="9">{{Infobox|a={{b}}}}'''春'''是[[季节|四季]]之一。&lt;ref&gt;注&lt;/ref&gt;</text></revision></page>
  <page><title>R</title><ns>0</ns><id>8</id><redirect title="春" /><revision><text>[[春]]</text></revision></page>
  <page><title>Talk:春</title><ns>1</ns><id>9</id><revision><text>x</text></revision></page>
</mediawiki>"""


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
        ("<rss></rss>", r"y\.xml: its root is <rss>, not <mediawiki>"),
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


def book(chapters: list[str], **more: bytes) -> bytes:
    items = "".join(
        f'<item id="c{n}" href="c{n}.xhtml" media-type="application/xhtml+xml"/>' for n in range(len(chapters))
    )
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    package = (
        '<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>'
        f"<dc:title>书</dc:title><dc:creator>某</dc:creator></metadata><manifest>{items}</manifest>"
        f"<spine>{spine}</spine></package>"
    )
    files = {
        "mimetype": b"application/epub+zip",
        "META-INF/container.xml": b'<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        b'<rootfile full-path="O/p.opf"/></rootfiles></container>',
        "O/p.opf": package.encode(),
        **{f"O/c{n}.xhtml": page(text, "") for n, text in enumerate(chapters)},
        **more,
    }
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return held.getvalue()


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


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    table = pa.table({"text": ["春", "b"], "n": [1, None]})
    for writer in (pa.ipc.new_file, pa.ipc.new_stream):
        with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as target, writer(target, table.schema) as stream:
            stream.write_table(table)
        records = list(read_records(tmp_path / "x.arrow"))
        assert records == [(1, {"text": "春", "n": 1}), (2, {"text": "b", "n": None})]
        whole = (tmp_path / "x.arrow").read_bytes()
        for cut in (8, 100, len(whole) - 8, len(whole) - 1):
            with pytest.raises(
                InputError, match=r"y\.arrow: (damaged Arrow file|the Arrow stream has no end; it was cut)"
            ):
                list(read_sources(put(tmp_path, "y.arrow", whole[:cut])))


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
    put(tmp_path, "a.jsonl.zst", zstd.compress(line))
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


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a packed file that was cut is not taken for a whole one",
        "trainers/files/formats/packed.py",
        'raise _Wrong("it ends before its end is marked")',
        "return 0",
        "test_a_packed_file_that_was_cut_or_damaged_is_named",
    ),
    (
        "a member of a packed file after the first is read",
        "trainers/files/formats/packed.py",
        "self._one = self._new()\n            elif",
        "return 0\n            elif",
        "test_a_packed_file_is_what_it_was",
    ),
    (
        "a bomb grows no buffer",
        "trainers/files/formats/packed.py",
        "self._one.decompress(rest, len(buffer))",
        "self._one.decompress(rest)",
        "test_a_bomb_is_stopped_before_it_grows",
    ),
    (
        "a row with a field too many is named",
        "trainers/files/formats/delimited.py",
        "if not reason and len(fields) != len(names):",
        "if not reason and len(fields) < len(names):",
        "test_a_row_that_is_none_is_named",
    ),
    (
        "a quotation mark within a field opens none",
        "trainers/files/formats/delimited.py",
        "        if start < 0:\n            return False",
        "        if start < 0:\n            return line.count(b'\"') % 2 == 1",
        "test_tables_of_text",
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
    (
        "an Arrow stream that was cut is not taken for a whole one",
        "trainers/files/tables.py",
        "if ends != _STREAM_END:",
        "if False:",
        "test_arrow_files_and_streams",
    ),
]

"""Small files of every format, made as their writers make them."""

import bz2
import gzip
import io
import lzma
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

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


def put(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def page(body: str, title: str = "T") -> bytes:
    return f"<html><head><title>{title}</title></head><body>{body}</body></html>".encode()


def answer(body: bytes, headers: str = "Content-Type: text/html; charset=utf-8", status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + body


def warc(kind: str, body: bytes, media: str = "application/http; msgtype=response", url: str = "http://a/") -> bytes:
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Type: {media}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n\r\n"


DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" xml:lang="zh">
  <siteinfo><sitename>W</sitename></siteinfo>
  <page><title>春</title><ns>0</ns><id>7</id><revision><id>9</id><model>wikitext</model>
    <text bytes="9">{{Infobox|a={{b}}}}'''春'''是[[季节|四季]]之一。&lt;ref&gt;注&lt;/ref&gt;</text></revision></page>
  <page><title>R</title><ns>0</ns><id>8</id><redirect title="春" /><revision><text>[[春]]</text></revision></page>
  <page><title>Talk:春</title><ns>1</ns><id>9</id><revision><text>x</text></revision></page>
</mediawiki>"""


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

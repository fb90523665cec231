"""MediaWiki dumps (export-0.10 and later): the articles, one in memory at a time, and their wikitext as plain text."""

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

from conf.errors import InputError
from trainers.files.formats.packed import CHUNK, bounded
from trainers.files.kinds import Form
from trainers.files.streams import LeftOut, Source

DEEPEST = 32  # links and templates within each other; what lies deeper is taken as it is written
_KEPT = {"title": 1024, "ns": 16, "id": 32, "model": 64}  # bytes of a page's short fields
_WORDS = re.compile(r"\{\{|\}\}|\[\[|\]\]|^[ :]{0,8}\{\||^[ ]{0,8}\|\}(?!\})", re.MULTILINE)
# Elements that go with all they hold; what begins one that nothing ends is looked for once.
_GONE = re.compile(
    r"<(ref|math|chem|gallery|timeline|score|syntaxhighlight|source|imagemap|templatestyles|mapframe|graph)\b"
    r"([^<>]{0,1024})>|<!--",
    re.IGNORECASE,
)
_TAG = re.compile(r"</?([a-zA-Z][a-zA-Z0-9]{0,16})(?:\s[^<>]{0,512})?/?>")
_BREAKING = frozenset("br p div li tr table blockquote".split())
_OUTSIDE = re.compile(r"\[(?:https?:|ftp:)?//[^\s\]<>]{1,2048}(?:[ \t]([^\]\n]{0,1024}))?\]")
_VARIANTS = re.compile(r"-\{([^{}\n]{0,1024})\}-")
_SWITCH = re.compile(r"__[A-Z]{3,24}__")
_FILES = re.compile(
    r"\s{0,8}(?:file|image|category|media|文件|檔案|档案|图像|圖像|图片|圖片|分类|分類|媒体|媒體)\s{0,8}:",
    re.IGNORECASE,
)


def pages(path: str | Path, limit: int) -> Iterator[Source]:
    """A JSON object {"title", "id", "ns", "text", ...} for each page of a dump.

    Raises `InputError` for what is no dump, or was cut.
    """
    found: list[Source] = []
    state = _Pages(path, limit, found)
    with bounded(path) as file:
        while content := file.read(CHUNK):
            state.feed(content)
            # what a parser has not dealt with it holds
            if file.read_so_far - state.parser.CurrentByteIndex > 2 * limit + CHUNK:
                raise InputError(f"{path}:{state.parser.CurrentLineNumber}: a tag of more than {limit} bytes")
            file.record = state.parser.CurrentLineNumber
            yield from found
            found.clear()
        if file.read_so_far:
            state.feed(b"", last=True)
    yield from found


class _Pages:
    """What the XML parser tells of a dump, put together into pages."""

    def __init__(self, path: str | Path, limit: int, found: list[Source]) -> None:
        self._path, self._limit, self._found = path, limit, found
        self._inside: list[str] = []
        self._page: dict[str, Any] | None = None
        self._held: list[str] = []
        self._size = 0
        self._place = (0, 0)
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self.parser.StartDoctypeDeclHandler = self._doctype

    def feed(self, content: bytes, *, last: bool = False) -> None:
        try:
            self.parser.Parse(content, last)
        except expat.ExpatError as error:
            what = "it was cut" if last else "the XML is broken"
            raise InputError(f"{self._path}:{error.lineno}: {what} ({expat.ErrorString(error.code)})") from None
        except InputError:
            raise
        except (LookupError, ValueError) as error:  # an encoding that the parser does not know
            raise InputError(f"{self._path}: the XML cannot be read ({error})") from None

    def _doctype(self, *_: Any) -> None:
        line = self.parser.CurrentLineNumber
        raise InputError(f"{self._path}:{line}: a dump has no DOCTYPE; what one defines may grow")

    def _start(self, name: str, of: dict[str, str]) -> None:
        if not self._inside and name != "mediawiki":
            raise InputError(f"{self._path}: its root is <{name:.40}>, not <mediawiki>: of .xml only dumps are read")
        if len(self._inside) > DEEPEST:
            raise InputError(f"{self._path}:{self.parser.CurrentLineNumber}: elements lie more than {DEEPEST} deep")
        self._inside.append(name)
        self._held, self._size = [], 0
        if name == "page":
            self._page = {}
            self._place = (self.parser.CurrentLineNumber, self.parser.CurrentByteIndex)
        elif name == "redirect" and self._page is not None:
            self._page["redirect"] = of.get("title", "")[:1024]

    def _text(self, text: str) -> None:
        if self._page is not None and (name := self._inside[-1]) in (*_KEPT, "text"):
            self._size += len(text.encode())
            if self._size <= _KEPT.get(name, self._limit):
                self._held.append(text)

    def _end(self, name: str) -> None:
        self._inside.pop()
        page = self._page
        if page is None:
            return
        if name == "text":
            page["text"], page["size"] = "".join(self._held), self._size  # the last revision of several
        elif name in _KEPT and (name != "id" or self._inside[-1] == "page"):
            page[name] = "".join(self._held)
        elif name == "page":
            self._page = None
            size = page.pop("size", 0)
            reason = f"the page has {size} bytes, at most {self._limit} are allowed" if size > self._limit else ""
            content = b"" if reason else json.dumps(page, ensure_ascii=False).encode(errors="surrogatepass")
            self._found.append(Source(*self._place, content, reason))
        self._held = []


def record(path: str, content: bytes, form: Form) -> tuple[dict[str, Any], str]:
    """({"text", "title", "id"} of an article, ""), for the parser has dealt with its encoding.

    Raises `LeftOut` for a redirect, and for what is no article.
    """
    page = json.loads(content)
    if "redirect" in page:
        raise LeftOut("redirect")
    if page.get("ns", "0") != "0":
        raise LeftOut(f"namespace {page['ns']}")
    if page.get("model", "wikitext") != "wikitext":
        raise LeftOut(f"model {page['model']}")
    return {"text": plain(page.get("text", "")), "title": page.get("title", ""), "id": page.get("id", "")}, ""


def plain(wikitext: str) -> str:
    """Wikitext without templates, tables, files, notes and marks; links as they read. Time grows as the text does."""
    text = _flat(_without_elements(wikitext))
    text = _OUTSIDE.sub(lambda found: found[1] or "", text)
    text = _VARIANTS.sub(_variant, text)
    text = _SWITCH.sub("", re.sub("'{2,5}", "", text))
    text = _TAG.sub(lambda tag: "\n" if tag[1].lower() in _BREAKING else "", text)
    lines = [_line(line) for line in html.unescape(text).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _line(line: str) -> str:
    line = line.rstrip()
    if line.startswith("=") and line.endswith("="):
        return line.strip("=").strip()
    return line.lstrip("*#:;").lstrip() if line[:1] in ("*", "#", ":", ";") else line


def _without_elements(text: str) -> str:
    held, at, never = [], 0, set[str]()
    while found := _GONE.search(text, at):
        name = (found[1] or "--").lower()
        held.append(text[at : found.start()])
        at = found.end()
        if found[1] and found[2].rstrip().endswith("/"):
            continue
        mark = "-->" if name == "--" else f"</{name}"
        end = -1 if name in never else text.find(mark, at)
        if end < 0:
            never.add(name)
            continue
        close = text.find(">", end, end + 64)
        at = close + 1 if close >= 0 else end + len(mark)
    return "".join([*held, text[at:]])


def _flat(text: str) -> str:
    """Without templates and tables, links as they read: one pass with a stack."""
    stack: list[tuple[str, list[str]]] = [("", [])]
    at = 0
    for found in _WORDS.finditer(text):
        stack[-1][1].append(text[at : found.start()])
        at, word = found.end(), found[0].strip(" :")
        opening = word in ("{{", "[[", "{|")
        closes = {"}}": "{{", "]]": "[[", "|}": "{|"}.get(word)
        if opening and len(stack) <= DEEPEST:
            stack.append((word, []))
        elif closes and any(kind == closes for kind, _ in stack[1:]):
            while stack[-1][0] != closes:  # what is open within it was never closed
                kind, inner = stack.pop()
                stack[-1][1].append(kind + "".join(inner))
            kind, inner = stack.pop()
            if kind == "[[":
                stack[-1][1].append(_link("".join(inner)))
        else:
            stack[-1][1].append(found[0])
    stack[-1][1].append(text[at:])
    while len(stack) > 1:
        kind, inner = stack.pop()
        stack[-1][1].append(kind + "".join(inner))
    return "".join(stack[0][1])


def _link(inner: str) -> str:
    if _FILES.match(inner):
        return ""
    target, _, shown = inner.partition("|")
    return (shown or target.lstrip(":")).strip()


def _variant(found: re.Match[str]) -> str:
    """Of the readings -{zh-hans:甲;zh-hant:乙}- that in simplified characters, or else the first."""
    flag, bar, rest = found[1].partition("|")
    if bar and flag.strip() in ("A", "H", "T", "-", "D"):
        return "" if flag.strip() != "A" else rest.split(":")[-1].split(";")[0]
    told = dict(part.split(":", 1) for part in (rest if bar else found[1]).split(";") if ":" in part)
    if not told:
        return rest if bar else found[1]
    return str(next((told[name] for name in ("zh-hans", "zh-cn") if name in told), next(iter(told.values()))))

"""Web pages to text: which encoding they say, what a parser can bear of them, and the text that is worth reading.

A parser's time grows with the square of how deep elements lie in each other and of how many attributes one has, and
its memory with the elements that unclosed formatting makes it repeat, so a page is counted through before.
"""

import json
import re
from collections import Counter
from typing import Any

from conf.errors import InputError
from conf.knobs.text import Html
from trainers.files.encodings import DETECT, decoded
from trainers.files.kinds import Form
from trainers.files.streams import BadRecord, LeftOut

DEEPEST = 256  # elements within each other; browsers stop at 512
ATTRIBUTES = 512  # of one element
ELEMENTS = 1_000_000  # of a page, those included that unclosed formatting makes a parser repeat
_TAG = re.compile(
    r"<(?:(/?)([a-zA-Z][^\s/>]*+)"
    r"((?:[\s/]++|[^\s/>][^\s/>=]*+(?:\s*+=\s*+(?:\"[^\"]*+\"?|'[^']*+'?|[^\s>\"'][^\s>]*+)?)?)*+)>?"
    r"|!--|[!?/])"
)
_ATTRIBUTE = re.compile(r"[^\s/>][^\s/>=]*+(?:\s*+=\s*+(?:\"[^\"]*+\"?|'[^']*+'?|[^\s>\"'][^\s>]*+)?)?")
_COMMENT_END, _END = re.compile("--!?>"), re.compile(">")
_RAW = frozenset("script style textarea title".split())
_FORMATTING = frozenset("a b big code em font i nobr s small strike strong tt u".split())
# Those without content, and those that end by themselves where the next of their kind begins.
_NO_DEPTH = frozenset(
    "area base br col embed hr img input link meta param source track wbr p li dt dd option tr td th thead tbody tfoot "
    "rp rt html body head".split()
)
_CHARSET = re.compile(rb"<meta[^>]{0,256}?charset\s{0,8}=\s{0,8}[\"']?\s{0,8}([\w.:-]{1,40})", re.IGNORECASE)
_DECLARED = re.compile(rb"<\?xml[^>]{0,128}?encoding\s{0,8}=\s{0,8}[\"']([\w.:-]{1,40})", re.IGNORECASE)


def record(path: str, content: bytes, form: Form) -> tuple[dict[str, Any], str]:
    """({"text", "title"} of a page, its encoding). Raises `BadRecord` for one that is in no encoding, or that no parser
    could bear."""
    return _page(content, form.encoding, "", form.html)


def headed(path: str, content: bytes, form: Form) -> tuple[dict[str, Any], str]:
    """The same of a page or text that comes after a line of JSON; what else that line says is in the record too.
    Raises `LeftOut` where it says that there is no document."""
    head, _, payload = content.partition(b"\n")
    told = json.loads(head)
    if left := told.pop("left", ""):
        raise LeftOut(left)
    kind, charset = told.pop("type"), told.pop("charset", "")
    if kind == "text":
        text, encoding = decoded(payload, DETECT, charset)
        return {**told, "text": text}, encoding
    page, encoding = _page(payload, DETECT, charset, Html.all if kind == "chapter" else form.html)
    return {**told, **page}, encoding


def _page(content: bytes, encoding: str, charset: str, html: Html) -> tuple[dict[str, Any], str]:
    found = None if charset else _CHARSET.search(content[:2048]) or _DECLARED.match(content)
    text, encoding = decoded(content, encoding, found[1].decode() if found else charset)
    check(text)
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree

    try:
        tree = HTMLTree.parse(text)
        if html is Html.trafilatura:
            plain = _by_trafilatura(text)
        else:
            plain = extract_plain_text(
                tree, preserve_formatting=True, main_content=html is Html.main, list_bullets=False, alt_texts=False
            )
    except (ValueError, RuntimeError) as error:
        raise BadRecord(f"no web page ({str(error).splitlines()[0]})") from None
    return {"text": plain.replace("\xa0", " "), "title": (tree.title or "").strip()}, encoding


def _by_trafilatura(text: str) -> str:
    """What a page is about as trafilatura finds it (Barbaresi 2021), without the comments of readers; "" where that
    is nothing."""
    import trafilatura

    return trafilatura.extract(text, include_comments=False, include_tables=True, deduplicate=False) or ""


def check_reader(html: Html) -> None:
    """Raise `InputError` where the package is missing that shall find a page's text."""
    if html is not Html.trafilatura:
        return
    try:
        import trafilatura  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"corpus.html=trafilatura needs the package trafilatura ({error}): pip install -e '.[html]' -c "
            "constraints.txt; or take corpus.html=main"
        ) from None


def check(text: str) -> None:
    """Raise `BadRecord` for a page that would cost a parser more than its length."""
    opened: Counter[str] = Counter()
    depth = elements = formatting = 0
    never = set[str]()  # names of raw elements that nothing ends any more
    at = 0
    while (at := text.find("<", at)) >= 0:
        tag = _TAG.match(text, at)
        if tag is None:
            at += 1
            continue
        at = tag.end()
        if not tag[2]:
            end = (_COMMENT_END if tag[0] == "<!--" else _END).search(text, tag.start() + 2)
            if end is None:
                return  # nothing but a comment is left
            at = end.end()
            continue
        name = tag[2].lower()
        if len(tag[3]) > 2 * ATTRIBUTES and sum(1 for _ in _ATTRIBUTE.finditer(tag[3])) > ATTRIBUTES:
            raise BadRecord(f"an element <{name:.40}> has more than {ATTRIBUTES} attributes")
        if tag[1]:
            if opened[name]:
                opened[name] -= 1
                depth -= 1
                formatting -= name in _FORMATTING
            continue
        elements += 1 + formatting
        if elements > ELEMENTS:
            raise BadRecord(f"the page has more than {ELEMENTS} elements")
        if name in _RAW and not (opened["svg"] or opened["math"]):  # within these they are elements as others are
            if name not in never:
                close = re.compile(f"</{name}", re.IGNORECASE).search(text, at)
                at = close.start() if close else at
                never |= set() if close else {name}
        elif name not in _NO_DEPTH:
            opened[name] += 1
            depth += 1
            formatting += name in _FORMATTING
            if depth > DEEPEST:
                raise BadRecord(f"elements lie more than {DEEPEST} deep in each other")

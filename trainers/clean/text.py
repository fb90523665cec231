"""Steps that mend a text: invisible characters, full-width letters, what is left of web pages, lines of boilerplate."""

import html
import re
from collections.abc import Callable

from trainers.clean.document import Block, Step

# Nothing to see and nothing to read: soft hyphens, zero-width blanks, marks of direction, tags, private characters.
# Joiners stay where they join: in scripts that need them, and between emoji.
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\u206a-\u206f\ufdd0-\ufdef\ufff9-\ufffb"
    "\ue000-\uf8ff\U000e0000-\U000e007f\U000f0000-\U0010fffd\ufffe\uffff]"
    "|(?<=[\0-\u02ff\u3000-\u9fff\uff00-\uffef])[\u200c\u200d](?=[\0-\u02ff\u3000-\u9fff\uff00-\uffef])"
)
_FULL_WIDTH = {code: code - 0xFEE0 for code in [*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B)]}
_LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"}
_FOLDED = str.maketrans({**_FULL_WIDTH, **_LIGATURES, 0xA0: " ", 0x202F: " "})
_ENTITY = re.compile(r"&(?:[A-Za-z]{2,8}|#\d{2,6}|#x[0-9A-Fa-f]{2,6});")
# Names of elements only, so that "a < b" and generics of a program stay; a text that is about HTML is asked for.
_ELEMENTS = (
    "a abbr article aside b blockquote body br button center code dd div dl dt em figure font footer form h1 h2 h3 h4 "
    "h5 h6 head header hr html i iframe img input label li link main meta nav noscript ol option p pre s section "
    "select small "
    "span strong sub sup table tbody td tfoot th thead title tr u ul video"
).replace(" ", "|")
_WHOLE = re.compile(r"<(script|style)\b[^<>]{0,2048}>[^<]{0,65536}</\1\s{0,8}>", re.IGNORECASE)
_TAG = re.compile(
    rf"</?(?:{_ELEMENTS})(?=[\s/>])[^<>]{{0,2048}}>|<!--[^<>]{{0,2048}}-->|<!DOCTYPE[^<>]{{0,256}}>", re.IGNORECASE
)
_BREAKING = re.compile(r"^</?(?:p|div|br|li|tr|h[1-6]|ul|ol|table|section|article|blockquote)\b", re.IGNORECASE)
_BOILERPLATE = re.compile(
    r"javascript (?:must|is|has to) .{0,40}(?:enabled|disabled|required)|enable (?:javascript|cookies)|"
    r"(?:uses|use|accept|of) cookies|cookie (?:policy|settings|consent)|privacy policy|"
    r"terms (?:of|and) (?:use|service|conditions)|"
    r"all rights reserved|copyright (?:©|\(c\)|\d{4})|©\s?\d{4}|sign (?:in|up) to|log in to (?:reply|comment)|"
    r"subscribe to our|follow us on|share (?:this|on)|click here|read more|skip to (?:main )?content|back to top|"
    r"lorem ipsum|"
    r"版权所有|版权声明|未经.{0,6}(?:许可|授权)|转载.{0,4}注明|责任编辑|点击.{0,6}(?:查看|阅读|下载|进入)|阅读全文|"
    r"上一[篇页章].{0,40}下一[篇页章]|返回(?:首页|顶部|目录)|扫.{0,4}二维码|关注.{0,8}公众号|加入收藏|设为首页|"
    r"(?:京|沪|粤|浙|苏|鲁|川|津)ICP|ICP备|请(?:先)?登录|打开APP|免责声明",
    re.IGNORECASE,
)
_LONGEST = 120  # characters: a longer line that says "click here" says more


def unicode(text: str) -> str:
    """Without what nobody sees; letters and digits of full width, and ligatures, as they are typed. Chinese
    punctuation, which has that width too, stays."""
    return _INVISIBLE.sub("", text.translate(_FOLDED))


def html_remnants(text: str) -> str:
    """Without tags, scripts and entities; where an element breaks a line, a line ends."""
    if "<" in text:
        text = _TAG.sub(lambda found: "\n" if _BREAKING.match(found[0]) else "", _WHOLE.sub("", text))
    if "&" in text:
        text = _ENTITY.sub(lambda found: html.unescape(found[0]).replace("\xa0", " "), text)
    return text


def without_boilerplate(text: str) -> str:
    """Without the short lines that pages are framed by."""
    if not _BOILERPLATE.search(text):
        return text
    kept = [line for line in text.split("\n") if len(line) > _LONGEST or not _BOILERPLATE.search(line)]
    return "\n".join(kept)


def mending(rule: str, mend: Callable[[str], str]) -> Step:
    """The step that gives each document the text that `mend` makes of it; one of which nothing is left is rejected."""

    def step(block: Block) -> Block:
        for document in block:
            if (text := mend(document.text)) != document.text:
                document.change(text, rule)
                if not text.strip():
                    document.reject("nothing is left")
        return block

    return step

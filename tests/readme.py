"""The commands of the READMEs and of docs/: what stands in their blocks, and in the running text between backticks."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_PLACEHOLDER = re.compile(r"<\w+>")  # <folder>: no word of a command line, and the only thing that is translated
_STARTS = ("python ", "make ", "ray ", "curl ", ".venv/", "PYTHONPATH=")  # what makes a command of words in backticks


@dataclass(frozen=True)
class Command:
    text: str  # a line for the shell, its continuation joined and its comment gone; or a whole Python block
    python: bool = False

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


def blocks(readme: str) -> list[list[Command]]:
    """The commands of each block, in their order; one in the running text is a block of its own."""
    text = (ROOT / readme).read_text("utf-8")
    found = []
    for language, body in _FENCED.findall(text):
        if language == "python":
            found.append([Command(body, python=True)])
        elif language == "jsonl":
            continue  # read by `lines`
        else:
            assert language == "sh", f"{readme}: a block in {language or 'no language'} is run by nobody"
            found.append(_shell_commands(body))
    inline = (_PLACEHOLDER.sub("FOLDER", " ".join(code.split())) for code in _INLINE.findall(_FENCED.sub("", text)))
    return found + [[Command(code)] for code in inline if code.startswith(_STARTS)]


def lines(readme: str) -> list[str]:
    """The lines of the blocks of JSON."""
    text = (ROOT / readme).read_text("utf-8")
    return [line for language, body in _FENCED.findall(text) if language == "jsonl" for line in body.splitlines()]


def command(start: str) -> Command:
    """The one command of README.md that starts so: for tests that run it with fixtures of their own."""
    found = {each for block in blocks("README.md") for each in block if each.text.startswith(start)}
    assert len(found) == 1, f"README.md has {len(found)} commands that start with {start}"
    return found.pop()


def _shell_commands(body: str) -> list[Command]:
    found, text = [], ""
    for line in body.replace("\\\n", " ").splitlines():
        text += line
        try:
            words = shlex.split(text, comments=True)
        except ValueError:  # a quotation goes on in the next line
            text += "\n"
            continue
        if words:
            found.append(Command(shlex.join(words)))
        text = ""
    assert not text, f"a quotation is not closed: {text}"
    return found

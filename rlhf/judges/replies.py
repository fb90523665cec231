"""What a model is asked, what it replies, and the replies on disk, so that nothing is asked twice.

A line of the file is one reply under the digest of its question. Lines are only ever appended: a process that is killed
leaves at worst a torn last line, which counts for nothing and is cut off before the next is written.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from cluster import fault


@dataclass(frozen=True)
class Question:
    """All that a reply hangs on, but for who is asked."""

    prompt: str  # the user's only turn
    temperature: float
    seed: int
    max_new_tokens: int

    @property
    def messages(self) -> list[dict[str, str]]:
        return [{"role": "user", "content": self.prompt}]


@dataclass(frozen=True)
class Reply:
    text: str
    whole: bool  # ended by itself; of one that was cut off, the last line means nothing
    failures: Mapping[str, int] = field(default_factory=dict)  # requests before that came to nothing, by what happened


@dataclass(frozen=True)
class Lost:
    """There is no reply, and no use in trying on now."""

    why: str
    failures: Mapping[str, int] = field(default_factory=dict)


Ask = Callable[[Sequence[Question]], Iterator[tuple[Question, Reply | Lost]]]  # each once, as they come


class Replies:
    """`Replies(folder / "replies.jsonl", who)`: those of `who`, a text that tells apart all who may be asked."""

    def __init__(self, path: Path, who: str) -> None:
        self._path, self._who = path, who
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        content = path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with open(path, "r+b") as file:
                file.truncate(len(whole))
        self._known: dict[str, Reply] = {}
        for line in map(json.loads, whole.splitlines()):
            self._known[line["question"]] = Reply(line["text"], line["whole"], line["failures"])

    def answered(self, questions: Iterable[Question], ask: Ask) -> Iterator[tuple[Question, Reply | Lost]]:
        """The reply to each question, once: first those that are known, then of `ask`, each kept before it is given.
        One that is lost is not kept, and asked for again another time."""
        unknown = []
        for question in dict.fromkeys(questions):
            if known := self._known.get(self._key(question)):
                yield question, known
            else:
                unknown.append(question)
        if not unknown:
            return
        with open(self._path, "ab") as file:
            for question, reply in ask(unknown):
                if isinstance(reply, Reply):
                    key = self._key(question)
                    self._known[key] = reply
                    line = {"question": key, **asdict(reply), "prompt": question.prompt}
                    file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                    file.flush()
                    fault.at("judge.kept")
                yield question, reply

    def _key(self, question: Question) -> str:
        return hashlib.sha256(json.dumps([self._who, asdict(question)]).encode()).hexdigest()

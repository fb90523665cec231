"""How far a stage is: one live line on a terminal, a plain line now and then elsewhere, and what happened above it."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cluster.tracking.tracker import FILE, alarms, incidents, parse_lines, read_metrics

PLAIN_EVERY, PLAIN_DOING = 10.0, 60.0  # seconds between plain lines, and while no step is taken
POLL_EVERY = 0.5  # seconds between looks at metrics.jsonl
SILENT, SILENT_STEPS = 20.0, 10  # seconds, and times what a step takes: a longer silence is told
_TAIL_BYTES = 2**18  # a line of a model with many experts has tens of kilobytes


def clock(seconds: float) -> str:
    """65 -> '1:05', 3725 -> '1:02:05'."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def shown_number(name: str, value: Any) -> str:
    """A metric as a reader wants it: 'loss 4.21', '5,900 tok/s', 'mfu 41%', 'rows 1,024'."""
    if name == "tokens_per_second":
        return f"{value:,.0f} tok/s"
    if name == "mfu":
        return f"mfu {value:.0%}"
    if isinstance(value, float):
        return f"{name} {value:,.0f}" if abs(value) >= 1000 else f"{name} {value:.3g}"
    return f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"


class Counter:
    """`with counter("rank", 256) as bar: bar.advance(8, score=0.7)`."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done = label, total, 0
        self._first = 0  # what an earlier attempt had done: it says nothing about the speed of this one
        self._shown: dict[str, Any] = {}
        self.doing = ""  # what is done instead of steps
        self._began = time.monotonic()
        self._since = self._changed = self._printed = self._began  # `_since`: this attempt; `_changed`: the last step
        self._lock = threading.Lock()
        self._live = sys.stdout.isatty()

    def advance(self, n: int = 1, **shown: Any) -> None:
        self.update(self.done + n, **shown)

    def update(self, done: int, **shown: Any) -> None:
        """Say that `done` of the total are done; `shown` are numbers to put beside."""
        with self._lock:
            if self.doing:  # how long it took to begin says nothing about steps
                self._first, self._since = done, time.monotonic()
            if done != self.done or self.doing:
                self._changed = time.monotonic()
            self.done, self.doing = done, ""
            self._shown |= shown
        self.refresh()

    def refresh(self) -> None:
        """Show the line if it is time to."""
        with self._lock:
            now = time.monotonic()
            often = PLAIN_EVERY if not self.doing else PLAIN_DOING
            if now - self._printed >= (POLL_EVERY if self._live else often):
                self._printed = now
                self._show(end="" if self._live else "\n")

    def begin_at(self, done: int, doing: str = "") -> None:
        """What was done before now, by an earlier attempt, and what is being done until its next step."""
        with self._lock:
            self.done = self._first = done
            self._since = self._changed = time.monotonic()
            self.doing = doing
            if doing:
                self._show(end="" if self._live else "\n")

    def say(self, text: str) -> None:
        """Put a line of its own above the progress."""
        with self._lock:
            print(f"\r{text}\033[K" if self._live else text, flush=True)

    def line(self) -> str:
        """'base  120/400  30%  loss 4.21  5,900 tok/s  ETA 2:10'."""
        share = self.done / self.total if self.total else 1.0
        parts = [self.label, f"{self.done:,}/{self.total:,}", f"{share:.0%}"]
        now, took = time.monotonic(), self._changed - self._since  # what comes after the last step is no step's time
        if self.doing:
            return "  ".join([*parts, self.doing])
        parts += [shown_number(name, value) for name, value in self._shown.items()]
        if self.done >= self.total:
            parts.append(f"in {clock(now - self._began)}")
        elif self.done > self._first:
            each = took / (self.done - self._first)
            parts.append(f"ETA {clock(each * (self.total - self.done))}")
            if now - self._changed > max(SILENT, SILENT_STEPS * each):
                parts.append(f"no step for {clock(now - self._changed)}")
        return "  ".join(parts)

    def _show(self, end: str) -> None:
        # On a terminal: back to the first column, the line, and clear what an older, longer one left.
        print(f"\r{self.line()}\033[K" if self._live else self.line(), end=end, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._show(end="\n")


def counter(label: str, total: int) -> Counter:
    """Progress of a loop in this process."""
    return Counter(label, total)


@dataclass(frozen=True)
class Followed:
    """The progress of workers."""

    begin: Callable[[int, str], None]
    """To be called with a step and what is being done when workers begin, or begin anew: what was read up to then says
    nothing about them."""
    idle: Callable[[], bool]
    """Whether they have not begun yet."""


@contextmanager
def follow(
    folder: str | Path,
    label: str,
    total: int,
    show: Sequence[str] = ("loss", "lr", "tokens_per_second", "mfu", "val/loss"),
) -> Iterator[Followed]:
    """Progress of a stage that runs elsewhere, read from the metrics.jsonl that it appends to.

    `show` names the metrics beside the step. Alarms, incidents and new attempts are told, each once: the first attempt
    goes on from where an earlier command stopped; one that begins while we look took the place of workers that died.

    """
    path, ended = Path(folder) / FILE, threading.Event()
    before = read_metrics(folder)
    first = 1 + max((line.get("attempt", 1) for line in before), default=1) if path.exists() else 1
    told = {(line["time"], text) for line in before for text in _events(line, first)}
    old = {(line["time"], line["step"]) for line in before}
    looking, created = threading.Lock(), path.exists()

    def newest() -> list[dict[str, Any]]:
        # The tail is read anew each time, for a stage that continues replaces the file.
        if not path.exists():
            return []
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            content = file.read()
        if size > _TAIL_BYTES:
            content = content[content.find(b"\n") + 1 :]
        return parse_lines(content)

    def begin(step: int, doing: str) -> None:
        nonlocal created
        with looking:
            created = path.exists()
            old.update((line["time"], line["step"]) for line in newest())
            bar.begin_at(step, doing)

    def look() -> None:
        with looking:
            show_newest()

    def show_newest() -> None:
        lines = [line for line in newest() if (line["time"], line["step"]) not in old]
        for event in [(line["time"], text) for line in lines for text in _events(line, first)]:
            if event not in told:
                told.add(event)
                bar.say(f"{label}: {event[1]}")
        if lines:
            shown = {name: line[name] for name in show for line in lines if name in line}
            bar.update(int(lines[-1]["step"]), **shown)
        elif path.exists() and not created:
            bar.update(bar.done)  # a tracker is there
        else:
            bar.refresh()

    def tail() -> None:
        while not ended.wait(POLL_EVERY):
            look()

    with counter(label, total) as bar:
        bar.begin_at(int(before[-1]["step"]) if before else 0)
        thread = threading.Thread(target=tail, daemon=True)
        thread.start()
        try:
            yield Followed(begin, lambda: bool(bar.doing))
        finally:
            ended.set()
            thread.join()
            look()


def _events(line: Mapping[str, Any], first: int) -> list[str]:
    """What a line of metrics.jsonl tells of beside what was measured; `first` is the attempt that a command began."""
    step = f"step {line['step']:,}"
    texts = [f"alarm at {step}: {text}" for _, text in alarms([line])]
    texts += [f"{step}: {text}" for _, text in incidents([line])]
    if "attempt" in line:
        how = "resumed" if line["attempt"] == first else "a worker died and was replaced; going on"
        texts.append(f"{how} at {step}")
    return texts

"""Peak memory over this process and all that it started, Ray's own processes included."""

import threading
from types import TracebackType
from typing import Self

import psutil

SAMPLE_EVERY = 5.0  # seconds


class PeakMemory:
    """`with PeakMemory() as peak: ...`; then `peak.bytes`.

    Summed is each process's proportional share (PSS), so that memory which several share, such as Ray's object store,
    counts once; where the system has no PSS, what a process has to itself (USS).
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, used())
            if self._ended.wait(SAMPLE_EVERY):
                return


def used() -> int:
    """Bytes in use now by this process and its descendants."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        try:
            full = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended while we looked
        total += getattr(full, "pss", full.uss)
    return total

"""Peak memory of a run on this machine: this process, all that it started, and its workers of a cluster it joined."""

import ctypes
import sys
import threading
from types import TracebackType
from typing import Self

import psutil
import ray

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
    """Bytes in use now by this process, its descendants and this machine's workers of its Ray job."""
    me = psutil.Process()
    total = 0
    for process in {me, *me.children(recursive=True), *_joined()}:
        try:
            full = process.memory_full_info()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended while we looked
        total += getattr(full, "pss", full.uss)
    return total


def give_back() -> None:
    """Return what this process has freed to the kernel: glibc keeps the heap of a model that has gone. Does nothing
    where the C library is another one."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is not None and hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def where() -> str:
    """Whose memory it is: "all processes", or with more machines "this machine's processes (1 of 3)"."""
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} if ray.is_initialized() else ()
    return f"this machine's processes (1 of {len(machines)})" if len(machines) > 1 else "all processes"


def _joined() -> list[psutil.Process]:
    """This machine's processes that work for this process's job: those of a cluster that was joined are not its own."""
    if not ray.is_initialized():
        return []
    context = ray.get_runtime_context()
    job, cluster = context.get_job_id(), context.gcs_address
    found = []
    for process in psutil.process_iter():
        try:
            # What Ray names so is a worker; its environment says whose, and its raylet of which cluster.
            if process.name().startswith("ray::") and (given := process.environ()).get("RAY_JOB_ID") == job:
                raylet = psutil.Process(int(given["RAY_RAYLET_PID"]))
                if any(cluster in word for word in raylet.cmdline()):
                    found.append(process)
        except psutil.Error:
            continue  # it ended while we looked, or is another user's
    return found

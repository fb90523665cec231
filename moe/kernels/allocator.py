"""Freed memory stays in the process, for training frees and takes the same large buffers at every step; or goes back,
where the model is so large that memory is short and a step so long that clearing pages is little of it."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # malloc.h of glibc
LARGE = 5e8  # bytes of weights from which a model is large
_MAPPED = 2**18  # bytes from which a large model's buffer is mapped by itself


def keep_buffers(weights: float = 0.0) -> None:
    """Tell glibc not to give large buffers back to the kernel, which would clear every page of them again; for a model
    of LARGE `weights` (bytes) to give them back at once, for kept ones of the wrong sizes are a tenth of its memory.

    Does nothing where the C library is another one.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return
    if weights >= LARGE:
        library.mallopt(_M_MMAP_THRESHOLD, _MAPPED)
        return
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

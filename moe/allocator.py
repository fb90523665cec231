"""Keep freed memory in the process: training frees and takes the same large buffers at every step."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_buffers() -> None:
    """Tell glibc not to give large buffers back to the kernel, which would clear every page of them again.

    Does nothing where the C library is another one.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)

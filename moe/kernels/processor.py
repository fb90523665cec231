"""What of the arithmetic depends on the processor and not on the config: asked here, and nowhere else.

A processor decides which of torch's libraries multiplies fp32 faster; a machine, whether C kernels can be built. All
ways give the same to rounding. They are decided once in a process, by the processor's name and never by a measurement,
so that a resumed run rounds as it did before.

`CONCLAVE_PROCESSOR`, such as `kernels=off,onednn=on`, overrides what is found: to go on with a run on another kind of
machine as it began, to leave the C kernels out, or to try here what another machine does.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

from conf.errors import InputError

VARIABLE = "CONCLAVE_PROCESSOR"
_WORDS = {"on": True, "off": False}


@dataclass(frozen=True)
class Processor:
    kernels: bool  # native.py computes what is bound by memory or by exp, where it is built; else torch does
    onednn: bool  # fp32 products of whole tiles go to oneDNN (gemm.py); else torch gives them to MKL
    tiles: bool = False  # under autocast to bf16, attention's products go to AMX (tiles.h); else they stay fp32


_set: Processor | None = None


def processor() -> Processor:
    """What holds in this process. Raises InputError for a `CONCLAVE_PROCESSOR` that cannot be read."""
    return _set or _decided()


@contextmanager
def using(settings: Processor) -> Iterator[None]:
    """Everything in this process is computed as a machine with these settings would, until the end of the block."""
    global _set
    before, _set = _set, settings
    try:
        yield
    finally:
        _set = before


@cache
def _decided() -> Processor:
    return overridden(found(), os.environ.get(VARIABLE, ""))


def found() -> Processor:
    """What this machine's processor suggests."""
    import torch

    # MKL leaves AVX-512 unused on processors that are not Intel's; oneDNN uses it, for about twice the speed there
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512") and torch.backends.mkldnn.is_available()
    foreign = _told("vendor_id") not in ("", "GenuineIntel")
    return Processor(kernels=True, onednn=wide and foreign, tiles="amx_bf16" in instructions())


def overridden(settings: Processor, words: str) -> Processor:
    """`settings` with words such as `kernels=off,onednn=on`. Raises InputError for one that says nothing."""
    names = [field.name for field in fields(Processor)]
    for word in filter(None, words.split(",")):
        name, _, value = word.partition("=")
        if name not in names or value not in _WORDS:
            raise InputError(f"{VARIABLE}={words}: {word!r} says nothing; try {','.join(f'{n}=off' for n in names)}")
        settings = replace(settings, **{name: _WORDS[value]})
    return settings


def instructions() -> str:
    """The sets of instructions that the processor has, as the system names them."""
    return _told("flags") or _told("Features") or platform.processor()


def _told(name: str) -> str:
    """The first value of a line of /proc/cpuinfo; nothing where there is no such line."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == name), "")

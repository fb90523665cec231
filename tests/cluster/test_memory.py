"""What a process has freed goes back to the system."""

import sys

import psutil
import pytest
import torch

from cluster.memory import give_back


@pytest.mark.skipif(sys.platform != "linux", reason="glibc keeps freed memory; other C libraries are left alone")
def test_a_model_that_has_gone_leaves_no_heap_behind() -> None:
    me = psutil.Process()
    before = me.memory_info().rss
    kept, parts = [], []
    for _ in range(3000):  # small enough for the heap, with something that stays between them
        parts.append(torch.ones(25_000))
        kept.append(torch.ones(16))
    held = me.memory_info().rss - before
    assert held > 250e6
    del parts
    give_back()
    assert me.memory_info().rss - before < 0.2 * held
    assert len(kept) == 3000


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what a stage has freed goes back to the system",
        "cluster/memory.py",
        "library.malloc_trim(0)",
        "pass",
        None,
    ),
]

"""Our Triton kernels as compiled for this card equal their torch twins."""

import os
from importlib.util import find_spec
from typing import Any

from tests.gpu.machine import Skipped, device

MOST = {"float32": 256.0, "bfloat16": 1.01}  # last places: the device's exp is not the host's


def run(toy: bool) -> dict[str, Any]:
    if find_spec("triton") is None:
        raise Skipped("Triton is not installed")
    assert bool(os.environ.get("TRITON_INTERPRET")) == toy
    from tests.moe.kernels.triton_conformance import errors

    found = errors(device(toy).type)
    for name, error in found.items():
        assert error <= MOST[name.rpartition(", ")[2]], f"{name} is {error:.1f} last places from its twin"
    return {"last_places": {name: round(error, 2) for name, error in found.items()}}

"""What this machine is, and the two ceilings that the other figures are read beside."""

import platform
from importlib import metadata
from typing import Any

import torch

from tests.gpu.machine import device, seconds


def run(toy: bool) -> dict[str, Any]:
    where, size = device(toy), 256 if toy else 8192
    a = torch.randn(size, size, device=where, dtype=torch.bfloat16)
    copied, numbers = torch.empty_like(a), a.numel()
    product = seconds(lambda: a @ a)
    copy = seconds(lambda: copied.copy_(a))
    return {
        "name": "cpu" if toy else torch.cuda.get_device_name(),
        "capability": "" if toy else "{}.{}".format(*torch.cuda.get_device_capability()),
        "memory_gib": 0.0 if toy else round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        "python": platform.python_version(),
        "cuda": torch.version.cuda or "",
        **{name: version(name) for name in ("torch", "triton", "transformers", "ray", "megablocks")},
        "matmul_tflops": round(2 * size**3 / product / 1e12, 3),
        "copy_tb_per_s": round(2 * 2 * numbers / copy / 1e12, 3),  # read and written, two bytes each
    }


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"

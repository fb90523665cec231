"""The one place that asks what the processor is, and the switch that says otherwise."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from conf.errors import InputError
from moe.kernels import native
from moe.kernels import processor as switch
from moe.kernels.gemm import product
from moe.kernels.processor import Processor, found, overridden, processor, using
from moe.training.optimizer import orthogonalise

ROOT = Path(__file__).parents[3]
PLAIN = Processor(kernels=False, onednn=False)


@pytest.mark.parametrize(
    ("vendor", "capability", "onednn"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
        ("", "AVX512", False),  # a system that does not say: what torch does by itself
    ],
)
def test_onednn_is_for_wide_vectors_that_mkl_leaves_unused(
    monkeypatch: pytest.MonkeyPatch, vendor: str, capability: str, onednn: bool
) -> None:
    monkeypatch.setattr(switch, "_told", lambda name: {"vendor_id": vendor, "flags": "avx2 amx_tile"}[name])
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert found() == Processor(kernels=True, onednn=onednn)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert found() == Processor(kernels=True, onednn=False)


@pytest.mark.parametrize(("flags", "tiles"), [("avx512f amx_bf16 amx_tile", True), ("avx512f avx512_bf16", False)])
def test_tiles_are_for_amx(monkeypatch: pytest.MonkeyPatch, flags: str, tiles: bool) -> None:
    monkeypatch.setattr(switch, "_told", lambda name: {"vendor_id": "GenuineIntel", "flags": flags}[name])
    assert found().tiles == tiles


def test_words_override_what_is_found() -> None:
    assert overridden(PLAIN, "") == PLAIN
    assert overridden(PLAIN, "kernels=on") == Processor(kernels=True, onednn=False)
    assert overridden(PLAIN, "onednn=on,kernels=on") == Processor(kernels=True, onednn=True)


@pytest.mark.parametrize("word", ["kernels", "kernels=1", "mkl=on", "onednn=on;kernels=on"])
def test_a_word_that_says_nothing_is_refused(word: str) -> None:
    with pytest.raises(InputError) as refused:
        overridden(PLAIN, word)
    assert (
        str(refused.value) == f"CONCLAVE_PROCESSOR={word}: {word!r} says nothing; try kernels=off,onednn=off,tiles=off"
    )


def test_the_switch_holds_to_the_end_of_its_block_also_of_a_broken_one() -> None:
    before = processor()
    with using(PLAIN):
        assert processor() == PLAIN
        with pytest.raises(KeyError), using(Processor(kernels=True, onednn=True)):
            raise KeyError
        assert processor() == PLAIN
    assert processor() == before


@pytest.mark.parametrize("words", ["kernels=off,onednn=on,tiles=off", "onednn=off,tiles=off,kernels=off"])
def test_the_variable_decides_for_a_process(words: str) -> None:
    code = "from moe.kernels.processor import processor; print(processor())"
    environment = os.environ | {"CONCLAVE_PROCESSOR": words}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == f"Processor(kernels=False, onednn={'onednn=on' in words}, tiles=False)\n", done.stderr


def test_every_way_is_the_one_that_is_asked_for(any_processor: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    assert native.available() == any_processor.kernels
    mkl = Mock(wraps=torch.mm)
    monkeypatch.setattr(torch, "mm", mkl)
    product(torch.ones(64, 64), torch.ones(64, 64))
    assert mkl.called != any_processor.onednn


def test_nothing_else_asks_what_the_processor_is() -> None:
    questions = ("get_cpu_capability", "torch.cpu._is", "cpuinfo", "platform.processor", "CONCLAVE_PROCESSOR")
    asking = {
        path.relative_to(ROOT).as_posix()
        for folder in ("conf", "moe", "cluster", "trainers", "rlhf", "serving")
        for path in (ROOT / folder).rglob("*.py")
        if any(question in path.read_text() for question in questions)
    }
    assert asking == {"moe/kernels/processor.py"}


def test_muon_iterates_in_fp32_in_every_way(any_processor: Processor) -> None:
    """What bf16 would round, it would round by the order of sums: by the number of workers, and by the processor."""
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 64, 192, generator=generator)
    exact = matrices.double() / torch.linalg.matrix_norm(matrices.double(), keepdim=True)
    for _ in range(5):
        gram = exact @ exact.mT
        exact = 3.4445 * exact + (-4.7750 * gram + 2.0315 * gram @ gram) @ exact
    torch.testing.assert_close(orthogonalise(matrices).double(), exact, atol=1e-5, rtol=0.0)
    torch.testing.assert_close(orthogonalise(matrices.mT).double(), exact.mT, atol=1e-5, rtol=0.0)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a processor that is not Intel's multiplies by oneDNN",
        "moe/kernels/processor.py",
        'not in ("", "GenuineIntel")',
        'in ("", "GenuineIntel")',
        "test_onednn_is_for_wide_vectors_that_mkl_leaves_unused",
    ),
    (
        "the processor's switch ends with its block",
        "moe/kernels/processor.py",
        "        _set = before",
        "        pass",
        "test_the_switch_holds_to_the_end_of_its_block_also_of_a_broken_one",
    ),
    (
        "CONCLAVE_PROCESSOR is read",
        "moe/kernels/processor.py",
        'os.environ.get(VARIABLE, "")',
        '""',
        "test_the_variable_decides_for_a_process",
    ),
    (
        "the C kernels obey the switch",
        "moe/kernels/native.py",
        "return processor().kernels and _load()[0] is not None",
        "return _load()[0] is not None",
        "test_every_way_is_the_one_that_is_asked_for",
    ),
    (
        "products obey the switch",
        "moe/kernels/gemm.py",
        'a.device.type == "cpu" and processor().onednn)',
        'a.device.type == "cpu")',
        "test_every_way_is_the_one_that_is_asked_for",
    ),
    (
        "Muon's iteration does not depend on the processor",
        "moe/training/optimizer.py",
        'if x.device.type != "cpu":',
        'if x.device.type == "cpu":',
        "test_muon_iterates_in_fp32_in_every_way",
    ),
]

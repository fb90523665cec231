"""The C kernels are built when they are asked for and at no other time, and where they cannot be torch computes."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moe.kernels import native
from moe.kernels.processor import processor, using


def test_kernels_are_there_where_a_compiler_is(kernels_built: str) -> None:
    assert native.available() == (kernels_built == "")
    assert native.reason() == ("" if native.available() else "not built: run `make native`")
    assert native.ready(torch.zeros(2, 2)) == native.available()
    assert not native.ready(torch.zeros(2, 2, dtype=torch.float64))
    assert not native.ready(torch.zeros(2, 2), torch.zeros(2, 3).t())


def test_they_can_be_switched_off(kernels: None) -> None:
    with using(replace(processor(), kernels=False)):
        assert not native.available() and native.reason() == "switched off by CONCLAVE_PROCESSOR"
        assert not native.ready(torch.zeros(2, 2))
    assert native.available()


def test_nothing_is_compiled_at_run_time(kernels_built: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._load.cache_clear()
    assert not native.available() and native.reason() == "not built: run `make native`"
    assert list(tmp_path.iterdir()) == []


def test_a_failed_build_says_why_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native.build() == "no C compiler"
    compiler = tmp_path / "cc"
    compiler.write_text("#!/bin/sh\necho 'native.c: this machine has no OpenMP' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert native.build() == f"{compiler} failed: native.c: this machine has no OpenMP"
    assert list((tmp_path / "conclave").iterdir()) == []


def test_two_may_build_at_once(kernels: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: native.build(), range(2))) == ["", ""]
    assert list((tmp_path / "conclave").iterdir()) == [native.built()]


PLANTED = [  # promise, file, right code, bug, test
    (
        "nothing is compiled during a run",
        "moe/kernels/native.py",
        "if not built().exists():",
        "if build():",
        "test_nothing_is_compiled_at_run_time",
    ),
]

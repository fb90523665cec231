"""A config whose run lies in a folder of the test's own."""

from pathlib import Path

import pytest

from conf.knobs.running import Run
from conf.schema import Config


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    return Config(run=Run(dir=str(tmp_path), name="r", seed=7))

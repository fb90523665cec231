"""What names a run and throws its dice."""

import pytest

from conf.entry import compose
from conf.errors import InputError


@pytest.mark.parametrize(("seed", "instead"), [(-1, 2**32 - 1), (2**32, 0), (2**62, 0)])
def test_a_seed_that_some_generator_would_not_take_is_refused(seed: int, instead: int) -> None:
    with pytest.raises(InputError, match=rf"^run.seed={seed} must lie in \[0, 4294967295\]; try run.seed={instead}$"):
        compose([f"run.seed={seed}"])
    assert compose([f"run.seed={2**32 - 1}"]).run.seed == 2**32 - 1


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a seed that some generator would not take is refused",
        "conf/knobs/running.py",
        "0 <= self.seed < 2**32",
        "True",
        None,
    ),
]

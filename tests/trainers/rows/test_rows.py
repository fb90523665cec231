"""What a set of rows holds on disk, whatever it was given."""

from pathlib import Path

import numpy as np

from trainers.rows.packing import Row
from trainers.rows.rows import Rows, write_rows


def test_rows_of_other_types_are_what_a_set_promises(tmp_path: Path) -> None:
    row = Row(np.array([5, 6, 0]), np.array([1.0, 1.0, 0.0]), np.array([False, True, False]))
    write_rows(tmp_path, [row], row_length=3, rows_per_shard=7, meta={"tokenizer": "abc"})
    found = Rows(tmp_path).fetch(np.array([0]))
    assert {name: values.tolist() for name, values in found.items()} == {
        "tokens": [[5, 6, 0]],
        "segments": [[1, 1, 0]],
        "loss": [[0, 1, 0]],
    }


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a set's columns are of the types that it promises",
        "trainers/rows/rows.py",
        "for row in shard]).astype(kind) for name, kind",
        "for row in shard]) for name, kind",
        None,
    ),
]

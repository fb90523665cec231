"""The way through the rows says which step had which rows, whatever was gone back to, and in which steps a row was."""

import json
import shutil
from pathlib import Path

from conf.knobs.training import Sft
from trainers.rows.mixture import Course, Phase
from trainers.rows.packing import pack
from trainers.rows.rows import write_rows
from trainers.rows.way import Way, rows_of


def stage(place: Path, *metrics: dict[str, object]) -> tuple[Way, Path]:
    """Two sets of rows, each row with two documents; a batch that grows from 2 rows to 4."""
    sets = []
    for number, count in enumerate((10, 7)):
        rows = pack([([1] * 4, [1] * 4)] * (2 * count), 8)
        write_rows(place / "rows" / str(number), rows, row_length=8, rows_per_shard=4, meta={"tokenizer": "none"})
        sets.append(place / "rows" / str(number))
    course = Course(tuple(sets), (Phase(12, (1.0, 0.0)), Phase(0, (0.5, 0.5))))
    way = Way(course, 3, Sft(steps=8, batch_rows=4, ramp=0.5, ramp_from=0.5))
    way.write(place)
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return way, place


def test_a_way_is_read_as_it_was_written_and_moves_with_its_run(tmp_path: Path) -> None:
    way, folder = stage(tmp_path / "a", {"step": 8, "position": 27.0})
    seen = [list(way.rows_at(folder, step)) for step in range(1, 9)]
    shutil.move(tmp_path / "a", tmp_path / "b")
    moved = Way.of(tmp_path / "b")
    assert moved is not None and moved.seed == 3 and moved.course.phases == way.course.phases
    again = [list(moved.rows_at(tmp_path / "b", step)) for step in range(1, 9)]
    assert [[row[1:] for row in rows] for rows in again] == [[row[1:] for row in rows] for rows in seen]
    assert Way.of(tmp_path) is None


def test_a_step_has_the_rows_that_the_course_gives_it_and_a_row_its_steps(tmp_path: Path) -> None:
    way, folder = stage(tmp_path, {"step": 5, "position": 15.0}, {"step": 8, "position": 27.0})
    sizes = [len(list(way.rows_at(folder, step))) for step in range(1, 10)]
    assert sizes == [2, 2, 3, 4, 4, 4, 4, 4, 0]  # of a growing batch; there is no ninth step
    places = way.course.places(3, 0, sum(sizes)).tolist()
    ends = [sum(sizes[:step]) for step in range(10)]
    for number, row in {(number, row) for number, row in places}:
        came = [at for at, place in enumerate(places) if place == [number, row]]
        steps = sorted({next(step for step in range(1, 9) if at < ends[step]) for at in came})
        assert way.steps(folder, {number: [row]}) == steps
    (packed, row, documents), *_ = way.rows_at(folder, 1)
    assert packed == folder / "rows" / "0" and rows_of(packed, [documents[0]]) == [row]


def test_rows_that_a_rollback_left_out_were_in_no_step(tmp_path: Path) -> None:
    # as without it up to step 4, which is gone back to from step 6: positions 11 to 19 are left out for good
    rolled = {"step": 4, "incident": "from step 6 back to step 4: loss 9 is 20 deviations above"}
    way, folder = stage(
        tmp_path, {"step": 3, "position": 7.0}, rolled, {"step": 8, "position": 35.0},
        {"step": 8, "incident": "step 7 left out: loss 9 is 20 deviations above"},
    )  # fmt: skip
    begins, refused = way.begins([json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()])
    assert begins.tolist() == [0, 2, 4, 7, 19, 23, 27, 31, 35] and refused == {7}
    places = way.course.places(3, 0, 35).tolist()
    taken = [range(0, 2), range(2, 4), range(4, 7), range(7, 11), *(range(at, at + 4) for at in (19, 23, 27, 31))]
    for step, positions in enumerate(taken, 1):
        rows = [(packed.name, row) for packed, row, _ in way.rows_at(folder, step)]
        assert rows == [(str(places[at][0]), places[at][1]) for at in positions]
    for number, row in {(number, row) for number, row in places}:
        steps = [n for n, at in enumerate(taken, 1) if n != 7 and [number, row] in [places[one] for one in at]]
        assert way.steps(folder, {number: [row]}) == steps


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "rows that a rollback left out are in no step's list",
        "trainers/rows/way.py",
        "                shift[mark : int(found[1])] = now\n                mark = int(found[1])\n",
        "                pass\n",
        "test_rows_that_a_rollback_left_out_were_in_no_step",
    ),
    (
        "a step that was refused has taught nothing",
        "trainers/rows/way.py",
        "for one in inside} - refused)",
        "for one in inside})",
        "test_rows_that_a_rollback_left_out_were_in_no_step",
    ),
]

"""The seam: a sample's line and back, and what a hash depends on."""

from moe.tasks.task import Sample, hashed, query

SAMPLE = Sample(
    id="a-1",
    task="sums",
    messages=[{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}],
    label="5",
    fields={"choices": ["4", "5"]},
)


def test_a_sample_survives_its_line() -> None:
    assert Sample.of(SAMPLE.line) == SAMPLE
    assert SAMPLE.line["choices"] == ["4", "5"] and "label" not in query(Sample.of({**SAMPLE.line, "label": None})).line


def test_a_query_is_the_sample_without_its_answer() -> None:
    asked = query(SAMPLE)
    assert asked.messages == SAMPLE.messages[:1] and (asked.id, asked.label) == ("a-1", "5")
    assert asked.prompt == SAMPLE.prompt == "2 + 3?"


def test_a_hash_hangs_on_seed_purpose_and_name() -> None:
    assert hashed(0, "mix", "a") == hashed(0, "mix", "a") < 2**64
    assert len({hashed(seed, purpose, name) for seed in (0, 1) for purpose in "xy" for name in ("a", 1)}) == 8


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "choices hang on the seed",
        "moe/tasks/task.py",
        'f"{seed}:{purpose}:{name}"',
        'f"{purpose}:{name}"',
        "test_a_hash_hangs_on_seed_purpose_and_name",
    ),
]

"""What a change of measurement, or of the version that made a stage, does to it."""

import time

import pytest

from cluster.agreement import product
from cluster.run import Stage, open_stage, read_manifest
from cluster.storage import read_json, sha256, write_manifest
from conf.errors import InputError
from conf.schema import Config
from tests.cluster.test_run import make


def measure(cfg: Config, prompts: int, *, fails: bool = False) -> Stage:
    """A stage that makes `out` and measures so many answers."""
    settings = {"optim": cfg.optim, "evaluate.prompts": prompts}
    with open_stage(cfg, "chat", reads=[], settings=settings, measured=["answers.json"]) as stage:
        if not stage.done:
            if not stage.made:
                (stage.folder / "out").write_text(f"made {time.time_ns()}")
            (stage.folder / "answers.json").write_text(str(prompts))
            if fails:
                raise KeyboardInterrupt
            stage.finish({"answers": prompts})
    return stage


def test_a_finished_stage_is_measured_again_and_what_reads_it_stays(
    cfg: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = measure(cfg, 5).folder
    made, before = (folder / "out").read_text(), read_manifest(folder)
    reader = make(cfg, "ranked", reads=("chat",))
    kept = (reader.folder / "manifest.json").read_bytes()
    assert measure(cfg, 9).metrics == {"answers": 9}
    assert capsys.readouterr().out == "chat: measured again: evaluate.prompts=5, now 9\n"
    after = read_manifest(folder)
    assert (folder / "out").read_text() == made and after["metrics"] == {"answers": 9}
    assert after["config"]["evaluate.prompts"] == 9
    assert [after[name] for name in ("product", "code", "seconds")] == [
        before[name] for name in ("product", "code", "seconds")
    ]
    assert after["files"]["answers.json"] != before["files"]["answers.json"]
    assert make(cfg, "ranked", reads=("chat",)).done and (reader.folder / "manifest.json").read_bytes() == kept
    # killed while it measures: what it made is there, and nothing is taken for finished
    with pytest.raises(KeyboardInterrupt):
        measure(cfg, 7, fails=True)
    assert not (folder / "manifest.json").exists()
    assert measure(cfg, 7).metrics == {"answers": 7} and (folder / "out").read_text() == made
    assert read_manifest(folder)["product"] == before["product"]
    with pytest.raises(KeyboardInterrupt):
        measure(cfg, 8, fails=True)
    (folder / "out").write_text("x" * len(made))
    with pytest.raises(InputError, match="chat/out was changed after it was written"):
        measure(cfg, 8)


def test_the_product_is_the_same_however_it_was_measured(cfg: Config) -> None:
    settings = {"config": {"evaluate.prompts": 5, "optim": {"lr": 1.0}}, "stage": "chat"}
    files = {"out": "1", "answers.json": "2"}
    assert product(settings, files, ["answers.json"]) == product(
        {"config": {"evaluate.prompts": 9, "optim": {"lr": 1.0}}, "stage": "chat"},
        files | {"answers.json": "3"},
        ["answers.json"],
    )
    assert product(settings, files, ["answers.json"]) != product(settings, files | {"out": "2"}, ["answers.json"])
    other = {"config": {"evaluate.prompts": 5, "optim": {"lr": 2.0}}, "stage": "chat"}
    assert product(settings, files, ["answers.json"]) != product(other, files, ["answers.json"])


def test_what_an_older_version_made_is_measured_again_too(cfg: Config) -> None:
    folder = measure(cfg, 5).folder
    old = read_json(folder / "manifest.json")
    write_manifest(folder, {name: value for name, value in old.items() if name not in ("product", "sealed")})
    reader = make(cfg, "ranked", reads=("chat",))
    assert read_manifest(reader.folder)["inputs"]["chat"] == sha256(folder / "manifest.json")
    assert measure(cfg, 9).metrics == {"answers": 9}
    assert make(cfg, "ranked", reads=("chat",)).metrics == reader.metrics


def test_a_knob_that_is_newer_than_a_stage_is_as_it_was_unless_it_is_set(cfg: Config) -> None:
    folder = make(cfg).folder
    old = read_json(folder / "manifest.json")
    del old["config"]["optim"]["beta2"], old["sealed"]
    write_manifest(folder, old)
    assert make(cfg).done
    cfg.optim.beta2 = 0.9
    with pytest.raises(InputError, match=r"made with optim\.beta2=none, now optim\.beta2=0\.9"):
        make(cfg)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a newer knob that is set is another setting",
        "cluster/agreement.py",
        "return knob in knobs() and value == plain(knobs()[knob][0])",
        "return True",
        "test_a_knob_that_is_newer_than_a_stage_is_as_it_was_unless_it_is_set",
    ),
    (
        "what a stage is known by does not hang on its measurement",
        "cluster/agreement.py",
        "for name, digest in files.items() if name not in measured}",
        "for name, digest in files.items()}",
        "test_the_product_is_the_same_however_it_was_measured",
    ),
    (
        "a stage that is measured again keeps what it is known by",
        "cluster/run.py",
        'kept["product"] = key(folder)',
        'kept["product"] = "new"',
        None,
    ),
    (
        "what was made is looked at before it is measured",
        "cluster/agreement.py",
        'verify_files(folder, before["made"])',
        "pass",
        None,
    ),
]

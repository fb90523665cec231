"""What is to be forgotten goes with its copies, stays away, and every stage that has seen it is named."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.run import open_stage
from conf.errors import InputError
from conf.knobs.running import Run
from conf.knobs.text import Corpus, Forget
from conf.knobs.training import Pretrain
from conf.schema import Config
from tests.trainers.clean.direct import collected
from trainers import forget
from trainers.clean.ledger import by_id, by_place, with_copies
from trainers.files.forgotten import FORGOTTEN, Forgotten
from trainers.rows.mixture import Course
from trainers.rows.packing import Row
from trainers.rows.rows import order, write_rows
from trainers.rows.way import Way
from trainers.trail.seen import Wanted, seen_by

SECRET = "王小明住在长安街十号，电话是一三八零零零零零零零零，他说过的话不想留下来。"
TEXTS = ["".join(chr(0x4E00 + (997 * n + 131 * k) % 5000) for k in range(30)) for n in range(20)]


def made(cfg: Config, name: str, reads: list[str], settings: dict[str, Any], build: Callable[[Path], object]) -> None:
    with open_stage(cfg, name, reads=reads, settings=settings) as stage:
        if not stage.done:
            build(stage.folder)
            stage.finish({})


def corpus(cfg: Config, stage: str = "corpus") -> None:
    """As the job does, without Ray."""
    assert stage == "corpus"
    path = cfg.run.folder / FORGOTTEN
    settings: dict[str, Any] = {"corpus": cfg.corpus}
    if left := Forgotten.of(path).version:
        settings["forgotten"] = {"version": left}
    made(cfg, "corpus", [], settings, lambda folder: collected(folder, cfg.corpus, forgotten=str(path)))


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    near = SECRET[:-3] + "。"
    texts = [*TEXTS[:5], SECRET, *TEXTS[5:10], near, *TEXTS[10:], SECRET]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts), "utf-8")
    cfg = Config(
        run=Run(name="r", dir=str(tmp_path / "runs")),
        corpus=Corpus(files=[str(path)], near=0.5, val_fraction=0, test_fraction=0),
    )
    corpus(cfg)
    return cfg


def stages(cfg: Config) -> None:
    """tokens and base: a document a row, rows of two steps."""
    rows = [Row(np.ones(4), np.ones(4), np.ones(4), documents=(n,)) for n in range(21)]
    where: dict[str, Any] = {"row_length": 4, "rows_per_shard": 8, "meta": {"tokenizer": "t"}}
    made(cfg, "tokens", ["corpus"], {}, lambda folder: write_rows(folder / "train", rows, **where))
    settings = {"pretrain": asdict(Pretrain(steps=12, batch_rows=2)), "model": cfg.model}

    def base(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights")
        fit = Pretrain(steps=12, batch_rows=2)
        Way(Course.of(cfg.run.folder / "tokens" / "train"), 0, fit).write(folder)
        (folder / "metrics.jsonl").write_text('{"step": 12, "position": 24.0}\n')

    made(cfg, "base", ["tokens"], settings, base)


def texts_of(cfg: Config) -> list[str]:
    return pq.read_table(cfg.run.folder / "corpus" / "train-00000.parquet")["text"].to_pylist()


def test_copies_go_along(cfg: Config) -> None:
    folder = cfg.run.folder / "corpus"
    assert with_copies(folder, [5]) == with_copies(folder, [22]) == with_copies(folder, [11]) == [5, 11, 22]
    assert with_copies(folder, [0]) == [0]
    assert [life["step"] for n in (5, 11, 22) for life in by_id(folder, n)] == ["", "near", "exact"]


def test_what_is_forgotten_is_gone_with_its_copies_and_stays_away(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainers.forget.make", corpus)
    stages(cfg)
    assert texts_of(cfg).count(SECRET) == 1
    # with other words than the corpus was made with: it is the same corpus but for what goes
    words = replace(cfg, corpus=Corpus(), forget=Forget(records=["x.jsonl:6"]))
    told = forget.main(words)
    assert sum(line.startswith("to be forgotten: ") for line in told) == 3
    assert "2 of them because they are copies of the others" in told
    came = [n + 1 for n in range(12) if 5 in order(21, 0, 0, 24)[2 * n : 2 * n + 2]]
    steps = f"step{'s' * (len(came) > 1)} {', '.join(map(str, came))}"
    assert f"seen by base: trained on in {steps}; made from tokens" in told
    assert "seen by tokens: row 5 of tokens/train" in told
    assert texts_of(cfg) == TEXTS
    # nowhere in the run but in what the other stages made
    assert [path for path in cfg.run.folder.iterdir() if "replaced" in path.name] == []
    for path in [*(cfg.run.folder / "corpus").glob("ledger*"), cfg.run.folder / FORGOTTEN]:
        content = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_text("utf-8")
        assert "王小明" not in content
    life = next(by_place(cfg.run.folder / "corpus", "x.jsonl:6"))
    assert (life["step"], life["rule"], life["start"]) == ("left out", "to be forgotten", "")
    # in another file, and in another place
    other = Path(cfg.corpus.files[0]).with_name("y.jsonl")
    other.write_text(json.dumps({"text": SECRET}, ensure_ascii=False) + '\n{"text": "b"}\n', "utf-8")
    corpus(replace(cfg, corpus=replace(cfg.corpus, files=[str(other)]), run=replace(cfg.run, rebuild=True)))
    assert texts_of(cfg) == ["b"]
    with pytest.raises(InputError, match="made another|made with|made from"):
        corpus(cfg)


def test_other_runs_that_began_with_its_models_are_named(cfg: Config) -> None:
    stages(cfg)
    weights = json.loads((cfg.run.folder / "base" / "manifest.json").read_text())["files"]["model.safetensors"]
    other = replace(cfg, run=replace(cfg.run, name="other"))
    parent = {"parent": {"model": {"model.safetensors": weights}}}
    made(other, "chat", [], parent, lambda folder: (folder / "x").write_bytes(b"x"))
    wanted = Wanted.of(cfg.run.folder, list(by_id(cfg.run.folder / "corpus", 5)))
    told = seen_by(cfg.run.folder, wanted)
    assert told[-1] == f"seen by {other.run.folder / 'chat'}: it began with a model of this run"
    assert seen_by(cfg.run.folder, Wanted.of(cfg.run.folder, [])) == [
        "no document of the corpus: nothing has seen them"
    ]


def test_what_is_not_there_is_named(cfg: Config) -> None:
    folder = cfg.run.folder / "corpus"
    for given, message in (
        (Forget(), "say which records: 'forget.records="),
        (Forget(records=["x.jsonl:600"]), r"forget\.records=x\.jsonl:600: .* has read no such record"),
        (Forget(records=["x.jsonl"]), r"forget\.records=x\.jsonl: must be file:line"),
        (Forget(ids=[600]), r"forget\.ids=600: .* has read no such record"),
    ):
        with pytest.raises(InputError, match=message):
            forget.asked(replace(cfg, forget=given), folder)
    (cfg.run.folder / FORGOTTEN).write_text("{")
    with pytest.raises(InputError, match="damaged .*; what a run has to forget must not get lost"):
        Forgotten.of(cfg.run.folder / FORGOTTEN)


@pytest.mark.ray
def test_the_corpus_stage_obeys_the_list(ray_cluster: None, cfg: Config) -> None:
    forget.main(replace(cfg, forget=Forget(ids=[11])))
    assert texts_of(cfg) == TEXTS


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "no copy takes the place of what is forgotten",
        "trainers/clean/ledger.py",
        "if len(more := found | set(touched.ravel().tolist())) == len(found):",
        "if len(more := found) == len(found):",
        "test_copies_go_along",
    ),
    (
        "what is forgotten stays away in any file",
        "trainers/clean/shards.py",
        "if isinstance(one, Document) and forgotten.knows(one.text)",
        "if False",
        "test_what_is_forgotten_is_gone_with_its_copies_and_stays_away",
    ),
    (
        "what is forgotten is not read at all",
        "trainers/clean/shards.py",
        "if forgotten.has(file, line):",
        "if False:",
        "test_what_is_forgotten_is_gone_with_its_copies_and_stays_away",
    ),
    (
        "no corpus that was set aside keeps what is forgotten",
        "trainers/forget.py",
        "        shutil.rmtree(old)",
        "        pass",
        "test_what_is_forgotten_is_gone_with_its_copies_and_stays_away",
    ),
    (
        "the steps that have seen a document are named",
        "trainers/rows/way.py",
        "sorted({one + 1 for one in inside} - refused)",
        "sorted({one for one in inside} - refused)",
        "test_what_is_forgotten_is_gone_with_its_copies_and_stays_away",
    ),
    (
        "runs that began with a model that saw it are named",
        "trainers/trail/seen.py",
        "weights & set(model.values())",
        "weights & set(model)",
        "test_other_runs_that_began_with_its_models_are_named",
    ),
]

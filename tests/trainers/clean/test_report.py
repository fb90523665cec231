"""The corpus's report and the life of a record, made of one small corpus in which everything happens."""

import json
import re

import pytest

from cluster.run import open_stage
from conf.errors import InputError
from conf.knobs.running import Run
from conf.knobs.text import Corpus, Why
from conf.schema import Config
from tests.cluster.test_report import Tags
from tests.trainers.clean.direct import collected
from trainers.clean.page import table
from trainers.why import main

POEM = "床前明月光，疑是地上霜。举头望明月，低头思故乡。<b>白日依山尽，黄河入海流。</b>欲穷千里目，更上一层楼。"


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    place = tmp_path_factory.mktemp("run")
    texts = [
        POEM,
        "\u200b",
        "短",
        POEM,
        POEM.replace("故", "家"),
        "写信给 a@b.cn，或者打电话给 13912345678，谢谢你们了！",
    ]
    (place / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts) + "bad\n")
    (place / "b.jsonl").write_text(json.dumps({"text": "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。"}) + "\n")
    corpus = Corpus(
        files=[str(place / "a.jsonl"), str(place / "b.jsonl")],
        steps=["rules", "pii"],
        near=0.5,
        max_bad_fraction=0.5,
        val_fraction=0,
        test_fraction=0,
    )
    config = Config(run=Run(name="r", dir=str(place)), corpus=corpus)
    with open_stage(config, "corpus", reads=[], settings={"corpus": corpus}) as stage:
        stage.finish(collected(stage.folder, corpus))
    return config


def test_the_report_has_every_step_and_shows_what_went(cfg: Config) -> None:
    folder = cfg.run.folder / "corpus"
    told = json.loads((folder / "report.json").read_text())
    assert told["totals"]["read"] == 8 and told["totals"]["near_duplicates"] == 1
    by_step = {step["name"]: step for step in told["steps"]}
    assert [(name, step["documents"], step["kept"]) for name, step in by_step.items()] == [
        ("rules", 6, 5), ("pii", 5, 5), ("exact copies", 5, 4), ("near copies", 4, 3),
    ]  # fmt: skip
    assert by_step["pii"]["changed"] == {"mail": 1, "phone": 1}
    assert told["rejected"] == {
        "empty": {"nothing to see": 1}, "exact": {"copy": 1}, "near": {"near copy": 1},
        "read": {"no record": 1}, "rules": {"characters": 1},
    }  # fmt: skip
    (short,) = told["samples"]["rules: characters"]
    assert (short["file"], short["line"], short["value"], short["limit"], short["start"]) == (
        cfg.corpus.files[0], 3, 1.0, 16.0, "短",
    )  # fmt: skip
    (pair,) = told["pairs"]
    assert (pair["stays"]["line"], pair["gone"]["line"]) == (1, 5) and pair["gone"]["text"] == POEM.replace("故", "家")
    first = told["files"][cfg.corpus.files[0]]
    assert first == {
        "records": 7,
        "kept": 2,
        "empty": 1,
        "rules": 1,
        "exact": 1,
        "near": 1,
        "read": 1,
        "characters": first["characters"],
        "characters_in": first["characters_in"],
    }
    a, b = told["sources"]["a"], told["sources"]["b"]
    assert (a["documents"], a["kept"], b["documents"], b["kept"]) == (5, 2, 1, 1)
    assert a["characters_in"] > a["characters"] > 0 and b["characters_in"] == b["characters"]
    assert [(step["name"], step["documents"], step["kept"]) for step in told["flows"]["source"]["a"]] == [
        ("rules", 5, 4), ("pii", 4, 4), ("exact", 4, 3), ("near", 3, 2),
    ]  # fmt: skip
    ends = told["flows"]["source"]["a"][-1]["kept_characters"], told["flows"]["source"]["b"][-1]["kept_characters"]
    assert ends == (a["characters"], b["characters"])  # what comes out of the last step is what is kept
    assert told["flows"]["language"]["zh"][0]["documents"] == 6
    assert told["source_of"] == {file: name for file, name in zip(cfg.corpus.files, "ab", strict=True)}
    html = (folder / "report.html").read_text()
    tags = Tags()
    tags.feed(html)
    tags.close()
    assert "<b>白日" not in html and "&lt;b&gt;白日" in html and 'href="../report.html"' in html
    assert table(["a", "b"], [["<x>", 1234]]).count("&lt;x&gt;") == 1


def test_the_life_of_a_record(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    def life(**asked: object) -> str:
        cfg.why = Why(**asked)  # type: ignore[arg-type]
        main(cfg)
        return re.sub(r"\S*/(?=[ab]\.jsonl)", "", capsys.readouterr().out)

    assert life(record="a.jsonl:3").splitlines()[1:3] == [
        "  read: 1 characters, language zh",
        "  rules: rejected by characters: 1, bound 16",
    ]
    assert "  exact copy of a.jsonl:1, record 0" in life(record="a.jsonl:4")
    assert "  near copy of a.jsonl:1, record 0, likeness 0." in life(id=4)
    kept = life(record=cfg.corpus.files[0] + ":6")
    assert (
        "  rules: kept\n  pii: kept\n  changed: mail 1, phone 1\n  kept: row 1 of train-00000.parquet, document 1"
        in kept
    )
    assert "写信给 [mail]" in kept
    assert "read: no record: broken JSON" in life(record="a.jsonl:7") and "nothing to see" in life(id=1)
    for asked, words in {
        "a.jsonl:9": "has read no such record", "a.jsonl": "must be file:line", "": "say which record",
    }.items():  # fmt: skip
        with pytest.raises(InputError, match=words):
            life(record=asked)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what comes out of one step goes into the next",
        "trainers/clean/flow.py",
        "        left = after\n",
        "",
        "test_the_report_has_every_step_and_shows_what_went",
    ),
    (
        "the corpus report shows a text as text",
        "trainers/clean/page.py",
        'return escape(text.strip()).replace("\\n", "<br>") or',
        'return text.strip().replace("\\n", "<br>") or',
        None,
    ),
    (
        "the life of a copy names whose copy it is",
        "trainers/why.py",
        '(twin,) = by_id(folder, life["twin"])',
        '(twin,) = by_id(folder, life["id"])',
        None,
    ),
    (
        "a life ends at the step that rejected",
        "trainers/why.py",
        "        if name == step:\n",
        "        if False:\n",
        None,
    ),
]

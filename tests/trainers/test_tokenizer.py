import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.run import open_stage
from conf.entry import compose
from conf.errors import InputError
from conf.schema import Config
from moe.text.chat import prompt_ids
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from tests.moe.text.foreign_tokenizers import smollm
from tests.moe.text.parents import parent as chat_parent
from trainers import tokenizer

TRAIN = ["春眠不觉晓", "处处闻啼鸟", "春风春雨"] * 4
VAL = ["春风", "cat 春"]


def config(folder: Path, *words: str) -> Config:
    """A run whose corpus stage is done."""
    cfg = compose([f"run.dir={folder}", *words])
    with open_stage(cfg, "corpus", reads=[], settings={}) as stage:
        if not stage.done:
            for split, texts in (("train", TRAIN), ("val", VAL)):
                pq.write_table(pa.table({"text": texts}), stage.folder / f"{split}-0.parquet")
            stage.finish({})
    return cfg


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    folder = tmp_path / "parent"
    folder.mkdir()
    smollm().save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("knob", ["tokenizer.path", "parent.model"])
def test_an_existing_tokenizer_is_taken_as_it_is(tmp_path: Path, parent: Path, knob: str) -> None:
    cfg = config(tmp_path, f"{knob}={parent}")
    metrics = tokenizer.main(cfg)
    taken = Tokenizer.load(parent)
    assert Tokenizer.load(cfg.run.folder / "tokenizer").digest == taken.digest
    assert metrics["tokens_per_character"] == sum(len(taken.encode(text)) for text in VAL) / 7
    assert "tokens_per_character_before" not in metrics


def test_a_parent_keeps_its_chat_format_and_its_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = chat_parent("llama3", tmp_path / "llama3")
    cfg = config(tmp_path, f"parent.model={own}", "tokenizer.extend=2")
    tokenizer.main(cfg)
    assert "ChatML" not in capsys.readouterr().out
    before, after = Tokenizer.load(own), Tokenizer.load(cfg.run.folder / "tokenizer")
    asked = [{"role": "user", "content": "the cat"}]
    assert after.size > before.size and prompt_ids(after, asked) == prompt_ids(before, asked)
    base = Defaults.of(after, chat=False, also=before.stop)
    assert [after.specials[index] for index in base.stop] == ["<|end_of_text|>", "<|eot_id|>"]
    assert json.loads(base.files["tokenizer_config.json"])["chat_template"] == before.form.template

    changed = (own / "tokenizer_config.json").read_text("utf-8").replace("| trim", "")
    (own / "tokenizer_config.json").write_text(changed, "utf-8")
    with pytest.raises(InputError, match="template"):  # the parent is another one now
        tokenizer.main(cfg)


def test_what_replaces_a_format_that_is_not_there_is_said_once(
    tmp_path: Path, parent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer.main(config(tmp_path, f"parent.model={parent}"))
    assert capsys.readouterr().out.count(f"{parent}: no chat template; conversations are written in ChatML") == 1


def test_it_is_extended_by_characters_and_by_a_second_one(
    tmp_path: Path, parent: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Tokenizer.train(["不觉", "不觉"], compose(["tokenizer.isolate_han=false"]).tokenizer).save(tmp_path / "second")
    cfg = config(tmp_path, f"parent.model={parent}", f"tokenizer.merge={tmp_path / 'second'}", "tokenizer.extend=2")
    metrics = tokenizer.main(cfg)
    before, after = Tokenizer.load(parent), Tokenizer.load(cfg.run.folder / "tokenizer")
    costs = {char: len(after.encode(char)) for char in "春处不觉眠"}
    assert costs == {"春": 1, "处": 1, "不": 1, "觉": 1, "眠": 3}
    assert metrics["vocab_size"] == after.size == before.size + metrics["pieces_added"]
    assert metrics["tokens_per_character_before"] == pytest.approx(sum(len(before.encode(text)) for text in VAL) / 7)
    assert metrics["tokens_per_character"] == pytest.approx(sum(len(after.encode(text)) for text in VAL) / 7)
    assert metrics["left_out_duplicate"] > 100
    assert f"{metrics['pieces_added']} pieces added: " in capsys.readouterr().out
    assert tokenizer.main(cfg) == metrics  # done: nothing is made again

    described = json.loads((parent / "tokenizer.json").read_text("utf-8"))
    described["model"]["merges"].pop()
    (parent / "tokenizer.json").write_text(json.dumps(described), "utf-8")
    with pytest.raises(InputError, match="taken"):  # the parent is another one now
        tokenizer.main(cfg)


@pytest.mark.parametrize("knob", ["tokenizer.extend=5", "tokenizer.merge=somewhere"])
def test_nothing_to_extend_is_named(tmp_path: Path, knob: str) -> None:
    with pytest.raises(InputError, match="need an existing tokenizer; set tokenizer.path or parent.model"):
        tokenizer.main(config(tmp_path, knob))
    with pytest.raises(InputError, match="tokenizer.extend=-1 must not be negative"):
        compose(["tokenizer.extend=-1"])

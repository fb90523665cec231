"""What pretraining starts from, random weights or a parent, and the older mix that it may replay.

Planted bugs: a changed parent goes unnoticed, an older mix that is never drawn from.
"""

from pathlib import Path

import pytest
import torch

from conf.errors import InputError
from conf.knobs.model import Parent
from conf.knobs.running import Run
from conf.knobs.text import Tokens
from conf.knobs.training import Pretrain
from conf.schema import Config
from moe.decoder import new_decoder
from moe.formats import checkpoints
from moe.text.tokenizer import Tokenizer
from tests.moe.formats.foreign_models import VOCABULARY, foreign
from trainers.closing import sizes
from trainers.pretrain import course, decisive, first_weights, main, origin, replayed
from trainers.rows.packing import pack
from trainers.rows.rows import write_rows


def config(path: Path, *, row_length: int = 32, noise: float = 0.0) -> Config:
    parent = Parent(model=str(path), experts=4, top_k=2, noise=noise)
    return Config(parent=parent, tokens=Tokens(row_length=row_length))


def test_a_parent_is_known_by_what_its_files_hold(tmp_path: Path) -> None:
    here, there = foreign("llama", tmp_path / "here"), foreign("llama", tmp_path / "there")
    before = origin(config(here))
    assert before == origin(config(there))
    assert "model" not in before and before["parent"]["experts"] == 4
    assert before["parent"]["model"].keys() == {"config.json", "model.safetensors"}
    weights = there / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert origin(config(there)) != before
    assert origin(Config()) == {"model": Config().model}


def test_the_first_weights_are_the_upcycled_parent(tmp_path: Path) -> None:
    cfg = config(foreign("llama", tmp_path))
    model = first_weights(cfg, Tokenizer.load(tmp_path))
    assert model.cfg.experts == 4 and model.vocab_size == VOCABULARY
    again = checkpoints.new_from(cfg.parent, cfg.run.seed).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_added_vocabulary_gets_rows(tmp_path: Path) -> None:
    from moe.text.vocabulary import extend_with_characters

    cfg = config(foreign("llama", tmp_path))
    old = Tokenizer.load(tmp_path)
    characters = "".join(chr(0x4E00 + place) for place in range(80))
    new = extend_with_characters(old, [characters], 80)
    assert new.size > VOCABULARY
    model, parent = first_weights(cfg, new), first_weights(cfg, old)
    assert model.vocab_size == new.padded_size
    before, after = (one.model.embed_tokens.weight[: old.size] for one in (parent, model))
    assert torch.equal(before, after)


def test_what_a_parent_is_watched_by_decides_nothing() -> None:
    assert decisive(Pretrain()) == decisive(Pretrain(retention=["other.txt"], retention_rise=1.0))
    assert decisive(Pretrain()) != decisive(Pretrain(replay_share=0.2))


def rows(folder: Path, *, count: int, tokenizer: str = "same") -> Path:
    packed = pack((([number % 50] * 8, [1] * 8) for number in range(count)), 8)
    write_rows(folder, packed, row_length=8, rows_per_shard=64, meta={"tokenizer": tokenizer})
    return folder


def test_a_share_of_the_rows_is_of_the_older_mix(tmp_path: Path) -> None:
    new, old = rows(tmp_path / "new", count=200), rows(tmp_path / "old", count=30)
    assert course(new, Pretrain()).sets == (new,)
    mixed = course(new, Pretrain(replay=str(old), replay_share=0.25))
    mixed.check()
    assert mixed.sets == (new, old)
    drawn = mixed.places(0, 0, 1024)[:, 0]
    assert (drawn == 1).sum() == 256
    assert replayed(Pretrain()) == ""
    before = replayed(Pretrain(replay=str(old)))
    assert before == replayed(Pretrain(replay=str(rows(tmp_path / "same", count=30))))  # by what they hold
    assert before != replayed(Pretrain(replay=str(rows(tmp_path / "more", count=31))))


def test_an_older_mix_that_is_none_is_refused(tmp_path: Path) -> None:
    cfg = Config(run=Run(dir=str(tmp_path)), pretrain=Pretrain(replay=str(tmp_path / "void")))
    with pytest.raises(
        InputError, match=r"pretrain.replay=.*/void: no packed rows here \(rows.json is missing\); give"
    ):
        main(cfg)


def test_sizes_are_those_of_the_model(tmp_path: Path) -> None:
    cfg = Config().model
    model = new_decoder(cfg, 256)
    experts = cfg.layers * cfg.experts * 3 * cfg.hidden_size * cfg.expert_size
    whole = sum(parameter.numel() for parameter in model.parameters())
    assert sizes(model) == {"parameters": whole, "active_parameters": whole - experts * 3 // 4}


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a changed parent is noticed",
        "trainers/pretrain.py",
        "sha256(path) for path",
        "path.stat().st_size for path",
        None,
    ),
    (
        "the older mix is drawn from",
        "trainers/pretrain.py",
        "(1 - cfg.replay_share, cfg.replay_share)",
        "(1.0, 0.0)",
        None,
    ),
    (
        "a changed older mix is noticed",
        "trainers/pretrain.py",
        "return sha256(about)",
        "return str(len(cfg.replay) > 0)",
        None,
    ),
]

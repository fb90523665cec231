"""A stage that only measures what others have made: nobody is asked before it is made again."""

from pathlib import Path

import pytest

from cluster.run import open_stage
from conf.errors import InputError
from conf.knobs.running import Run
from conf.schema import Config


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    return Config(run=Run(dir=str(tmp_path), name="r", seed=7))


def make(cfg: Config, name: str, *reads: str, measures: bool = False) -> bool:
    """Whether the stage was done before."""
    with open_stage(cfg, name, reads=reads, settings={}, measures=measures) as stage:
        done = stage.done
        if not done:
            stage.finish({"read": len(reads)})
        assert stage.metrics == {"read": len(reads)}
        return done


def test_it_is_made_again_where_an_input_is_new_or_gone(cfg: Config, capsys: pytest.CaptureFixture[str]) -> None:
    make(cfg, "corpus")
    make(cfg, "tokenizer")
    assert not make(cfg, "compared", "corpus", measures=True) and make(cfg, "compared", "corpus", measures=True)
    assert not make(cfg, "compared", "corpus", "tokenizer", measures=True)
    assert make(cfg, "compared", "corpus", "tokenizer", measures=True)
    told = "compared: is made again: made from another tokenizer stage than the one that is there now\n"
    assert capsys.readouterr().out == told
    assert not make(cfg, "compared", "corpus", measures=True)
    assert "made from stage tokenizer, which it no longer reads" in capsys.readouterr().out
    assert not list(cfg.run.folder.glob("compared.*"))  # nothing was set aside


def test_any_other_stage_is_refused_there(cfg: Config) -> None:
    make(cfg, "corpus")
    make(cfg, "tokenizer")
    make(cfg, "tokens", "corpus")
    with pytest.raises(InputError, match=r"tokens: made from another tokenizer stage than .*; choose another run.name"):
        make(cfg, "tokens", "corpus", "tokenizer")


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what only measures is made again and not refused",
        "cluster/run.py",
        "if measures or not holds_work(folder):",
        "if not holds_work(folder):",
        None,
    ),
    (
        "a stage that is work is never made again unasked",
        "cluster/run.py",
        "if measures or not holds_work(folder):",
        "if True:",
        "test_any_other_stage_is_refused_there",
    ),
]

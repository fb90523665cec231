"""`python -m moe.convert`: any checkpoint in, proven files out, or nothing."""

import json
from pathlib import Path

import pytest
import tokenizers
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conf.errors import InputError
from conf.knobs.model import Convert, Form, Parent
from conf.schema import Config
from moe import convert
from moe.formats import checkpoints, gguf, hugging_face
from tests.moe.formats.foreign_models import DENSE, VOCABULARY, foreign

BOTH = [Form.hugging_face, Form.gguf]


def config(source: Path, target: Path, *, upcycle: bool, forms: list[Form] = BOTH, noise: float = 0.0) -> Config:
    return Config(
        convert=Convert(source=str(source), target=str(target), forms=forms, upcycle=upcycle),
        parent=Parent(experts=4, top_k=2, noise=noise),
    )


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mixtral", "qwen3_moe"])
def test_both_forms_are_written_and_certified(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = foreign(kind, tmp_path / "source"), tmp_path / "deep" / "target"
    report = convert.main(config(source, target, upcycle=kind in DENSE))
    assert json.loads((target / "certificate.json").read_text()) == report
    assert report["reference"] == "the source in transformers" and report["tokens"] == 64
    assert {"torch", "transformers", "gguf"} <= report["versions"].keys()
    assert [entry["form"] for entry in report["forms"]] == ["hugging_face", "gguf"]
    assert all(entry["max_logit_difference"] < 1e-4 for entry in report["forms"])
    assert f"{target} as gguf: the logits differ by at most" in capsys.readouterr().out
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    one, other = hugging_face.load(target), checkpoints.read(target / "model.gguf")
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert one.vocab_size == VOCABULARY  # a parent's vocabulary is not padded
    assert one.cfg.experts == 4
    written = json.loads((target / "config.json").read_text())
    assert (written["eos_token_id"], written["pad_token_id"]) == (2, 0)
    assert AutoTokenizer.from_pretrained(target)("the cat")["input_ids"] == _ids(source)
    theirs = AutoModelForCausalLM.from_pretrained(target)
    assert type(theirs).__name__ == ("Qwen3MoeForCausalLM" if kind.startswith("qwen3") else "MixtralForCausalLM")


def _ids(source: Path) -> list[int]:
    ids: list[int] = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json")).encode("the cat").ids
    return ids


def test_with_noise_the_mixture_itself_is_the_reference(tmp_path: Path) -> None:
    source = foreign("llama", tmp_path / "source")
    report = convert.main(config(source, tmp_path / "target", upcycle=True, noise=0.05))
    assert report["reference"] == "the mixture before it was written"
    assert all(entry["max_logit_difference"] < 1e-4 for entry in report["forms"])


def test_what_does_not_prove_right_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = foreign("mixtral", tmp_path / "source")
    monkeypatch.setattr(gguf, "neighbours", lambda rows, heads: rows)
    with pytest.raises(InputError, match="model.gguf: the logits differ by .*; rounding explains at most 1e-04"):
        convert.main(config(source, tmp_path / "target", upcycle=False))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_wrong_knobs_are_refused(tmp_path: Path) -> None:
    dense, mixture = foreign("llama", tmp_path / "dense"), foreign("mixtral", tmp_path / "mixture")
    target = tmp_path / "target"
    with pytest.raises(InputError, match="is dense; add convert.upcycle=true"):
        convert.main(config(dense, target, upcycle=False))
    with pytest.raises(InputError, match="is a mixture of experts already; drop convert.upcycle=true"):
        convert.main(config(mixture, target, upcycle=True))
    with pytest.raises(InputError, match="convert.target=.*dense is there already"):
        convert.main(config(mixture, dense, upcycle=False))
    with pytest.raises(InputError, match="convert.source=.*nowhere: no such folder or file"):
        convert.main(config(tmp_path / "nowhere", target, upcycle=False))
    with pytest.raises(InputError, match="convert.source is empty"):
        convert.main(Config())
    with pytest.raises(InputError, match=r"convert.forms=\[\] writes nothing"):
        convert.main(config(mixture, target, upcycle=False, forms=[]))
    assert not target.exists()


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an unproven conversion leaves nothing",
        "moe/convert.py",
        "shutil.rmtree(out, ignore_errors=True)",
        "pass",
        "test_what_does_not_prove_right_is_not_left_behind",
    ),
]

"""What goes out with a model, so that a tool that knows nothing of us ends where we end."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig

from conf.errors import InputError
from conf.knobs.text import Tokenizer as Settings
from moe.decoder import Decoder
from moe.formats import certificate, checkpoints, hugging_face
from moe.text.defaults import PLAIN, Defaults
from moe.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.train(["春眠不觉晓，处处闻啼鸟。", "hello world"] * 3, Settings(vocab_size=400))


@pytest.mark.parametrize("chat", [False, True])
def test_a_folder_says_what_ends_an_answer_and_how_to_sample(chat: bool, model: Decoder, tmp_path: Path) -> None:
    hugging_face.save(model, tmp_path, Defaults.of(TOKENIZER, chat=chat))
    ends = [TOKENIZER.im_end, TOKENIZER.eos] if chat else [TOKENIZER.eos]
    theirs = GenerationConfig.from_pretrained(tmp_path)
    assert theirs.eos_token_id == ends and theirs.pad_token_id == TOKENIZER.pad
    assert (theirs.do_sample, theirs.temperature, theirs.top_k, theirs.top_p) == (True, 1.0, 0, 1.0)
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == ends[0]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.model_max_length == model.cfg.context
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).endswith("<|im_end|>\n")


def test_what_a_checkpoint_says_is_kept(model: Decoder, tmp_path: Path) -> None:
    given = Defaults(TOKENIZER.files(), (3, 1), 0, 2, {"do_sample": True, "temperature": 0.6, "top_k": 20})
    hugging_face.save(model, tmp_path, given)
    again = checkpoints.defaults(tmp_path)
    assert (again.stop, again.pad, again.bos, again.sampling) == (given.stop, given.pad, given.bos, given.sampling)
    assert again.files["tokenizer.json"] == TOKENIZER.files()["tokenizer.json"]


def test_where_no_file_names_the_end_the_tokenizer_does(model: Decoder, tmp_path: Path) -> None:
    hugging_face.save(model, tmp_path, Defaults(TOKENIZER.files(), (), None))
    (tmp_path / "generation_config.json").unlink()
    found = checkpoints.defaults(tmp_path)
    assert found.stop == (TOKENIZER.im_end,) and found.sampling == PLAIN


def test_a_parent_keeps_its_ends() -> None:
    assert Defaults.of(TOKENIZER, chat=False, also=(7, TOKENIZER.eos)).stop == (TOKENIZER.eos, 7)


def test_weights_may_be_read_by_whom_the_rest_may(model: Decoder, tmp_path: Path) -> None:
    hugging_face.save(model, tmp_path, Defaults({}, (), None))
    modes = {name: (tmp_path / name).stat().st_mode for name in ("model.safetensors", "config.json")}
    assert modes["model.safetensors"] == modes["config.json"]


def test_a_folder_that_others_do_not_end_on_gets_no_certificate(model: Decoder, tmp_path: Path) -> None:
    hugging_face.save(model, tmp_path, Defaults({}, (3,), 0))
    reference = certificate.logits(model, certificate.batch(model.vocab_size))
    assert certificate.certify(tmp_path, reference, (3,))["ends"] == [3]
    with pytest.raises(InputError, match=r"transformers ends an answer on \[3\], and not on all of \[3, 4\]"):
        certificate.certify(tmp_path, reference, (3, 4))


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a folder says what ends an answer",
        "moe/formats/hugging_face.py",
        "config | defaults.ids)",
        "config)",
        None,
    ),
    (
        "transformers ends where a chat model ends",
        "moe/text/defaults.py",
        '"eos_token_id": list(self.stop) or None, **self.sampling',
        "**self.sampling",
        None,
    ),
]

"""GGUF files: what we write runs in llama.cpp, and what others wrote is read as it was.

Planted bugs: up before gate, q and k in the order of Hugging Face, bytes of a character lost.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from gguf import MODEL_ARCH, GGUFReader, GGUFWriter, TokenType, get_tensor_name_map
from transformers import AutoModelForCausalLM

from conf.errors import InputError
from conf.knobs.model import Model
from conf.knobs.text import Tokenizer as Settings
from moe.decoder import Decoder, new_decoder
from moe.formats import certificate, checkpoints, gguf, llama_cpp
from moe.text.defaults import Defaults
from moe.text.families import serialise
from moe.text.tokenizer import Tokenizer
from tests.moe.conftest import VOCABULARY
from tests.moe.formats.foreign_models import foreign
from tests.moe.text.foreign_tokenizers import FAMILIES, TEXTS

needs_llama_cpp = pytest.mark.skipif(not llama_cpp.installed(), reason="cyllama has no wheel for this machine")
POEM = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"
SAMPLES = [certificate.SAMPLE, POEM, "the cat  and\tthe hat, 2024 x", " the", "naïve café é\u0301 🌙🌙", *TEXTS[-1:]]


def own(*, isolate_han: bool = True) -> bytes:
    texts = [*TEXTS, *[POEM] * 3, *["naïve café"] * 9]
    return serialise(Tokenizer.train(texts, Settings(vocab_size=480, isolate_han=isolate_han)).description)


@pytest.fixture
def large(model: Decoder) -> Decoder:
    """The tiny model with room for a tokenizer."""
    return new_decoder(model.cfg, 512, seed=4).eval()


def test_the_order_of_rows_in_a_head() -> None:
    rows = torch.arange(16).view(16, 1)  # two heads of 8
    assert gguf.neighbours(rows, 2).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert torch.equal(gguf.halves(gguf.neighbours(rows, 2), 2), rows)


def test_what_is_written_is_read_bit_for_bit(large: Decoder, tmp_path: Path) -> None:
    gguf.write(large, tmp_path / "model.gguf", Defaults({"tokenizer.json": own()}, (), None), name="tiny")
    again = checkpoints.read(tmp_path / "model.gguf")
    # the file has no place for how a model is trained: those are transformers' defaults
    assert again.cfg == replace(large.cfg, init_std=0.02, balance_coef=0.001, z_coef=0.0)
    for (name, a), b in zip(again.state_dict().items(), large.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert checkpoints.tokenizer_files(tmp_path / "model.gguf")["tokenizer.json"] == own()


def test_other_programs_compute_our_logits(large: Decoder, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.gguf"
    gguf.write(large, path, Defaults({"tokenizer.json": own()}, (), None), name="tiny")
    reference = certificate.logits(large, certificate.batch(512))
    assert reference.abs().max() > 1
    entry = certificate.certify(path, reference)  # an error above 1e-4
    assert "it/s" not in capfd.readouterr().err  # no bars of a library's own
    assert entry["reader"] == ("transformers" if large.cfg.qk_norm else "moe.formats.gguf")
    if llama_cpp.installed():
        assert entry["llama_cpp"]["max_logit_difference"] < 1e-3
        assert entry["llama_cpp"]["tokenizer_agrees"]


@needs_llama_cpp
@pytest.mark.parametrize("family", ["own", "smollm", "llama2", "mistral"])
@pytest.mark.parametrize("adopted", [False, True])
def test_llama_cpp_cuts_text_into_our_ids(family: str, adopted: bool, tmp_path: Path) -> None:
    serialised = own() if family == "own" else FAMILIES[family]().to_str().encode()
    if adopted:
        serialised = serialise(Tokenizer(serialised).description)
    ours = tokenizers.Tokenizer.from_str(serialised.decode())
    ours.no_truncation()
    if adopted and family in ("llama2", "mistral"):  # for ChatML, llama.cpp puts no space: it would behind marks too
        ours.pre_tokenizer = None
    cfg = Model(hidden_size=32, layers=1, heads=2, kv_heads=1, head_dim=16, experts=2, top_k=1, expert_size=32)
    gguf.write(
        new_decoder(cfg, 512), tmp_path / "model.gguf", Defaults({"tokenizer.json": serialised}, (), None), name=family
    )
    # sentencepiece puts a space before a text that opens with one, too; Metaspace does not
    samples = [text for text in SAMPLES if not (family == "mistral" and text.startswith(" "))]
    with llama_cpp.opened(tmp_path / "model.gguf") as opened:
        for text in samples:
            assert opened.ids(text) == ours.encode(text, add_special_tokens=False).ids, text


def test_merging_characters_of_three_bytes_are_refused(large: Decoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="merges '.' with others, .* train with tokenizer.isolate_han=true"):
        gguf.write(
            large, tmp_path / "model.gguf", Defaults({"tokenizer.json": own(isolate_han=False)}, (), None), name="tiny"
        )


def test_a_splitter_that_llama_cpp_lacks_is_refused(large: Decoder, tmp_path: Path) -> None:
    files = {"tokenizer.json": FAMILIES["qwen"]().to_str().encode()}
    with pytest.raises(InputError, match="llama.cpp has no name for its pre_tokenizer"):
        gguf.write(large, tmp_path / "model.gguf", Defaults(files, (), None), name="tiny")
    with pytest.raises(InputError, match="tokenizer.json is missing beside the model"):
        gguf.write(large, tmp_path / "model.gguf", Defaults({}, (), None), name="tiny")


def test_a_tokenizer_larger_than_the_model_is_refused(model: Decoder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"has no row in a model of vocab_size={VOCABULARY}"):
        gguf.write(model, tmp_path / "model.gguf", Defaults({"tokenizer.json": own()}, (), None), name="tiny")


def dense_qwen3(folder: Path, path: Path, *, dtype: type = np.float32) -> None:
    """A .gguf file by other hands: names from the package's own table, the tokenizer as pieces and merges."""
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    cfg = theirs.config
    out = GGUFWriter(path, "qwen3")
    out.add_context_length(cfg.max_position_embeddings)
    out.add_embedding_length(cfg.hidden_size)
    out.add_block_count(cfg.num_hidden_layers)
    out.add_feed_forward_length(cfg.intermediate_size)
    out.add_head_count(cfg.num_attention_heads)
    out.add_head_count_kv(cfg.num_key_value_heads)
    out.add_key_length(cfg.head_dim)
    out.add_value_length(cfg.head_dim)
    out.add_rope_freq_base(cfg.rope_parameters["rope_theta"])
    out.add_layer_norm_rms_eps(cfg.rms_norm_eps)
    described = FAMILIES["smollm"]()
    pieces = [described.id_to_token(index) or f"[{index}]" for index in range(cfg.vocab_size)]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list(pieces)
    out.add_token_types([TokenType.CONTROL if index < 4 else TokenType.NORMAL for index in range(len(pieces))])
    out.add_token_merges(_merges(described))
    out.add_eos_token_id(2)
    names = get_tensor_name_map(MODEL_ARCH.QWEN3, cfg.num_hidden_layers)
    for name, tensor in theirs.state_dict().items():
        if name != "lm_head.weight":  # tied
            stored = names.get_name(name.removesuffix(".weight"))
            out.add_tensor(f"{stored}.weight", tensor.numpy().astype(np.float32 if tensor.dim() == 1 else dtype))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _merges(tokenizer: tokenizers.Tokenizer) -> list[str]:
    return [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def test_a_file_by_other_hands_is_read(tmp_path: Path) -> None:
    folder = foreign("qwen3", tmp_path / "folder")
    path = tmp_path / "model.gguf"
    dense_qwen3(folder, path)
    ours, theirs = checkpoints.read(path), checkpoints.read(folder)
    assert ours.cfg == replace(theirs.cfg, init_std=Model.init_std) and ours.cfg.experts == 1
    for (name, a), b in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    certificate.prove(ours, path)
    spoken = tokenizers.Tokenizer.from_str(checkpoints.tokenizer_files(path)["tokenizer.json"].decode())
    original = FAMILIES["smollm"]()
    for text in SAMPLES:
        assert spoken.encode(text).ids == original.encode(text).ids, text


def test_half_precision_is_widened(tmp_path: Path) -> None:
    dense_qwen3(foreign("qwen3", tmp_path / "folder"), tmp_path / "model.gguf", dtype=np.float16)
    stored = GGUFReader(tmp_path / "model.gguf")
    assert "F16" in {tensor.tensor_type.name for tensor in stored.tensors}
    whole = checkpoints.read(tmp_path / "folder").state_dict()["model.embed_tokens.weight"]
    read = checkpoints.read(tmp_path / "model.gguf").state_dict()["model.embed_tokens.weight"]
    assert torch.equal(read, whole.half().float())


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a model at all")
    with pytest.raises(InputError, match="model.gguf: not a GGUF file that can be read"):
        checkpoints.read(path)
    with pytest.raises(InputError, match="model.gguf: not a GGUF file that can be read"):
        Tokenizer.load(path)
    dense_qwen3(foreign("qwen3", tmp_path / "folder"), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="model.gguf: .*"):
        checkpoints.read(path)
    path.write_bytes(whole.replace(b"qwen3", b"gemma"))
    with pytest.raises(InputError, match="architecture 'gemma' is not supported; there are: llama, qwen3, qwen3moe"):
        checkpoints.read(path)
    scaled = GGUFWriter(path, "llama")
    for add in (scaled.add_embedding_length, scaled.add_block_count, scaled.add_head_count):
        add(2)
    scaled.add_string("llama.rope.scaling.type", "yarn")
    scaled.add_tensor("token_embd.weight", np.zeros((4, 2), np.float32))
    scaled.write_header_to_file()
    scaled.write_kv_data_to_file()
    scaled.write_tensors_to_file()
    scaled.close()
    with pytest.raises(InputError, match="rope scaling is not supported"):
        checkpoints.read(path)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "llama.cpp gets rows in its order",
        "moe/formats/gguf.py",
        "tensor = neighbours(tensor, cfg.kv_heads)",
        "pass",
        None,
    ),
]

"""Checkpoints to start from: a Hugging Face folder or a .gguf file, dense or a mixture, as one of our decoders.

A dense model is read as a mixture of one expert, whose weight is always one; `moe.formats.upcycle` makes more of it.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conf.errors import InputError
from conf.knobs.model import Model
from conf.knobs.model import Parent as Settings
from moe.decoder import LANGUAGE, Decoder
from moe.formats import hugging_face
from moe.formats.config import DENSE, MIXTURES, from_hugging_face
from moe.formats.upcycle import upcycle, upcycled
from moe.text.defaults import PLAIN, Defaults
from moe.text.format import CONFIG_FILE
from moe.text.gguf_tokenizer import FILES, read_tokenizer
from moe.text.tokenizer import FILE

_DENSE_NAME = re.compile(r"(model\.layers\.\d+\.)mlp\.(gate|up|down)_proj\.weight")
_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}


def read(path: Path | str) -> Decoder:
    """The model of a checkpoint in fp32 and evaluation mode, with as many rows of vocabulary as the checkpoint has;
    under `torch.device("meta")` its shape, without weights.

    A dense one has `cfg.experts` = 1. Raises InputError naming the file, tensor or setting that cannot be used.
    """
    path = Path(path)
    config = _completed(_config(path), str(path))
    cfg, vocab_size, head = from_hugging_face(config, str(path))
    if head != LANGUAGE:
        raise InputError(f"{path}: has no language head; only a language model can be a parent")
    model = Decoder(cfg, vocab_size, head)
    if model.model.embed_tokens.weight.is_meta:
        return model.eval()
    if is_gguf(path):
        from moe.formats import gguf

        tensors = gguf.read(path)[1]
    else:
        tensors = hugging_face.read_tensors(path)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    if config.get("tie_word_embeddings") and "model.embed_tokens.weight" in tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    if config["model_type"] in DENSE:
        tensors = _one_expert(tensors, layers=cfg.layers, hidden_size=cfg.hidden_size, qk_norm=cfg.qk_norm)
    hugging_face.from_disk(tensors, model, str(path))
    return model.eval()


def new_from(cfg: Settings, seed: int) -> Decoder:
    """What training starts from: the parent itself if it is a mixture, else upcycled."""
    parent = read(cfg.model)
    return upcycle(parent, cfg, seed=seed) if parent.cfg.experts == 1 else parent


def shape(cfg: Settings) -> tuple[Model, int]:
    """(config, rows of vocabulary) of what `new_from` gives, from the checkpoint's settings alone. Raises
    `InputError` as `read` does."""
    model, vocab_size, _ = from_hugging_face(_completed(_config(Path(cfg.model)), cfg.model), cfg.model)
    return upcycled(model, cfg) if model.experts == 1 else model, vocab_size


def is_gguf(path: Path) -> bool:
    if path.suffix == ".gguf" and not path.is_file():
        raise InputError(f"{path}: no such file")
    return path.suffix == ".gguf"


def tokenizer_files(path: Path | str) -> dict[str, bytes]:
    """The tokenizer of a checkpoint as the files of a Hugging Face folder, by name."""

    path = Path(path)
    if is_gguf(path):
        return read_tokenizer(path)
    return {name: (path / name).read_bytes() for name in FILES if (path / name).is_file()}


def weight_files(path: Path | str) -> list[Path]:
    """The files that make a checkpoint what it is."""
    path = Path(path)
    return [path] if is_gguf(path) else sorted([*path.glob("config.json"), *path.glob("*.safetensors*")])


def defaults(path: Path | str) -> Defaults:
    """What a tool that opens the checkpoint does by itself. Where no file names an end, its tokenizer does."""
    path = Path(path)
    config, files = _config(path), tokenizer_files(path)
    generation = path / "generation_config.json"
    settings: dict[str, Any] = json.loads(generation.read_text("utf-8")) if generation.is_file() else {}
    stop, pad, bos = (settings.get(name, config.get(name)) for name in _IDS)
    if stop is None:
        stop = _named_end(files)
    sampling = {name: value for name, value in settings.items() if name not in (*_IDS, "transformers_version")}
    ids = tuple(stop) if isinstance(stop, list) else () if stop is None else (int(stop),)
    return Defaults(files, ids, pad, bos, sampling or PLAIN)


_IDS = ("eos_token_id", "pad_token_id", "bos_token_id")


def _named_end(files: Mapping[str, bytes]) -> int | None:
    """The id of the `eos_token` of a tokenizer's settings."""
    if not {FILE, CONFIG_FILE} <= files.keys():
        return None
    named = json.loads(files[CONFIG_FILE]).get("eos_token")
    piece = named["content"] if isinstance(named, dict) else named
    described = json.loads(files[FILE])
    ids = {token["content"]: int(token["id"]) for token in described["added_tokens"]}
    return ids.get(piece, described["model"]["vocab"].get(piece)) if isinstance(piece, str) else None


def _config(path: Path) -> dict[str, Any]:
    """The config.json of a checkpoint, or what it would be."""
    if is_gguf(path):
        from moe.formats import gguf

        return gguf.read_config(path)
    return hugging_face.read_config(path)


def _completed(config: dict[str, Any], where: str) -> dict[str, Any]:
    """A config.json with the defaults that its kind of model has in transformers."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if config.get("model_type") not in (*DENSE, *MIXTURES):
        return config  # refused by name when it is read
    try:
        return {**config, **AutoConfig.for_model(**config).to_dict()}
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise InputError(f"{where}: config.json cannot be used: {' '.join(str(error).split())}") from None


def _one_expert(tensors: dict[str, Tensor], *, layers: int, hidden_size: int, qk_norm: bool) -> dict[str, Tensor]:
    """A dense model's tensors under the names of a mixture of one expert, whose gate has nothing to choose."""
    block = "mlp" if qk_norm else "block_sparse_moe"

    def renamed(found: re.Match[str]) -> str:
        projection = f"{found[2]}_proj" if qk_norm else _MIXTRAL[found[2]]
        return f"{found[1]}{block}.experts.0.{projection}.weight"

    out = {_DENSE_NAME.sub(renamed, name): tensor for name, tensor in tensors.items()}
    return out | {f"model.layers.{n}.{block}.gate.weight": torch.zeros(1, hidden_size) for n in range(layers)}

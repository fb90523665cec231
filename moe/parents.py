"""Checkpoints to start from: a Hugging Face folder or a .gguf file, dense or a mixture, as one of our decoders.

A dense model is read as a mixture of one expert, whose weight is always one; `moe.upcycle` makes more of it.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conf.schema import InputError
from conf.schema import Parent as Settings
from moe import folder
from moe.config import DENSE, LANGUAGE, MIXTURES, from_hugging_face
from moe.decoder import Decoder
from moe.upcycle import upcycle

_DENSE_NAME = re.compile(r"(model\.layers\.\d+\.)mlp\.(gate|up|down)_proj\.weight")
_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}


def read(path: Path | str) -> Decoder:
    """The model of a checkpoint in fp32 and evaluation mode, with as many rows of vocabulary as the checkpoint has.

    A dense one has `cfg.experts` = 1. Raises InputError naming the file, tensor or setting that cannot be used.
    """
    path = Path(path)
    if is_gguf(path):
        from moe import gguf

        config, tensors = gguf.read(path)
    else:
        config, tensors = folder.read_config(path), {}
    config = _completed(config, str(path))
    cfg, vocab_size, head = from_hugging_face(config, str(path))
    if head != LANGUAGE:
        raise InputError(f"{path}: has no language head; only a language model can be a parent")
    tensors = tensors or folder.read_tensors(path)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("rotary_emb.inv_freq")}
    if config.get("tie_word_embeddings") and "model.embed_tokens.weight" in tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    if config["model_type"] in DENSE:
        tensors = _one_expert(tensors, layers=cfg.layers, hidden_size=cfg.hidden_size, qk_norm=cfg.qk_norm)
    model = Decoder(cfg, vocab_size, head)
    folder.from_disk(tensors, model, str(path))
    return model.eval()


def new_from(cfg: Settings, seed: int) -> Decoder:
    """What training starts from: the parent itself if it is a mixture, else upcycled."""
    parent = read(cfg.model)
    return upcycle(parent, cfg, seed=seed) if parent.cfg.experts == 1 else parent


def is_gguf(path: Path) -> bool:
    if path.suffix == ".gguf" and not path.is_file():
        raise InputError(f"{path}: no such file")
    return path.suffix == ".gguf"


def tokenizer_files(path: Path | str) -> dict[str, bytes]:
    """The tokenizer of a checkpoint as the files of a Hugging Face folder, by name."""
    from moe.gguf_tokenizer import FILES, read_tokenizer

    path = Path(path)
    if is_gguf(path):
        return read_tokenizer(path)
    return {name: (path / name).read_bytes() for name in FILES if (path / name).is_file()}


def weight_files(path: Path | str) -> list[Path]:
    """The files that make a checkpoint what it is."""
    path = Path(path)
    return [path] if is_gguf(path) else sorted([*path.glob("config.json"), *path.glob("*.safetensors*")])


def ends(path: Path | str) -> tuple[tuple[int, ...], int | None]:
    """(ids that end an answer, padding id) of a checkpoint."""
    path = Path(path)
    config = _config(path)
    generation = path / "generation_config.json"
    if generation.is_file():
        config |= json.loads(generation.read_text("utf-8"))
    stop = config.get("eos_token_id")
    return tuple(stop) if isinstance(stop, list) else () if stop is None else (stop,), config.get("pad_token_id")


def _config(path: Path) -> dict[str, Any]:
    """The config.json of a checkpoint, or what it would be."""
    if is_gguf(path):
        from moe import gguf

        return gguf.read_config(path)
    return folder.read_config(path)


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

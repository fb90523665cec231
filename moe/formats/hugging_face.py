"""A model as an ordinary Hugging Face folder: config.json, model.safetensors, generation_config.json.

On disk every expert has its own tensors under the names of Qwen3-MoE or Mixtral; in memory they are fused.
Nothing is pickled.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from conf.errors import InputError
from conf.knobs.model import Model
from moe.decoder import LANGUAGE, SCALAR, Decoder, Head, new_decoder
from moe.formats.config import DENSE, from_hugging_face, to_hugging_face
from moe.text.defaults import Defaults

# in-memory prefix under `mlp.`, then the three projections of an expert: gate, up, down
_QWEN3 = ("mlp", ("gate_proj", "up_proj", "down_proj"))
_MIXTRAL = ("block_sparse_moe", ("w1", "w3", "w2"))


def to_disk(model: Decoder, weights: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors under their names on disk, contiguous: the model's, or as `weights` has them by its names."""
    block, (gate, up, down) = _QWEN3 if model.cfg.qk_norm else _MIXTRAL
    out: dict[str, Tensor] = {}
    for name, tensor in (weights or model.state_dict()).items():
        prefix, _, part = name.rpartition(".mlp.")
        if part == "experts.gate_up_proj":
            for e, both in enumerate(tensor):
                first, second = both.chunk(2)
                out[f"{prefix}.{block}.experts.{e}.{gate}.weight"] = first
                out[f"{prefix}.{block}.experts.{e}.{up}.weight"] = second
        elif part == "experts.down_proj":
            for e, one in enumerate(tensor):
                out[f"{prefix}.{block}.experts.{e}.{down}.weight"] = one
        elif part == "gate.weight":
            out[f"{prefix}.{block}.gate.weight"] = tensor
        else:
            out[name] = tensor
    return {name: tensor.detach().contiguous() for name, tensor in out.items()}


def from_disk(tensors: dict[str, Tensor], model: Decoder, where: str) -> None:
    """Fill a model from tensors under their names on disk, which are taken out of the dict: memory holds the weights
    once. Raises InputError naming the first tensor that is missing, left over or of another shape."""

    def take(name: str) -> Tensor:
        if name not in tensors:
            raise InputError(f"{where}: tensor {name} is missing")
        return tensors.pop(name)

    block, (gate, up, down) = _QWEN3 if model.cfg.qk_norm else _MIXTRAL
    for name, target in model.state_dict().items():
        prefix, _, part = name.rpartition(".mlp.")
        stem = f"{prefix}.{block}.experts"
        if part == "experts.gate_up_proj":
            pairs = [
                torch.cat((take(f"{stem}.{e}.{gate}.weight"), take(f"{stem}.{e}.{up}.weight")))
                for e in range(model.cfg.experts)
            ]
            tensor = torch.stack(pairs)
        elif part == "experts.down_proj":
            tensor = torch.stack([take(f"{stem}.{e}.{down}.weight") for e in range(model.cfg.experts)])
        elif part == "gate.weight":
            tensor = take(f"{prefix}.{block}.gate.weight")
        else:
            tensor = take(name)
        if tensor.shape != target.shape:
            raise InputError(f"{where}: tensor {name} has shape {list(tensor.shape)}, not {list(target.shape)}")
        target.copy_(tensor)
    if tensors:
        raise InputError(f"{where}: tensor {next(iter(tensors))} is not part of this model")


def save(model: Decoder, folder: Path, defaults: Defaults, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the model into `folder`, with all that another tool needs to use it as we do; see `to_disk` for
    `weights`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = to_hugging_face(model.cfg, model.vocab_size, model.head)
    _write(folder / "config.json", config | defaults.ids)
    if model.head == LANGUAGE:
        _write(folder / "generation_config.json", defaults.generation)
    defaults.write(folder, context=model.cfg.context)
    file = folder / "model.safetensors"
    save_file(to_disk(model, weights), file, metadata={"format": "pt"})
    file.chmod((folder / "config.json").stat().st_mode)  # the library makes it readable for its owner only


def load(folder: Path | str) -> Decoder:
    """The model of a folder, in evaluation mode and fp32; under `torch.device("meta")` its shape, without weights.
    Raises InputError naming the file that cannot be used."""
    folder = Path(folder)
    model = Decoder(*_described(folder))
    if not model.model.embed_tokens.weight.is_meta:
        from_disk(read_tensors(folder), model, str(folder))
    return model.eval()


def load_config(folder: Path | str) -> Model:
    """The model config of a folder, without its weights."""
    return _described(Path(folder))[0]


def load_scalar(folder: Path | str, *, seed: int, head: Head = SCALAR) -> Decoder:
    """The model of a folder with scores as head: its own if they are those of `head`, else new ones."""
    model = load(folder)
    if model.head == head:
        return model
    scalar = new_decoder(model.cfg, model.vocab_size, head=head, seed=seed)
    scalar.model.load_state_dict(model.model.state_dict())
    return scalar.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder}: no model here (config.json is missing)")
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from None


def _described(folder: Path) -> tuple[Model, int, Head]:
    """(config, vocabulary size, head) of a folder with a mixture of experts."""
    config, where = read_config(folder), str(folder / "config.json")
    if config.get("model_type") in DENSE:
        raise InputError(
            f"{where}: model_type={config['model_type']!r} is dense; make it a mixture of experts with "
            f"python -m moe.convert convert.source={folder} convert.target=<folder> convert.upcycle=true"
        )
    return from_hugging_face(config, where)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's safetensors files, in fp32."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    tensors: dict[str, Tensor] = {}
    for name in sorted(names):
        if Path(name).name != name or not (folder / name).is_file():
            pickled = sorted(path.name for path in folder.glob("*.bin"))
            hint = f"; {pickled[0]} is pickled and never opened: save it as safetensors" if pickled else ""
            raise InputError(f"{folder / name}: weights are missing{hint}")
        try:
            with safe_open(folder / name, framework="pt") as opened:
                tensors |= {key: opened.get_tensor(key).float() for key in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise InputError(f"{folder / name}: not a safetensors file: {error}") from None
    return tensors


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")

"""What is said of a parent before it is trained on: how far the first weights are from it, and what it knows."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from cluster.connect import on_worker
from cluster.storage import read_json, sha256, write_json
from conf.errors import InputError
from conf.knobs.training import PARENT_LR
from conf.schema import Config
from moe.decoder import Decoder
from moe.formats import certificate, checkpoints
from moe.text.tokenizer import Tokenizer
from moe.training.parallel import take_device
from trainers.closing import general_loss
from trainers.files.readers import expand, read_records
from trainers.loop.retention import Retention
from trainers.rows.packing import document, pack
from trainers.rows.rows import FILE as ROWS
from trainers.rows.rows import write_rows

FILE = "parent.json"
GENERAL = "retention"  # the folder of a stage with the general text's rows
_LOUD = 10  # times the learning rate that suits a trained parent


def retention(cfg: Config, name: str, folder: Path, tokenizer: Path, start: Callable[[], Decoder]) -> Retention:
    """Say what is known of `parent.model` before step 1 of the stage `name`, and keep it in the stage's `folder`.

    `start` gives the first weights. Whatever needs weights is done by a worker whose process then ends: the model does
    not lie in memory twice. Raises `InputError` for first weights that do not compute what the parent does, and for
    general text that is none.
    """
    rows = general_rows(cfg, folder / GENERAL, Tokenizer.load(tokenizer))
    texts = {text: sha256(path / ROWS) for text, path in rows.items()}
    if not (folder / FILE).is_file() or read_json(folder / FILE)["texts"] != texts:
        found = on_worker(cfg.cluster, of_parent, cfg, start, tokenizer, rows, within=cfg.evaluate.timeout, ends=True)
        write_json(folder / FILE, {**found, "texts": texts})
    known: dict[str, Any] = read_json(folder / FILE)
    print(certificate.told(Path(cfg.parent.model), known["logit_difference"]))
    print(f"{name}: {known_by(known['general'])} before step 1; {gently(cfg)}")
    before = {text: known["general"][f"{text}/loss"] for text in rows}
    return Retention(rows, before, cfg.pretrain.retention_rise)


def general_rows(cfg: Config, folder: Path, tokenizer: Tokenizer) -> dict[str, Path]:
    """`pretrain.retention` as rows in `folder`, those of each file by its name without folder and ending."""
    found: dict[str, Path] = {}
    for file in expand(cfg.pretrain.retention, "pretrain.retention"):
        name = Path(file).name.partition(".")[0]
        if name in found:
            raise InputError(f"pretrain.retention: two files are called {name}; give one of them another name")
        texts = [record.get("text") for _, record in read_records(file, needed=["text"])]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"pretrain.retention: {file} holds no text, or a record without the field 'text'")
        pieces = (document(tokenizer.encode(str(text)), tokenizer.eos, tokenizer.opening) for text in texts)
        found[name] = folder / name
        write_rows(
            found[name],
            pack(pieces, cfg.tokens.row_length, pad=tokenizer.pad),
            row_length=cfg.tokens.row_length,
            rows_per_shard=16384,
            meta={"tokenizer": tokenizer.digest, "documents": len(texts)},
        )
    return found


def general_folders(folder: Path) -> dict[str, Path]:
    """What `general_rows` made in a stage's folder."""
    return {rows.name: rows for rows in sorted((folder / GENERAL).iterdir())}


def of_parent(cfg: Config, start: Callable[[], Decoder], tokenizer: Path, rows: Mapping[str, Path]) -> dict[str, Any]:
    """{"logit_difference": between the parent and what it becomes before vocabulary is added, "general": the first
    weights' `general_loss`}."""
    take_device(cfg.cluster)
    return {
        "logit_difference": distance(cfg),
        "general": general_loss(start().eval(), Tokenizer.load(tokenizer), rows),
    }


def distance(cfg: Config) -> float:
    """How far the logits of the parent as a mixture are from its own. Raises `InputError` where they should not be."""
    source = Path(cfg.parent.model)
    tokens = certificate.batch(checkpoints.shape(cfg.parent)[1])
    with torch.no_grad():
        theirs = certificate.by_transformers(source, tokens)[0]  # whose weights are gone before ours are read
    found = certificate.difference(certificate.logits(checkpoints.new_from(cfg.parent, cfg.run.seed), tokens), theirs)
    if not cfg.parent.noise:
        certificate.check(found, str(source))
    return found


def known_by(general: Mapping[str, float]) -> str:
    """The loss on general text as a line says it."""
    texts = [name.removesuffix("/loss") for name in general if name.endswith("/loss")]
    each = (f"{text} {general[f'{text}/loss']:.3f} ({general[f'{text}/per_byte']:.3f})" for text in texts)
    return f"loss on general text, nats per token (per byte): {', '.join(each)}"


def gently(cfg: Config) -> str:
    """How the parent will be moved, and that it is too much if it is."""
    optim = cfg.optim
    text = f"it is trained by {optim.kind.value} with optim.lr={optim.lr:g}"
    if optim.lr * cfg.pretrain.lr_scale > _LOUD * PARENT_LR:
        text += f", which is likely to make it forget: {PARENT_LR:g} suits a trained parent"
    return text

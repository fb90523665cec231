"""Which model answers, and what it is known by."""

import hashlib
import json
from pathlib import Path

from cluster.run import CHATTING, newest_model
from cluster.storage import MANIFEST, read_json, sha256
from conf.errors import InputError
from conf.schema import Config
from moe.decoder import Decoder
from moe.formats import hugging_face as model_folder
from moe.generation.quantize import quantize
from moe.text.tokenizer import Tokenizer
from serving.canary.trial import promoted


def find_model(cfg: Config) -> tuple[Path, str]:
    """(folder, the name it is served under): `serve.model`, or the run's newest finished chat model, unless another was
    promoted since.

    Raises InputError if there is none, a file is damaged, or model and tokenizer do not belong together.
    """

    stages = [cfg.run.folder / stage / MANIFEST for stage in CHATTING]
    taken = None if cfg.serve.model else promoted(cfg.run.folder, stages)
    given = str(taken[0]) if taken else cfg.serve.model
    folder = newest_model(cfg, given, among=CHATTING, knob="serve.model")
    _check_vocabulary(folder)
    if taken:
        return folder, taken[1]
    return folder, folder.name if cfg.serve.model else f"{cfg.run.name}-{folder.name}"


def _check_vocabulary(folder: Path) -> None:

    allotted = json.loads((folder / "config.json").read_text("utf-8")).get("vocab_size")
    needed = Tokenizer.load(folder).size
    if not allotted or allotted < needed:
        raise InputError(
            f"{folder / 'config.json'}: vocab_size={allotted}, but the tokenizer beside it needs {needed}; "
            "they are not of the same run"
        )


def load_model(folder: str | Path, *, int8: bool, bf16: bool = False, device: str = "cpu") -> Decoder:
    model = model_folder.load(folder)
    return (quantize(model) if int8 else model.bfloat16() if bf16 else model).to(device)


def version(folder: Path) -> str:
    """Of the weights and of what turns text into tokens: the same for the same bytes, wherever they lie."""
    if (folder / MANIFEST).is_file():
        named = dict(read_json(folder / MANIFEST)["files"])
        found = {name: digest for name, digest in named.items() if name.endswith((".safetensors", "tokenizer.json"))}
    else:
        files = [*folder.glob("*.safetensors"), *folder.glob("tokenizer.json")]
        found = {path.name: sha256(path) for path in files}
    return "fp_" + hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]

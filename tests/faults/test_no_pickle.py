"""Nothing we open can run code: no pickle, no torch.load of one, no yaml.load, no eval, no remote code."""

import ast
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.checkpoints import newest_checkpoint
from cluster.saver import Saver
from conf.errors import InputError
from conf.knobs.model import Model
from conf.knobs.training import Checkpoints, Optim
from moe.decoder import Decoder, new_decoder
from moe.training import checkpoint
from moe.training.optimizer import new_optimizer

ROOT = Path(__file__).parents[2]
OURS = ("conf", "moe", "cluster", "trainers", "rlhf", "serving")
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
CALLS = {  # the end of a call's dotted name: the keyword that must be there with this value, if any makes it safe
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
    "yaml.load": None,
    "yaml.unsafe_load": None,
    "yaml.full_load": None,
    "dcp.load": None,
    "hydra.utils.instantiate": None,
    "instantiate": None,
    "read_pickle": None,
}
BUILTINS = {"eval", "exec", "compile"}


def unsafe(source: str) -> Iterator[str]:
    """What in `source` could run code that a file or a name brings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"line {node.lineno}: import {n}" for n in names if n.partition(".")[0] in MODULES)
            yield from (f"line {node.lineno}: import {n}" for n in names if n == "torch.distributed.checkpoint")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
            if name in BUILTINS or given.get("trust_remote_code"):
                yield f"line {node.lineno}: {name}"
            for call, makes_safe in CALLS.items():
                if name == call or name.endswith(f".{call}"):
                    if makes_safe is None or given.get(makes_safe[0]) is not makes_safe[1]:
                        yield f"line {node.lineno}: {name}"
                    break


@pytest.mark.parametrize("package", OURS)
def test_our_code_opens_nothing_that_runs(package: str) -> None:
    found = {str(path): [*unsafe(path.read_text())] for path in sorted((ROOT / package).rglob("*.py"))}
    assert found and {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import torch.distributed.checkpoint as dcp",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "yaml.load(text, Loader=yaml.Loader)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "AutoModel.from_pretrained(path, trust_remote_code=True)",
        "hydra.utils.instantiate(cfg)",
        "pd.read_pickle(path)",
    ],
)
def test_what_runs_code_is_seen(source: str) -> None:
    assert [*unsafe(source)]


def test_what_is_safe_is_not() -> None:
    assert not [
        *unsafe("model.eval(); np.load(p, allow_pickle=False); torch.load(p, weights_only=True); re.compile(x)")
    ]


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, nest: Path) -> None:
        self.nest = nest

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.nest),)


def made() -> tuple[Decoder, torch.optim.Optimizer]:
    cfg = Model(hidden_size=16, layers=1, heads=2, kv_heads=1, head_dim=8, experts=2, expert_size=8, context=32)
    model = new_decoder(cfg, 20)
    return model, new_optimizer(model, Optim())


def test_a_canary_in_a_checkpoint_does_not_sing(tmp_path: Path) -> None:
    model, optimizer = made()
    folder, nest = tmp_path / "checkpoints", tmp_path / "nest"
    with Saver(folder, Checkpoints(), keep=1, rank=0, world=1, attempt="a") as saver:
        saver.save(1, lambda made: checkpoint.save(made, model, optimizer))
    newest = folder / "step-00000001"
    ours = sorted(newest.iterdir())
    song = pickle.dumps(Canary(nest))
    for name in (".metadata", "data.pkl", "weights.pt", "optimizer.pt", "pytorch_model.bin", "__0_0.distcp", "a.npy"):
        (newest / name).write_bytes(song)
    found = newest_checkpoint(folder)
    assert found == (1, newest)
    checkpoint.load(newest, *made())
    checkpoint.load_random(newest, 0, seed=0)
    for path in ours:  # in the place of a file that we do open
        right = path.read_bytes()
        path.write_bytes(song)
        assert newest_checkpoint(folder) is None
        if path.suffix == ".safetensors" and not path.name.startswith("random"):
            with pytest.raises(InputError, match=path.name):
                checkpoint.load(newest, *made())
        path.write_bytes(right)
    assert not nest.exists()
    pickle.loads(song)
    assert nest.exists() and "pickle" in sys.modules  # it would have sung

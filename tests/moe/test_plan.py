"""The planner's arithmetic against the model itself: its parameters, what autograd keeps, the memory of real steps.

Planted bugs these turn red: inactive experts counted as active, the optimizer's second moment forgotten, a block's
activations counted once for the model, the memory-bound limit upside down.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conf.entry import compose
from conf.errors import InputError
from conf.knobs.model import Gpu, Model
from conf.knobs.training import Optimizer
from moe.decoder import new_decoder
from moe.footprint import (
    Work,
    active_parameters,
    compute_bound_tokens,
    forward_flops,
    inference_memory,
    kept_by_a_block,
    parameters,
    peak,
    training_flops,
    training_memory,
)
from moe.formats.checkpoints import new_from
from moe.kernels.processor import Processor
from moe.plan import text
from moe.training.objectives import Batch, language_loss
from tests.moe.formats.foreign_models import foreign

ROOT = Path(__file__).parents[2]
SMALL = Model(hidden_size=320, layers=2, heads=8, kv_heads=4, head_dim=24, experts=8, expert_size=448, context=512)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_parameters_are_those_of_the_model(qk_norm: bool) -> None:
    cfg = Model(**{**vars(SMALL), "qk_norm": qk_norm})
    assert sum(parameters(cfg, 1024).values()) == sum(p.numel() for p in new_decoder(cfg, 1024).parameters())


def test_olmoe_has_seven_billion_parameters_of_which_one_is_active() -> None:
    base = compose(["model=base"]).model
    assert sum(parameters(base, 50304).values()) == pytest.approx(6.92e9, rel=1e-3)  # Muennighoff et al. 2024
    assert sum(active_parameters(base, 50304).values()) == pytest.approx(1.28e9, rel=2e-3)


def test_flops_by_hand() -> None:
    cfg = Model(hidden_size=8, layers=2, heads=2, kv_heads=1, head_dim=4, experts=4, expert_size=16, context=10)
    parts = forward_flops(cfg, vocab=100)
    assert parts == {
        "attention": 2 * 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8),  # 2 layers: q, k and v, o
        "router": 2 * 2 * 8 * 4,
        "experts": 2 * 2 * 2 * 3 * 8 * 16,  # of 2 experts: gate, up, down
        "head": 2 * 100 * 8,
        "attention scores": 2 * 2 * (2 * 8 * 5),  # query with key and weight with value, 5 positions on average
    }
    whole = sum(parts.values())
    assert training_flops(cfg, 100, checkpointing=False) == 3 * whole
    assert training_flops(cfg, 100, checkpointing=True) == 4 * whole - parts["head"]


def batch_of(rows: int, length: int, vocab: int) -> Batch:
    tokens = torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(0))
    return {"tokens": tokens, "segments": torch.ones_like(tokens), "loss": (torch.arange(length) > 0).expand(rows, -1)}


@pytest.mark.slow
def test_a_block_keeps_what_autograd_keeps(any_processor: Processor) -> None:
    def saved(layers: int) -> int:
        model = new_decoder(Model(**{**vars(SMALL), "layers": layers}), 1024)
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}  # held, so that no address is used twice

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            language_loss(model, batch_of(8, 512, 1024))
        return sum(storage.nbytes() for storage in kept.values())

    planned = sum(kept_by_a_block(SMALL, 8 * 512, half=False).values())
    assert planned == pytest.approx((saved(3) - saved(1)) / 2, rel=0.04)


STEPS = """
import json, sys
import torch
from conf.knobs.model import Model
from conf.knobs.training import Optim, Optimizer
from moe.decoder import new_decoder
from moe.training.optimizer import new_optimizer
from tests.trainers.training import take_step
from moe.training.objectives import LANGUAGE_MODEL
from tests.moe.test_plan import batch_of

def memory(name):
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

def steps(cfg, kind, rows, length, vocab):
    model = new_decoder(cfg, vocab).train()
    optimizer = new_optimizer(model, Optim(kind=kind))
    for _ in range(2):
        take_step(model, optimizer, LANGUAGE_MODEL, batch_of(rows, length, vocab), rate=1e-3, clip=1.0)

knobs, kind, rows, length, vocab = json.loads(sys.argv[1])
small = Model(hidden_size=64, layers=1, heads=2, kv_heads=1, head_dim=32, experts=2, expert_size=64)
steps(small, Optimizer[kind], 2, 32, 128)  # what the libraries take for themselves is no part of the plan
before = memory("VmRSS")
steps(Model(**knobs), Optimizer[kind], rows, length, vocab)
print(memory("VmHWM") - before)
"""
WIDE = Model(hidden_size=512, layers=6, heads=8, kv_heads=4, head_dim=64, experts=8, expert_size=768)  # 66 M parameters
NARROW = Model(hidden_size=256, layers=6, heads=8, kv_heads=4, head_dim=32, experts=4, expert_size=512)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("cfg", "kind", "rows", "length", "most"),
    [
        (WIDE, Optimizer.adamw, 2, 64, "backward ends"),  # weights, gradients and optimizer
        (WIDE, Optimizer.muon, 2, 64, "optimizer step"),
        (NARROW, Optimizer.adamw, 16, 512, "backward begins"),  # activations
    ],
    ids=["adamw", "muon", "activations"],
)
def test_the_plan_is_within_a_tenth_of_the_memory_of_real_steps(
    cfg: Model, kind: Optimizer, rows: int, length: int, most: str
) -> None:
    vocab = 4096
    # Every freed buffer goes back to the kernel: what the process holds is what lives, not what the allocator keeps.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    asked = json.dumps([vars(cfg), kind.name, rows, length, vocab])
    command = [sys.executable, "-c", STEPS, asked]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    moments = training_memory(cfg, vocab, Work(rows=rows, length=length, optimizer=kind))
    print(f"planned {peak(moments) / 1e6:.0f} MB, measured {int(done.stdout) / 1e6:.0f} MB")
    assert peak(moments) == pytest.approx(int(done.stdout), rel=0.1)
    assert max(moments, key=lambda moment: sum(moments[moment].values())) == most


def test_plans_by_hand() -> None:
    work = Work(rows=1, length=128, optimizer=Optimizer.adamw)
    total = 4 * sum(parameters(SMALL, 1024).values())
    alone = training_memory(SMALL, 1024, work)["optimizer step"]
    assert alone == {"weights": total, "optimizer": 2 * total, "gradients": total}
    split = training_memory(SMALL, 1024, Work(rows=1, length=128, optimizer=Optimizer.adamw, shards=4))
    assert split["optimizer step"]["optimizer"] == total / 2
    spread = training_memory(SMALL, 1024, Work(rows=1, length=128, optimizer=Optimizer.adamw, expert_parallel=4))
    assert spread["optimizer step"]["weights"] == total - 3 * parameters(SMALL, 1024)["experts"]
    parts = inference_memory(SMALL, 1024, sequences=3, half=True)
    assert parts["weights"] == total / 2
    # bytes, keys and values, sequences, layers, heads, size of a head, positions
    assert parts["KV cache"] == 2 * 2 * 3 * 2 * 4 * 24 * 512


def test_an_expert_is_bound_by_arithmetic_only_if_it_is_wide_enough() -> None:
    h100 = 989 / 3.35
    narrow = Model(hidden_size=512, expert_size=256)
    assert compute_bound_tokens(narrow, h100) == float("inf")  # at most 512*256/768 = 171 operations per byte
    assert compute_bound_tokens(narrow, 100) == pytest.approx(100 / (1 - 100 / 170.667), rel=1e-3)
    assert compute_bound_tokens(Model(hidden_size=2048, expert_size=1024), h100) == pytest.approx(520.2, abs=0.5)


BASE = "model=base cluster.gpus=8 gpu.memory=80GB tokens.row_length=4096 tokenizer.vocab_size=50304".split()
MIXTRAL = (
    "model.hidden_size=4096 model.layers=32 model.heads=32 model.kv_heads=8 model.head_dim=128 model.experts=8 "
    "model.top_k=2 model.expert_size=14336 model.context=4096 model.qk_norm=false tokenizer.vocab_size=32000"
).split()


def row(words: list[str], name: str) -> list[str]:
    """The cells of the answer's row of that name."""
    line = next(line for line in text(compose(words)).splitlines() if line.startswith(f"{name}  "))
    return re.split(r"  +", line)


def test_the_answer_is_one_table() -> None:
    words = [*BASE, "pretrain.batch_rows=64", "compute.precision=bf16"]
    paragraphs = text(compose(words)).split("\n\n")
    assert len(paragraphs) == 3
    assert paragraphs[0] == "6.92 G parameters, 1.28 G active; bf16; a step of 64 x 4,096 = 262,144 tokens; 8 x 80GB"
    assert row(words, "sharded x8")[1:2] == ["4 x 4,096"] and row(words, "sharded x8")[3] == "fits"
    assert row(words, "sharded x8")[5] == "cluster.workers=8 cluster.shard=true pretrain.accumulate=2"
    assert row([*words, "pretrain.accumulate=2"], "sharded x8")[5] == "cluster.workers=8 cluster.shard=true"
    alone = row(words, "one device")
    assert alone[3:] == ["too large", "cluster.shard=true on more cluster.gpus, or fewer model.experts"]
    assert len(text(compose([*words, "plan.detail=true"])).split("\n\n")) == 3 + 7


def test_a_batch_may_be_given_in_tokens() -> None:
    by_rows, by_tokens = "pretrain.batch_rows=64", f"pretrain.batch_tokens={64 * 4096}"
    assert text(compose([*BASE, by_tokens])) == text(compose([*BASE, by_rows]))
    with pytest.raises(InputError, match="pretrain.batch_tokens=40960 must divide by 8 GPUs .*batch_tokens=65536$"):
        text(compose([*BASE, "pretrain.batch_tokens=40960"]))


def test_half_precision_has_its_own_name() -> None:
    for name in ("bf16", "fp16", "fp32"):
        found = text(compose([*BASE, "pretrain.batch_rows=64", f"compute.precision={name}", "plan.detail=true"]))
        assert f"; {name}; " in found.splitlines()[0]
        assert ("fp16" in found, "bf16" in found) == (name == "fp16", name != "fp16")


def test_mixtral_fits_on_64_gpus() -> None:
    words = [*MIXTRAL, *"cluster.gpus=64 compute.precision=bf16 tokens.row_length=4096 pretrain.batch_rows=64".split()]
    both = row(words, "experts over 8, sharded x64")
    assert both[3] == "fits"
    assert both[5] == "cluster.workers=64 cluster.expert_parallel=8 cluster.shard=true"
    assert row(words, "experts over 8")[3] == "too large"  # whatever is not an expert's, on every GPU
    assert compose([*words, *both[5].split()]).cluster.expert_parallel == 8  # words that are taken


def test_experts_spread_and_split_by_hand() -> None:
    work = Work(rows=1, length=128, optimizer=Optimizer.adamw, shards=8, expert_parallel=4)
    parts = parameters(SMALL, 1024)
    found = training_memory(SMALL, 1024, work)["optimizer step"]
    assert found["weights"] == 4 * sum(parts.values()) / 8  # each of 8 has an eighth of everything
    assert found["optimizer"] == 2 * found["weights"] and found["gradients"] == found["weights"]
    # two blocks at a time are whole, of their experts those that this device owns
    assert found["gathered blocks"] == 2 * 4 * (parts["attention"] + parts["experts"] / 4) / SMALL.layers


def test_recomputing_costs_mfu_and_not_hfu() -> None:
    words = [*BASE, "pretrain.batch_rows=64", "plan.detail=true", "gpu.mfu=0.4"]
    assert "h for 10^9 tokens (mfu 40%)" in text(compose(words))
    again = text(compose([*words, "compute.checkpointing=true"]))
    cfg = compose(words).model
    share = training_flops(cfg, 50304, checkpointing=False) / training_flops(cfg, 50304, checkpointing=True)
    assert f"(hfu 40%, mfu {0.4 * share:.0%})" in again and share == pytest.approx(0.77, abs=0.01)


def test_a_parent_is_planned_for(tmp_path: Path) -> None:
    words = [f"parent.model={foreign('llama', tmp_path)}", "parent.experts=4", "tokens.row_length=64"]
    model = new_from(compose(words).parent, 0)
    whole = sum(p.numel() for p in model.parameters())
    assert text(compose(words)).startswith(f"{whole / 1e3:.3g} k parameters, ")
    grown = whole + 2 * 64 * 128  # embedding and head of as many rows as a hundred pieces are padded to
    assert text(compose([*words, "tokenizer.extend=100"])).startswith(f"{grown / 1e3:.3g} k parameters, ")


def test_every_fitting_change_is_one_that_fits() -> None:
    words = "model=small gpu.memory=16GB tokens.row_length=2048 pretrain.batch_rows=64".split()
    fix = row(words, "one device")[5].split()
    assert fix
    after = row([*words, *fix], "one device")
    assert after[3] == "fits" and len(after) == 5  # and nothing more to set


def test_it_runs_without_torch() -> None:
    code = "import sys, moe.plan; moe.plan.main(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, "model=tiny"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("714 k parameters, ")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("gpu.memory=lots", "gpu.memory='lots' must be a size such as 80GB or 24GiB"),
        ("gpu.memory=0GB", "gpu.memory='0GB' must be greater than 0"),
        ("cluster.gpus=5", "pretrain.batch_rows=32 must divide by 5 GPUs x pretrain.accumulate=1; try "),
        ("parent.model=x", "x: no model here (config.json is missing)"),
    ],
)
def test_what_cannot_be_planned_is_refused(word: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        text(compose([word]))
    assert message in str(refused.value)


def test_memory_sizes() -> None:
    assert [Gpu(memory=m).bytes for m in ("80GB", "24GiB", "512MB")] == [80e9, 24 * 2**30, 512e6]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "the plan counts both moments of AdamW",
        "moe/footprint.py",
        '"optimizer": FULL * (2 * total - ',
        '"optimizer": FULL * (total - ',
        None,
    ),
    (
        "a batch in tokens is planned for",
        "conf/knobs/training.py",
        "return ceil(self.batch_tokens / row_length) if self.batch_tokens else self.batch_rows",
        "return self.batch_rows",
        "test_a_batch_may_be_given_in_tokens",
    ),
    (
        "experts that are spread may be split too",
        "moe/footprint.py",
        "spread = work.expert_parallel if work.shards == 1 else 1",
        "spread = work.expert_parallel",
        "test_experts_spread_and_split_by_hand",
    ),
    (
        "what is computed twice is not counted as the model's",
        "moe/plan.py",
        "cfg.gpu.mfu * needed / computed",
        "cfg.gpu.mfu",
        "test_recomputing_costs_mfu_and_not_hfu",
    ),
]

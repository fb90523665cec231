"""Every promise has a bug that turns its test red: plant each in a copy of the sources and see.

A line: what is promised, the file, the right code, the bug, the test that must fail.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[1]

BUGS = [
    (
        "routing weights are renormalised",
        "moe/router.py",
        "weights = weights / weights.sum(-1, keepdim=True)",
        "weights = weights * 1.0",
        "tests/moe/test_router.py",
    ),
    (
        "gate and up keep their places on disk",
        "moe/folder.py",
        "first, second = both.chunk(2)",
        "second, first = both.chunk(2)",
        "tests/moe/test_folder.py",
    ),
    (
        "packed documents do not see each other",
        "moe/attention.py",
        "(at >= self.starts.unsqueeze(2))",
        "(at >= 0 * self.starts.unsqueeze(2))",
        "tests/moe/test_decoder.py",
    ),
    (
        "generation with a cache equals generation without",
        "moe/engine.py",
        "cache[row, :, : moved.length] = cache[last, :, : moved.length]",
        "pass",
        "tests/moe/test_engine.py",
    ),
    (
        "log-probs are those of the whole distribution",
        "moe/engine.py",
        "return ids, logprobs.gather(1, ids.unsqueeze(1)).squeeze(1)",
        "return ids, (probabilities / cumulative[:, -1:]).log().gather(1, ids.unsqueeze(1)).squeeze(1)",
        "tests/moe/test_engine.py",
    ),
    (
        "user text never becomes a special token",
        "moe/tokenizer.py",
        "self._backend.encode_special_tokens = True",
        "self._backend.encode_special_tokens = False",
        "tests/moe/test_chat.py",
    ),
    (
        "prompts carry no loss",
        "moe/chat.py",
        'learnt = int(message["role"] == "assistant")',
        "learnt = 1",
        "tests/moe/test_chat.py",
    ),
    (
        "packing loses no target",
        "trainers/packing.py",
        "range(0, max(1, len(ids) - 1), row_length - 1)",
        "range(0, max(1, len(ids) - 1), row_length)",
        "tests/trainers/test_packing.py",
    ),
    (
        "a resumed run has the optimizer's state",
        "moe/checkpoint.py",
        "load_state_tensors(model, optimizer, load_file(folder / OPTIMIZER))",
        "pass",
        "tests/trainers/test_loop.py",
    ),
    (
        "micro-batches weigh by their tokens",
        "trainers/loop.py",
        "(loss.total / units + auxiliary).backward()",
        "(loss.total / (loss.units * accumulate) + auxiliary).backward()",
        "tests/trainers/test_loop.py",
    ),
    (
        "the better answer comes first",
        "trainers/reward.py",
        "held += [better, worse]",
        "held += [worse, better]",
        "tests/trainers/test_loop.py",
    ),
    (
        "nothing follows an answer's last token",
        "rlhf/losses.py",
        "following_value = values[:, t] * mask[:, t]",
        "following_value = values[:, t] + 1",
        "tests/rlhf/test_losses.py",
    ),
    (
        "the KL penalty pulls towards the chat model",
        "rlhf/losses.py",
        "(earned - kl_coef * (logprobs - reference))",
        "(earned + kl_coef * (logprobs - reference))",
        "tests/rlhf/test_losses.py",
    ),
    (
        "a rhyme is paid where it falls",
        "rlhf/actors.py",
        "bisect_right(written, place)",
        "bisect_right(written, place) - 1",
        "tests/rlhf/test_actors.py",
    ),
    (
        "an update is applied once",
        "rlhf/actors.py",
        "        assert batch.version == self.version,",
        "        assert True,",
        "tests/rlhf/test_actors.py",
    ),
    (
        "a stale policy does not answer",
        "rlhf/actors.py",
        "            assert request.key.version == self.version,",
        "            assert True,",
        "tests/rlhf/test_actors.py",
    ),
    (
        "a changed file is noticed",
        "cluster/storage.py",
        "if not quick and sha256(path) !=",
        "if False and sha256(path) !=",
        "tests/cluster/test_storage.py",
    ),
    (
        "a bad line is named by its number",
        "trainers/readers.py",
        'f"{path}:{line}: ',
        'f"{path}:{line + 1}: ',
        "tests/trainers/test_readers.py",
    ),
    (
        "MegaBlocks computes our SwiGLU",
        "moe/experts_megablocks.py",
        "F.silu(gate) * up",
        "F.silu(up) * gate",
        "tests/moe/test_megablocks.py",
    ),
    (
        "MegaBlocks gives each expert its own tokens",
        "moe/experts_megablocks.py",
        "sizes = counts.cpu().long()",
        "sizes = counts.roll(1).cpu().long()",
        "tests/moe/test_megablocks.py",
    ),
    (
        "text that is not composed survives",
        "moe/families.py",
        'out |= {"normalizer": None, "pre_tokenizer": _sequence(parts), "decoder"',
        'out |= {"pre_tokenizer": _sequence(parts), "decoder"',
        "tests/moe/test_families.py",
    ),
    (
        "every byte of UTF-8 has a piece",
        "moe/families.py",
        "for piece in (*marks, *(spelled[byte] for byte in _IN_TEXT)):",
        "for piece in marks:",
        "tests/moe/test_families.py",
    ),
    (
        "old merges come before new ones",
        "moe/vocabulary.py",
        'self._description["model"]["merges"] += [list(pair) for pair in self._ranks]',
        'self._description["model"]["merges"][:0] = [list(pair) for pair in self._ranks]',
        "tests/moe/test_vocabulary.py",
    ),
    (
        "a new row is the mean of its old pieces",
        "moe/vocabulary.py",
        "new[index] = old[ids].mean(0)",
        "new[index] = old[ids[0]]",
        "tests/moe/test_vocabulary.py",
    ),
    (
        "LoRA's factors are scaled by alpha over rank",
        "moe/adapt.py",
        "alpha=self.scale)",
        "alpha=1.0)",
        "tests/moe/test_adapt.py",
    ),
    (
        "old rows of the vocabulary stay as they are",
        "moe/adapt.py",
        "_NewRows(module.weight[:old_rows])",
        "_NewRows(module.weight[: old_rows - 1])",
        "tests/moe/test_adapt.py",
    ),
    (
        "the busiest experts are kept",
        "moe/prune.py",
        "argsort(descending=True,",
        "argsort(descending=False,",
        "tests/moe/test_prune.py",
    ),
    (
        "int8 values fit the scale that is kept",
        "moe/quantize.py",
        "(weight / scales.float().unsqueeze(-1))",
        "(weight / (weight.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127))",
        "tests/moe/test_quantize.py",
    ),
    (
        "a collapsed router is told once",
        "moe/doctor.py",
        "new = lasting - self._told",
        "new = lasting",
        "tests/moe/test_doctor.py",
    ),
    (
        "a continued run judges as one that never stopped",
        "moe/doctor.py",
        '            self.examine(line, int(line["step"]))',
        "            pass",
        "tests/moe/test_doctor.py",
    ),
    (
        "a dead expert is noticed",
        "moe/doctor.py",
        'if values[f"{of}load/{e}"] == 0)',
        'if values[f"{of}load/{e}"] < 0)',
        "tests/moe/test_doctor.py",
    ),
    (
        "the plan counts both moments of AdamW",
        "moe/footprint.py",
        "if muon else 2 * total) / work.shards",
        "if muon else total) / work.shards",
        "tests/moe/test_plan.py",
    ),
    (
        "a dense parent's gate stays the gate",
        "moe/parents.py",
        '_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}',
        '_MIXTRAL = {"gate": "w3", "up": "w1", "down": "w2"}',
        "tests/moe/test_upcycle.py",
    ),
    (
        "llama.cpp gets rows in its order",
        "moe/gguf.py",
        "tensor = neighbours(tensor, cfg.kv_heads)",
        "pass",
        "tests/moe/test_gguf.py",
    ),
    (
        "finer experts compute the same",
        "moe/upcycle.py",
        ".transpose(0, 1) * parts)",
        ".transpose(0, 1))",
        "tests/moe/test_upcycle.py",
    ),
    (
        "NaN is no proof",
        "moe/certificate.py",
        "if not found <= bound:",
        "if found > bound:",
        "tests/moe/test_upcycle.py",
    ),
    (
        "a changed parent is noticed",
        "trainers/pretrain.py",
        "sha256(path) for path",
        "path.stat().st_size for path",
        "tests/trainers/test_pretrain.py",
    ),
    (
        "an unproven conversion leaves nothing",
        "moe/convert.py",
        "shutil.rmtree(out, ignore_errors=True)",
        "pass",
        "tests/moe/test_convert.py",
    ),
    (
        "a rotation turns by its angle",
        "moe/native.c",
        "to[i] = a * c[i] - b * s[i];",
        "to[i] = a * c[i] + b * s[i];",
        "tests/moe/test_native.py",
    ),
    (
        "padding of a chunk has no gradient",
        "moe/native.c",
        "memset(x, 0, vocabulary * sizeof(float));",
        "(void)x;",
        "tests/moe/test_native.py",
    ),
    (
        "documents do not see each other in the kernels",
        "moe/attention.c",
        "MIN(KEYS, start[query + q] - key)",
        "MIN(KEYS, start[query + q] - key - 1)",
        "tests/moe/test_native.py",
    ),
    (
        "nothing is compiled during a run",
        "moe/native.py",
        "if not built().exists():",
        "if build():",
        "tests/moe/test_native.py",
    ),
    (
        "workers' gradients are summed",
        "moe/parallel.py",
        "module.set_gradient_divide_factor(1.0)",
        "pass",
        "tests/moe/test_parallel.py",
    ),
    (
        "clipping sees all workers' gradients",
        "moe/parallel.py",
        "dist.all_reduce(squares)",
        "pass",
        "tests/moe/test_parallel.py",
    ),
    (
        "balance is over the global batch",
        "moe/router.py",
        "counts = global_sum(torch.bincount(experts.flatten(), minlength=gate.shape[0]).float())",
        "counts = torch.bincount(experts.flatten(), minlength=gate.shape[0]).float()",
        "tests/moe/test_parallel.py",
    ),
    (
        "the auxiliary loss is counted once under checkpointing",
        "moe/decoder.py",
        "auxiliary=self.cfg.balance_coef",
        "auxiliary=(1 + self.checkpointing) * self.cfg.balance_coef",
        "tests/moe/test_parallel.py",
    ),
    (
        "no bias is exported",
        "moe/config.py",
        '"attention_bias": False',
        '"attention_bias": True',
        "tests/moe/test_folder.py",
    ),
    (
        "padding of an expert's tile carries no weight",
        "moe/experts.py",
        "weight = weight.new_zeros(slots)",
        "weight = weight.new_ones(slots)",
        "tests/moe/test_gemm.py",
    ),
    (
        "rows that pad a product are cut off",
        "moe/gemm.py",
        "return product(x, weight.t())[:n]",
        "return product(x, weight.t())",
        "tests/moe/test_gemm.py",
    ),
]


Outcomes = dict[str, "Future[subprocess.CompletedProcess[str]]"]


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """What the tests say of each bug that was asked for; two are planted at a time."""
    items = [cast(pytest.Function, item) for item in request.session.items if item.path == request.path]
    asked = {item.callspec.params["promise"] for item in items}
    with ThreadPoolExecutor(2) as pool:
        yield {
            promise: pool.submit(plant, tmp_path_factory.mktemp("planted"), file, right, bug, test)
            for promise, file, right, bug, test in BUGS
            if promise in asked
        }


def plant(copy: Path, file: str, right: str, bug: str, test: str) -> subprocess.CompletedProcess[str]:
    for name in ("conf", "moe", "cluster", "trainers", "rlhf", "serving", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("data", "pyproject.toml"):
        (copy / name).symlink_to(ROOT / name)
    code = (copy / file).read_text("utf-8")
    assert code.count(right) == 1, f"{file} no longer says: {right}"
    (copy / file).write_text(code.replace(right, bug), "utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not ray and not slow", test]
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=200)
    shutil.rmtree(copy)
    return done


@pytest.mark.parametrize("promise", [bug[0] for bug in BUGS])
def test_the_planted_bug_turns_its_test_red(promise: str, outcomes: Outcomes) -> None:
    done = outcomes[promise].result()
    red = done.returncode == 1 and (
        " failed" in done.stdout or " error" in done.stdout
    )  # a fixture may notice it first
    assert red, f"{promise}: still green\n{done.stdout[-2000:]}"

"""Every promise has a bug that turns its test red: plant each in a copy of the sources and see.

A line: what is promised, the file, the right code, the bug, the test that must fail.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]
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
        "moe/decoder.py",
        "(same & causal).unsqueeze(1)",
        "causal.expand_as(same).unsqueeze(1)",
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
]


@pytest.mark.parametrize(("promise", "file", "right", "bug", "test"), BUGS, ids=[bug[0] for bug in BUGS])
def test_the_planted_bug_turns_its_test_red(
    promise: str, file: str, right: str, bug: str, test: str, tmp_path: Path
) -> None:
    for name in ("conf", "moe", "cluster", "trainers", "rlhf", "serving", "tests", "data", "pyproject.toml"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.gz"))
        else:
            shutil.copy(source, tmp_path / name)
    code = (tmp_path / file).read_text("utf-8")
    assert code.count(right) == 1, f"{file} no longer says: {right}"
    (tmp_path / file).write_text(code.replace(right, bug), "utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not ray and not slow", test]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110)
    assert done.returncode == 1 and " failed" in done.stdout, f"{promise}: still green\n{done.stdout[-2000:]}"

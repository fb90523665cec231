"""Runs test files in forks of a process that has the libraries loaded, each against a tree of its own.

A line on standard input, {"tree", "test", "seconds"}, is answered by one: {"code", "output"}. It imports nothing of
ours: a fork takes that from its tree.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

TIMEOUT = 98  # the exit code for a test that ran into a time limit: it neither passed nor failed


def serve() -> None:
    # Each is seconds that a fork need not spend. None of them starts a thread.
    import fastapi  # noqa: F401
    import hydra  # noqa: F401
    import hypothesis  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import pytest  # noqa: F401
    import ray.data
    import ray.train.torch  # noqa: F401
    import safetensors.torch  # noqa: F401
    import tokenizers  # noqa: F401
    import torch._dynamo  # which the first optimizer loads
    import torch.distributed.fsdp  # noqa: F401
    import transformers  # noqa: F401

    gc.collect()
    gc.freeze()  # a fork looks through its own objects only, and pytest has that done five times
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            process = os.fork()
            if not process:
                os.setsid()
                _run(asked["tree"], asked["test"], output.fileno())
            code = _ended(process, asked["seconds"])
            output.seek(0)
            answer = {"code": code, "output": output.read()}
        print(json.dumps(answer), file=answers, flush=True)


def _ended(process: int, seconds: float) -> int:
    """The exit code of a fork, which is killed with all it started when it takes longer: a bug may make it hang."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return TIMEOUT


def _run(tree: str, test: str, output: int) -> None:
    code = 99
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(tree)
        sys.path[:] = [
            tree,
            *(path for path in sys.path if path not in ("", os.path.dirname(os.path.dirname(__file__)))),
        ]
        os.environ["PYTHONPATH"] = tree
        import pytest

        limits = _Limits()
        quick = [] if "::" in test else ["-m", "not ray and not slow"]  # of a whole file; a test that is named runs
        words = ["-x", "-q", "-p", "no:cacheprovider", *quick, test]
        code = int(pytest.main(words, plugins=[limits]))
        code = TIMEOUT if limits.reached else code
    finally:
        sys.stdout.flush()
        os._exit(code)


class _Limits:
    """Sees whether it was a time limit that ended the run: pytest-timeout's, or one that the test itself sets."""

    reached = False

    def pytest_exception_interact(self, call: Any) -> None:
        error = call.excinfo.value
        limit = isinstance(error, (TimeoutError, subprocess.TimeoutExpired))
        self.reached |= limit or "from pytest-timeout" in str(error)


if __name__ == "__main__":
    serve()

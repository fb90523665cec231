"""Runs test files in forks of a process that has the libraries loaded, each against a tree of its own.

A line on standard input, {"tree", "test"}, is answered by one: {"code", "output"}. It imports nothing of ours: a fork
takes that from its tree.
"""

import json
import os
import sys
import tempfile


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
    import torch.distributed.fsdp  # noqa: F401
    import transformers  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = json.loads(line)
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            process = os.fork()
            if not process:
                _run(asked["tree"], asked["test"], output.fileno())
            _, status = os.waitpid(process, 0)
            output.seek(0)
            answer = {"code": os.waitstatus_to_exitcode(status), "output": output.read()}
        print(json.dumps(answer), file=answers, flush=True)


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

        code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-m", "not ray and not slow", test]))
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()

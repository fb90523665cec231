"""The job: which model it takes, what it refuses, and that it ends when asked."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import torch

from cluster import storage
from cluster.feedback import for_training
from conf.errors import InputError
from conf.knobs import running
from conf.schema import Config
from serving.models import find_model, load_model, version
from serving.serve import free_port
from tests import readme
from tests.serving.conftest import Tiny


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    return Config(run=running.Run(name="mine", dir=str(tmp_path)))


def finish(cfg: Config, tiny: Tiny, stage: str) -> Path:
    folder = cfg.run.folder / stage
    shutil.copytree(tiny.folder, folder)
    storage.seal(folder)
    return folder


def test_rl_comes_before_chat_and_an_unfinished_stage_does_not_count(cfg: Config, tiny: Tiny) -> None:
    with pytest.raises(InputError, match="has no finished stage rl or hfft or cohft or chat; "):
        find_model(cfg)
    chat = finish(cfg, tiny, "chat")
    shutil.copytree(tiny.folder, cfg.run.folder / "rl")  # without a manifest
    assert find_model(cfg) == (chat, "mine-chat")
    storage.seal(cfg.run.folder / "rl")
    assert find_model(cfg) == (cfg.run.folder / "rl", "mine-rl")


def test_a_damaged_file_is_named(cfg: Config, tiny: Tiny) -> None:
    weights = finish(cfg, tiny, "rl") / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match="model.safetensors"):
        find_model(cfg)


def test_a_folder_of_ones_own(cfg: Config, tiny: Tiny, tmp_path: Path) -> None:
    cfg.serve.model = str(tiny.folder)
    assert find_model(cfg) == (tiny.folder, "tiny")
    cfg.serve.model = str(tmp_path / "nowhere")
    with pytest.raises(InputError, match="nowhere: no model here"):
        find_model(cfg)


def test_another_runs_tokenizer_is_refused(cfg: Config, tiny: Tiny, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(tiny.folder, mixed)
    config = json.loads((mixed / "config.json").read_text())
    (mixed / "config.json").write_text(json.dumps(config | {"vocab_size": 256}))
    cfg.serve.model = str(mixed)
    with pytest.raises(InputError, match="vocab_size=256, but the tokenizer beside it needs"):
        find_model(cfg)


def test_a_taken_port_is_refused_and_zero_finds_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"serve.port={port}: Address already in use; try serve.port=0"):
            free_port("127.0.0.1", port)
    assert 1024 < free_port("127.0.0.1", 0) < 65536


def test_no_model_ends_the_command_in_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "serving.serve", f"run.dir={tmp_path}", "run.name=empty"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert done.stderr.startswith("error: run.name=empty: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_command_answers_and_ends_when_asked(tiny: Tiny, tmp_path: Path) -> None:
    words = [sys.executable, *readme.command("python -m serving.serve").words[1:]]
    words += [f"serve.model={tiny.folder}", "serve.port=0", f"run.dir={tmp_path}", "serve.keys_env=OUR_KEYS"]
    words += ["serve.drain_timeout=300"]  # a busy machine is slow
    words += ["cluster.object_store_mb=128", f"cluster.temp_dir=/tmp/conclave-serve-{os.getpid()}"]
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    env["OUR_KEYS"] = "alice sk-0123456789abcdef per_minute=3"
    key = {"Authorization": "Bearer sk-0123456789abcdef"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout is not None
        address = re.fullmatch(r"tiny answers at (http://127.0.0.1:\d+)/v1 .*\n", process.stdout.readline())
        assert address
        body = {"model": "tiny", "messages": [{"role": "user", "content": "你好"}], "max_tokens": 4, "temperature": 0}
        assert httpx.post(f"{address[1]}/v1/chat/completions", json=body).status_code == 401  # through Serve's proxy
        assert httpx.get(f"{address[1]}/-/routes").status_code == 401
        reply = httpx.post(f"{address[1]}/v1/chat/completions", json=body, headers=key, timeout=600)
        assert reply.json()["usage"]["completion_tokens"] == 4
        assert reply.json()["system_fingerprint"] == version(tiny.folder)
        assert (
            'generation_tokens_total{engine="0",model_name="tiny"} 4.0'
            in httpx.get(f"{address[1]}/metrics", headers=key).text
        )
        assert "<title>Conclave</title>" in httpx.get(address[1], headers=key).text
        vote = {"id": "f", "conversation": "c", "kind": "up", "messages": body["messages"], "answers": [{"text": "好"}]}
        assert httpx.post(f"{address[1]}/v1/feedback", json=vote, headers=key).status_code == 201
        assert [vote.owner for vote in for_training(tmp_path / "default" / "feedback.sqlite3")] == ["alice"]
        long = body | {"max_tokens": 900, "stream": True}
        with httpx.stream("POST", f"{address[1]}/v1/chat/completions", json=long, headers=key, timeout=600) as stream:
            lines = stream.iter_lines()
            next(lines)
            assert httpx.post(f"{address[1]}/v1/feedback", json=vote, headers=key).status_code == 429  # the fourth
            process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert process.wait(600) == 0
        assert process.stdout.read().endswith("\n\nshutting down\n")
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(f"/tmp/conclave-serve-{os.getpid()}", ignore_errors=True)


def test_int8_or_bf16_is_what_answers_when_it_is_asked_for(tiny: Tiny) -> None:
    from moe.kernels.int8 import Int8

    whole, small = load_model(str(tiny.folder), int8=False), load_model(str(tiny.folder), int8=True)
    assert torch.equal(whole.lm_head.weight, tiny.model.lm_head.weight)
    assert isinstance(small.lm_head.get_submodule("weight"), Int8)
    assert torch.equal(load_model(tiny.folder, int8=False, bf16=True).lm_head.weight, whole.lm_head.weight.bfloat16())
    with pytest.raises(InputError, match="serve.int8=true and serve.bf16=true: the weights can be one of them"):
        running.Serve(int8=True, bf16=True)


def test_the_model_that_answers_lies_where_the_cluster_says(tiny: Tiny) -> None:
    from conf.knobs.running import Cluster

    assert [Cluster(gpus_per_worker=share).device for share in (0.0, 0.5)] == ["cpu", "cuda"]
    assert load_model(str(tiny.folder), int8=False, device="meta").device.type == "meta"  # as of a GPU, without one


def test_a_version_is_of_the_bytes_wherever_they_lie_and_sealed_or_not(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.folder, tmp_path / "copy")
    assert version(tmp_path / "copy") == version(tiny.folder)
    storage.seal(tmp_path / "copy")
    assert version(tmp_path / "copy") == version(tiny.folder)
    (tmp_path / "copy" / "manifest.json").unlink()
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert version(tmp_path / "copy") != version(tiny.folder)
    assert re.fullmatch("fp_[0-9a-f]{16}", version(tiny.folder))

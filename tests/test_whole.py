"""The whole pipeline at test size, on the real poems and a real Ray: what a user gets, and what a kill changes.

Planted bugs these turn red: a stage made again although nothing changed, the data cursor lost on resume, PPO seeds that
depend on the process, a chat template that differs between us and transformers.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cluster.pipeline import main
from cluster.run import read_manifest
from cluster.tracking.tracker import read_metrics
from conf.entry import compose
from moe import convert
from moe.formats import hugging_face, llama_cpp
from moe.generation.engine import Sampling, generate
from moe.tasks.measure import read_task_file
from moe.text.chat import prompt_ids
from moe.text.tokenizer import Tokenizer

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[1]
STAGES = "corpus tokenizer tokens tasks base chat ranked reward rl".split()


def words(folder: Path) -> list[str]:
    return ["preset=test", f"run.dir={folder}"]


def losses(stage: Path) -> list[Any]:
    return [
        (line["step"], line[name]) for line in read_metrics(stage) for name in ("loss", "rl/reward") if name in line
    ]


def test_every_stage_is_done_and_learnt_what_it_could(whole_run: Path) -> None:
    manifests = {stage: read_manifest(whole_run / stage) for stage in STAGES}
    assert manifests["corpus"]["metrics"]["kept"] == 3000
    curve = losses(whole_run / "base")
    assert curve[0][0] == 5 and 6.5 < curve[0][1] < np.log(2048)  # an untrained model has the logarithm
    assert curve[-1][1] < 5.7
    assert manifests["base"]["metrics"]["loss"] < 5.7
    assert manifests["chat"]["metrics"]["loss"] < losses(whole_run / "chat")[0][1]
    assert manifests["reward"]["metrics"]["pair_accuracy"] > 0.6
    assert 0 <= manifests["rl"]["metrics"]["kl_per_answer"] < 20
    assert all(line["train/rollout_logprob_abs_diff"] < 1e-4 for line in read_metrics(whole_run / "rl"))
    for stage in ("chat", "rl"):
        assert {"form_ok", "rhyme_ok", "copied", "distinct", "form_accuracy"} <= manifests[stage]["metrics"].keys()
    samples = json.loads((whole_run / "rl" / "samples.json").read_text("utf-8"))
    assert all({"prompt", "base", "chat", "rl"} <= sample.keys() for sample in samples)
    html = (whole_run / "report.html").read_text("utf-8")
    assert "<svg" in html and "prefers-color-scheme" in html and samples[0]["prompt"] in html


@pytest.mark.parametrize("stage", ["base", "chat", "rl"])
def test_transformers_opens_every_model(whole_run: Path, stage: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs, ours = AutoModelForCausalLM.from_pretrained(whole_run / stage), hugging_face.load(whole_run / stage)
    tokenizer, pieces = AutoTokenizer.from_pretrained(whole_run / stage), Tokenizer.load(whole_run / stage)
    text = "作一首五言绝句，题为《春山》 hello 🙂"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == pieces.encode(text)
    messages = [{"role": "user", "content": text}]
    templated = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)
    ids = prompt_ids(pieces, messages)
    assert list(templated["input_ids"] if hasattr(templated, "keys") else templated) == ids
    rows = torch.tensor([ids])
    with torch.no_grad():
        difference = ours.logits(ours(rows, torch.ones_like(rows)).states) - theirs(rows).logits[0]
    assert difference.abs().max().item() < 1e-4


@pytest.mark.parametrize("stage", ["base", "chat", "rl"])
def test_other_tools_give_our_answers_by_their_own_defaults(whole_run: Path, stage: str, tmp_path: Path) -> None:
    """Told nothing but how much they may write, they end where our engine ends."""
    from transformers import AutoModelForCausalLM

    pieces = Tokenizer.load(whole_run / stage)
    queries = read_task_file(whole_run / "tasks" / "test_prompts.jsonl", limit=2)
    prompts = [prompt_ids(pieces, query.messages) for query in queries]
    stop = (pieces.eos,) if stage == "base" else (pieces.im_end, pieces.eos)
    greedy = [Sampling(60, temperature=0.0)] * len(prompts)
    ours = [answer.tokens for answer in generate(hugging_face.load(whole_run / stage), prompts, greedy, stop=stop)]
    assert sum(answer[-1] in stop for answer in ours) >= len(ours) // 2, "too few answers end to prove anything"
    theirs = AutoModelForCausalLM.from_pretrained(whole_run / stage)
    with torch.no_grad():
        for prompt, answer in zip(prompts, ours, strict=True):
            made = theirs.generate(torch.tensor([prompt]), max_new_tokens=60, do_sample=False)
            assert made[0, len(prompt) :].tolist() == answer
    words = [f"convert.source={whole_run / stage}", f"convert.target={tmp_path / 'out'}", "convert.forms=[gguf]"]
    assert convert.main(compose(words))["forms"][0]["ends"] == list(stop)
    if llama_cpp.installed():
        with llama_cpp.opened(tmp_path / "out" / "model.gguf") as opened:
            for prompt, answer in zip(prompts[:4], ours, strict=False):
                assert opened.answer(prompt, 60) == answer


def test_the_same_command_again_skips_every_stage(whole_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {stage: (whole_run / stage / "manifest.json").stat().st_mtime_ns for stage in STAGES}
    main(compose(words(whole_run.parent)))
    assert capsys.readouterr().out.count(": skipped in") == len(STAGES)
    assert before == {stage: (whole_run / stage / "manifest.json").stat().st_mtime_ns for stage in STAGES}


def test_a_changed_knob_is_refused_by_name(whole_run: Path) -> None:
    from conf.errors import InputError

    with pytest.raises(InputError, match=r"optim.lr=0.005, now optim.lr=0.004"):
        main(compose([*words(whole_run.parent), "optim.lr=0.004"]))


@pytest.mark.parametrize(("stage", "at"), [("base", "step-00000020"), ("rl", "step-00000001")])
def test_sigkill_changes_nothing(whole_run: Path, tmp_path: Path, stage: str, at: str) -> None:
    """Kill the pipeline once the stage has a checkpoint, type the same command: the same weights to the bit."""
    copy = tmp_path / "test"
    for done in STAGES[: STAGES.index(stage)]:
        shutil.copytree(whole_run / done, copy / done)
    command = [sys.executable, "-m", "cluster.pipeline", *words(tmp_path), f"pipeline.stages=[{stage}]"]
    # a cluster of its own: what Ray put into this process's environment belongs to the session's
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    while not (copy / stage / "checkpoints" / at / "manifest.json").exists():
        assert process.poll() is None, "no checkpoint appeared before the end"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (copy / stage / "manifest.json").exists(), "the kill came too late to prove anything"
    main(compose([*words(tmp_path), f"pipeline.stages=[{stage}]"]))
    ours, undisturbed = (load_file(place / stage / "model.safetensors") for place in (copy, whole_run))
    assert ours.keys() == undisturbed.keys()
    assert all(torch.equal(ours[name], undisturbed[name]) for name in ours)
    assert losses(copy / stage) == losses(whole_run / stage)

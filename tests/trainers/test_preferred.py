"""HFFT and COHFT from rankings to models, PPO that starts from one, and the comparison of all."""

import json
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cluster.pipeline import main as pipeline
from cluster.run import read_manifest
from cluster.tracking.tracker import read_metrics
from conf.entry import compose
from conf.errors import InputError
from conf.knobs.alignment import Cohft, Hfft
from conf.knobs.running import Run
from conf.schema import Config
from moe.decoder import new_decoder
from moe.tasks.task import PRINCIPLES, Sample
from moe.text.tokenizer import Tokenizer
from moe.training.objectives import language_loss
from tests.trainers.test_parent import chat_model, written
from trainers.files.hindsight import chains, plain
from trainers.files.rankings import read_rankings
from trainers.files.readers import digest
from trainers.preferred import row_length, taught
from trainers.rows.conversations import piece, write
from trainers.rows.held_out import in_turn
from trainers.rows.rows import Rows

NUMBERS = "one two three four five six".split()


def rankings(place: Path) -> Path:
    """The right order, and two answers that are not as good; the first of the lines has nothing good."""
    lines: list[dict[str, Any]] = [
        {
            "messages": [{"role": "user", "content": f"what is {first} {second}"}],
            "answers": [
                {"text": f"{first} {first}", "rank": 1, "total": 0.5},
                {"text": f"{second} {first}", "rank": 0, "total": 1.0, "ranks": {"clear": 0}},
                {"text": "six", "rank": 2, "total": 0.0, "ranks": {"clear": 1}},
            ],
        }
        for first in NUMBERS
        for second in NUMBERS
    ]
    lines[0]["answers"][1]["total"] = 0.25
    path = place / "ranked.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_model(tmp_path_factory.mktemp("chat") / "model")


def test_the_loss_is_that_of_the_best_answer_or_of_both_answers_of_a_chain(tmp_path: Path, model: Path) -> None:
    """A model that knows nothing pays log V for each token of an answer and for its end."""
    tokenizer = Tokenizer.load(model)
    ours = new_decoder(compose(["model=tiny"]).model, tokenizer.padded_size, seed=0).eval()
    torch.nn.init.zeros_(ours.lm_head.weight)
    record = read_rankings(rankings(tmp_path), PRINCIPLES)[7]  # what is two two
    best, worst = (len(tokenizer.encode(text)) + 1 for text in ("two two", "six"))

    def cost(folder: Path) -> float:
        (batch,) = in_turn(Rows(folder), 10)
        return language_loss(ours, batch).total.item()

    hfft = write(tmp_path / "hfft", [plain(record)], tokenizer, Hfft(row_length=64), "hfft")
    assert cost(hfft) == pytest.approx(best * log(tokenizer.padded_size), rel=1e-5)
    made = chains(record, ["clear"], Cohft(), seed=0)
    cohft = write(tmp_path / "cohft", made, tokenizer, Cohft(row_length=128), "cohft")
    assert len(made) == 2 and cost(cohft) == pytest.approx(2 * (best + worst) * log(tokenizer.padded_size), rel=1e-5)
    row = Rows(cohft).fetch(np.array([0]))
    learnt = tokenizer.decode(row["tokens"][0][row["loss"][0] == 1].tolist())
    assert "answer" not in learnt and "six" in learnt


def test_rows_are_as_long_as_the_longest_sample_where_the_context_allows(tmp_path: Path, model: Path) -> None:
    record = read_rankings(rankings(tmp_path), PRINCIPLES)[7]
    tokenizer, context = Tokenizer.load(model), compose(["model=tiny"]).model.context

    def told(words: int) -> Sample:
        return plain(record | {"answers": [{"text": "one " * words, "rank": 0}]})

    longer, longest = told(90), told(5000)
    length = len(piece(longer, tokenizer)[0])
    assert 64 < length < 192 and length % 64
    assert row_length(Cohft(), [plain(record)], model) == 64
    assert row_length(Cohft(), [plain(record), longer], model) == length + -length % 64
    assert row_length(Cohft(), [longer, longest], model) == context
    assert row_length(Cohft(row_length=96), [longer, longest], model) == 96


def test_where_nothing_is_good_enough_the_knob_is_named(tmp_path: Path) -> None:
    cfg = Config(run=Run(dir=str(tmp_path)), hfft=Hfft(at_least=2.0))
    file = str(rankings(tmp_path))
    own = {file: digest(file)}
    with pytest.raises(InputError, match=r"^hfft: of 36 rankings 0 are learnt from .* 36 whose best answer has"):
        taught(cfg, "hfft", cfg.hfft, lambda record, _: [plain(record)], own, tmp_path)
    cfg.hfft.at_least = 0.5
    train, held, counts = taught(cfg, "hfft", cfg.hfft, lambda record, _: [plain(record)], own, tmp_path)
    assert (len(train), len(held)) in ((31, 4), (32, 3))
    assert counts == {"read": 36.0, "rejected": 0.0, "below": 1.0, "no_best": 0.0}


@pytest.mark.ray
@pytest.mark.slow
def test_rankings_make_models_that_ppo_starts_from_and_the_report_compares(
    ray_cluster: None, tmp_path: Path, model: Path
) -> None:
    small = (
        "optim.lr=3e-3 hfft.steps=40 hfft.lr_scale=1 hfft.save_every=20 cohft.steps=40 cohft.lr_scale=1 "
        "hfft.at_least=0.5 evaluate.prompts=4 evaluate.max_new_tokens=8 ppo.iterations=1 ppo.prompts=4 ppo.samples=2 "
        "ppo.keep=0 ppo.max_new_tokens=8 ppo.minibatches=2 ppo.rewards.model=0 ppo.advantages=group ppo.lr=1e-12 "
        "ppo.start=hfft pipeline.samples=1 tokens.row_length=64 sft.row_length=64"
    ).split()
    rank = rankings(tmp_path)
    own = [f"run.dir={tmp_path}/runs", "run.name=r", f"parent.model={model}", *small]
    own += [f"sft.files=[{written(tmp_path)}]", f"hfft.files=[{rank}]", f"cohft.files=[{rank}]"]
    run = tmp_path / "runs" / "r"
    stages = "tasks,hfft,cohft,rl,compared,report"
    pipeline(compose([*own, f"pipeline.stages=[{stages}]"]))
    found = {stage: read_manifest(run / stage) for stage in ("hfft", "cohft", "rl", "compared")}
    assert found["hfft"]["inputs"].keys() == found["cohft"]["inputs"].keys() == {"parent", "tasks"}
    assert found["rl"]["inputs"].keys() == {"parent", "hfft", "tasks"}
    assert found["compared"]["inputs"].keys() == {"parent", "hfft", "cohft", "rl", "tasks"}
    hfft, cohft = found["hfft"]["metrics"], found["cohft"]["metrics"]
    assert (hfft["below"], hfft["no_best"], hfft["read"]) == (1.0, 0.0, 36.0) and cohft["below"] == 0.0
    for stage in ("hfft", "cohft"):
        curve = [line["val/loss"] for line in read_metrics(run / stage) if "val/loss" in line]
        assert found[stage]["metrics"]["best/loss"] < 2.0 < log(450) and curve[-1] < 2.0
    assert {"prompted/finished", "finished"} <= cohft.keys() and "prompted/finished" not in hfft
    # rl moved nothing: it is the model that it started from
    weights = [load_file(run / stage / "model.safetensors") for stage in ("hfft", "rl", "parent")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-6) for name in weights[0])
    assert not all(torch.allclose(weights[0][name], weights[2][name], atol=1e-3) for name in weights[0])
    (line,) = (line for line in read_metrics(run / "rl") if "rl/kl" in line)
    assert abs(line["rl/kl"]) < 1e-3 < found["rl"]["metrics"]["kl_per_answer"]  # its own start; the chat model
    table = json.loads((run / "compared" / "comparison.json").read_text())
    assert list(table) == ["chat", "hfft", "cohft", "rl"]
    assert table["rl"]["rules"]["mean"] == pytest.approx(table["hfft"]["rules"]["mean"], abs=1e-6)
    assert table["hfft"]["kl"]["mean"] > 1.0 and "kl" not in table["chat"]
    assert "Compared on the same held-out queries" in (run / "report.html").read_text()
    pipeline(compose([*own, f"pipeline.stages=[{stages}]"]))
    states = {stage["stage"]: stage["state"] for stage in json.loads((run / "pipeline.json").read_text())["stages"]}
    assert {states[stage] for stage in ("hfft", "cohft", "rl", "compared")} == {"skipped"}


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "rows are never longer than the model's context",
        "trainers/preferred.py",
        "min(context, -(-longest // ROUND) * ROUND)",
        "-(-longest // ROUND) * ROUND",
        "test_rows_are_as_long_as_the_longest_sample_where_the_context_allows",
    ),
    (
        "what is left out is counted in both parts",
        "trainers/preferred.py",
        "gone[what] + more[what] for what in gone",
        "0.0 for what in gone",
        "test_where_nothing_is_good_enough_the_knob_is_named",
    ),
]

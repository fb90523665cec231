"""A run that begins with a model that is there: fine-tuned, ranked, rewarded without a corpus and pretraining."""

import json
from pathlib import Path

import pytest
import torch

from cluster.pipeline import main as pipeline
from cluster.run import read_manifest
from conf.entry import compose
from conf.errors import InputError
from conf.knobs.model import Parent
from conf.knobs.running import Run
from conf.knobs.text import Tokenizer as Settings
from conf.schema import Config
from moe.decoder import new_decoder
from moe.formats import checkpoints, hugging_face
from moe.formats.grow import grow
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from tests.moe.formats.foreign_models import foreign
from trainers import sft
from trainers.parent import main


def config(model: Path, runs: Path) -> Config:
    return Config(run=Run(dir=str(runs), name="r"), parent=Parent(model=str(model), experts=4, top_k=2))


@pytest.mark.parametrize("kind", ["llama", "qwen3_moe"])
def test_it_is_the_model_that_it_was(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = foreign(kind, tmp_path / "model")
    cfg = config(source, tmp_path)
    metrics = main(cfg)
    folder = cfg.run.folder / "parent"
    assert "the logits differ from the parent's by at most" in capsys.readouterr().out
    assert metrics["parameters"] >= metrics["active_parameters"] > 0
    ours, pieces = hugging_face.load(folder), Tokenizer.load(source)
    expected = grow(checkpoints.new_from(cfg.parent, cfg.run.seed), pieces, pieces).state_dict()
    assert ours.cfg.experts == 4
    assert all(torch.equal(tensor, expected[name]) for name, tensor in ours.state_dict().items())
    found = checkpoints.defaults(folder)
    assert Tokenizer.load(folder).digest == pieces.digest
    assert set(found.stop) == {*pieces.stop, *checkpoints.defaults(source).stop}
    before = (folder / "manifest.json").read_bytes()
    assert main(cfg) == metrics and (folder / "manifest.json").read_bytes() == before
    # known by what it holds, wherever it lies
    moved = source.rename(tmp_path / "moved")
    assert main(config(moved, tmp_path)) == metrics
    cfg = config(moved, tmp_path)
    cfg.parent.experts = 8
    with pytest.raises(InputError, match="made with parent.experts=4, now parent.experts=8"):
        main(cfg)


def test_without_a_parent_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="parent.model is empty; give parent.model="):
        main(Config(run=Run(dir=str(tmp_path))))
    with pytest.raises(
        InputError, match="stage chat reads stage base, .*; or begin with a model that is there: parent."
    ):
        sft.main(Config(run=Run(dir=str(tmp_path))))
    assert list(tmp_path.iterdir()) == []


def chat_model(folder: Path) -> Path:
    """A small model with a tokenizer of ours, as an earlier run leaves it."""
    cfg = compose(["model=tiny"]).model
    tokenizer = Tokenizer.train(
        ["user assistant system\n what is one two three four five six"] * 9, Settings(vocab_size=450)
    )
    folder.mkdir()
    model = new_decoder(cfg, tokenizer.padded_size, seed=5)
    hugging_face.save(model, folder, Defaults.of(tokenizer, chat=True))
    return folder


def written(place: Path) -> Path:
    numbers = "one two three four five six".split()
    samples = [
        {"instruction": f"what is {first} {second}", "output": f"{second} {first}"}
        for first in numbers
        for second in numbers
    ]
    path = place / "own.jsonl"
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


@pytest.mark.ray
@pytest.mark.slow
def test_a_chat_model_is_tuned_ranked_and_rewarded_without_a_corpus(ray_cluster: None, tmp_path: Path) -> None:
    model = chat_model(tmp_path / "model")
    small = (
        "sft.steps=4 sft.batch_rows=4 sft.row_length=64 sft.eval_every=4 tokens.row_length=64 evaluate.prompts=4 "
        "evaluate.max_new_tokens=8 rank.prompts=8 rank.max_new_tokens=8 reward.steps=2 reward.eval_every=2 "
        "reward.batch_rows=2 reward.held_out=0.4 ppo.iterations=1 ppo.prompts=4 ppo.max_new_tokens=8 ppo.minibatches=2 "
        "pipeline.samples=1"
    ).split()
    own = [f"run.dir={tmp_path}/runs", f"parent.model={model}", f"sft.files=[{written(tmp_path)}]", *small]
    run = tmp_path / "runs" / "tuned"
    metrics = sft.main(compose([*own, "run.name=tuned"]))  # one command makes what it needs
    assert {"loss", "finished", "macro/exact_match"} <= metrics.keys() and "forgetting" not in metrics
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["chat", "parent", "tasks"]
    assert read_manifest(run / "chat")["inputs"].keys() == {"parent", "tasks"}
    assert Tokenizer.load(run / "chat").digest == Tokenizer.load(model).digest
    # other evaluation settings: measured again, not trained again
    before = (run / "chat" / "model.safetensors").stat().st_mtime_ns
    again = sft.main(compose([*own, "run.name=tuned", "evaluate.prompts=2"]))
    assert (run / "chat" / "model.safetensors").stat().st_mtime_ns == before
    assert len(json.loads((run / "chat" / "answers.json").read_text())) == 2 and again["loss"] == metrics["loss"]
    # and the parent itself as the chat model
    pipeline(compose([*own, "run.name=aligned", "pipeline.stages=[tasks,ranked,reward,rl]"]))
    aligned = tmp_path / "runs" / "aligned"
    assert sorted(path.name for path in aligned.iterdir() if path.is_dir()) == [
        "parent",
        "ranked",
        "reward",
        "rl",
        "tasks",
    ]
    assert read_manifest(aligned / "rl")["inputs"].keys() == {"parent", "reward", "tasks"}
    record = json.loads((aligned / "pipeline.json").read_text())
    assert [stage["stage"] for stage in record["stages"]] == ["tasks", "parent", "ranked", "reward", "rl"]
    # another length of what is done is refused, and more answers only measure
    pipeline(compose([*own, "run.name=aligned", "pipeline.stages=[tasks,ranked,reward,rl]", "pipeline.samples=2"]))
    record = json.loads((aligned / "pipeline.json").read_text())
    assert [stage["state"] for stage in record["stages"]] == ["skipped"] * 4 + ["measured"]
    assert len(json.loads((aligned / "rl" / "samples.json").read_text())) == 2


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a parent is known by how it is upcycled",
        "trainers/parent.py",
        '"parent": {**asdict(cfg.parent), "model": files}',
        '"parent": {"model": files}',
        None,
    ),
]

"""The pruning job: what it writes, what it reports, what it refuses."""

import json
from pathlib import Path

import pytest
import torch

from cluster.storage import verify
from conf.errors import InputError
from conf.knobs.model import Model, Prune
from conf.knobs.running import Run
from conf.knobs.text import Tokenizer as TokenizerConfig
from conf.schema import Config
from moe.decoder import new_decoder
from moe.formats import hugging_face
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from trainers.prune import expert_load, main
from trainers.rows.packing import pack
from trainers.rows.rows import Rows, write_rows
from trainers.suites import held_out

CFG = Model(hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=4, expert_size=32, context=32)
LINES = ["床前明月光，疑是地上霜。", "举头望明月，低头思故乡。", "白日依山尽，黄河入海流。"]


@pytest.fixture
def run(tmp_path: Path) -> Config:
    """A run with held-out rows, and a model beside it."""
    cfg = Config(run=Run(dir=str(tmp_path), name="run"))
    tokenizer = Tokenizer.train(LINES * 4, TokenizerConfig(vocab_size=512))
    ids = [tokenizer.encode(line) for line in LINES * 40]
    rows = pack(((one, [1] * len(one)) for one in ids), 32, pad=tokenizer.pad)
    meta = {"tokenizer": tokenizer.digest}
    write_rows(cfg.run.folder / "tokens" / "val", rows, row_length=32, rows_per_shard=64, meta=meta)
    model = new_decoder(CFG, tokenizer.padded_size, seed=1)
    hugging_face.save(model, tmp_path / "model", Defaults.of(tokenizer, chat=True))
    tokenizer.save(tmp_path / "model")
    cfg.prune = Prune(model=str(tmp_path / "model"), target=str(tmp_path / "small"), keep=3)
    return cfg


def test_the_least_used_expert_goes_and_the_loss_is_told(run: Config) -> None:
    metrics = main(run)
    target, source = Path(run.prune.target), hugging_face.load(run.prune.model)
    pruned, tokenizer = hugging_face.load(target), Tokenizer.load(target)
    rows = Rows(run.run.folder / "tokens" / "val")
    load = expert_load(source, rows, limit=1000)
    torch.testing.assert_close(load.sum(1), torch.ones(2, dtype=torch.float64))
    for layer, least in enumerate(load.argmin(1).tolist()):
        kept = [e for e in range(4) if e != least]
        gate = source.model.blocks()[layer].mlp.gate.weight
        assert torch.equal(pruned.model.blocks()[layer].mlp.gate.weight, gate[kept])
    assert metrics["loss_before"] == pytest.approx(held_out(source, tokenizer, rows, limit=1000)["loss"])
    assert metrics["loss_after"] == pytest.approx(held_out(pruned, tokenizer, rows, limit=1000)["loss"])
    assert metrics["load_kept"] == pytest.approx(float((1 - load.min(1).values).mean()))
    assert metrics["parameters_before"] - metrics["parameters_after"] == 2 * (3 * 32 * 32 + 32)
    ids = [json.loads((path / "generation_config.json").read_text()) for path in (target, Path(run.prune.model))]
    assert ids[0] == ids[1] and len(ids[0]["eos_token_id"]) == 2
    verify(target)


def test_the_load_of_batches_weighs_by_their_tokens(run: Config) -> None:
    source = hugging_face.load(run.prune.model)
    rows = Rows(run.run.folder / "tokens" / "val")
    assert len(rows) > 32, "one batch weighs nothing"
    batch = {
        name: torch.from_numpy(values).long() for name, values in rows.fetch(torch.arange(len(rows)).numpy()).items()
    }
    with torch.no_grad():
        whole = source(batch["tokens"], batch["segments"]).load
    torch.testing.assert_close(expert_load(source, rows, limit=1000).float(), whole, atol=1e-6, rtol=1e-5)


def test_a_target_that_is_there_or_not_given_is_refused(run: Config) -> None:
    run.prune.target = run.prune.model
    with pytest.raises(InputError, match=r"prune.target='.*/model' must name a folder that is not there yet"):
        main(run)
    run.prune.target = ""
    with pytest.raises(InputError, match=r"prune.target='' must name a folder"):
        main(run)

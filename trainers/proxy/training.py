"""One small model, trained on one part on a worker, and what it makes of the held-out text."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from conf.knobs.model import Precision
from conf.knobs.training import Pretrain, SpikeAction
from conf.schema import Config
from moe.decoder import new_decoder
from moe.kernels.allocator import keep_buffers
from moe.text.tokenizer import Tokenizer
from moe.training.objectives import LANGUAGE_MODEL
from moe.training.parallel import take_device
from trainers import suites
from trainers.loop.loop import learn, result
from trainers.loop.recipe import Plan
from trainers.rows.feed import DirectFeed
from trainers.rows.mixture import Course, opened
from trainers.rows.packing import document, pack
from trainers.rows.rows import Rows, write_rows


def write(folder: Path, texts: Sequence[str], tokenizer: Tokenizer, row_length: int, *, most: int = 0) -> int:
    """Pack texts into rows under `folder`, at most about `most` tokens of them; how many tokens there are."""
    pieces, count = [], 0
    for ids in tokenizer.encode_texts(list(texts)):
        pieces.append(document(ids, tokenizer.eos, tokenizer.opening))
        count += len(ids)
        if most and count >= most:
            break
    rows = pack(pieces, row_length, pad=tokenizer.pad)
    meta = {"tokenizer": tokenizer.digest, "documents": len(pieces)}
    about = write_rows(folder, rows, row_length=row_length, rows_per_shard=16384, meta=meta)
    return int(about["tokens"])


def measured(cfg: Config, folder: Path, tokenizer: Path, seed: int) -> dict[str, float]:
    """{"bits_per_byte", "loss", "epochs"} of the model of `seed` that is trained on `folder`/rows for the budget, on
    the held-out rows beside the part's folder. One that was cut short goes on; it is always the same model."""
    take_device(cfg.cluster)
    pieces, rows = Tokenizer.load(tokenizer), folder / "rows"
    fit = budget(cfg, rows)
    place = folder / f"model-{seed}"
    plan = Plan.of(
        # the workers of the run train one model each; fp32, for what is the fastest is measured anew each time
        replace(cfg, cluster=replace(cfg.cluster, workers=1), run=replace(cfg.run, seed=seed)),
        "proxy",
        fit,
        start=lambda: new_decoder(cfg.model, pieces.padded_size, seed=seed),
        objective=LANGUAGE_MODEL,
        course=Course.of(rows),
        held_out={"val": folder.parent / "held_out"},
        decode=pieces.decode,
    )
    # what a part has in it is what is measured: no row is left out because it surprises, as dirty ones do
    spikes = replace(plan.spikes, action=SpikeAction.none)
    plan = replace(plan, folder=place, spikes=spikes, compute=replace(plan.compute, precision=precision(cfg)))
    shape = plan.check()
    keep_buffers(float(sum(p.numel() * p.itemsize for p in shape.parameters())))
    learn(plan, lambda position: DirectFeed(plan.course, seed=seed, position=position))
    held = Rows(folder.parent / "held_out")
    found = suites.held_out(result(plan), pieces, held, limit=len(held))
    shutil.rmtree(place)  # only the numbers count
    epochs = fit.steps * fit.batch_rows / len(opened(rows))
    return {"bits_per_byte": found["bits_per_byte"], "loss": found["loss"], "epochs": epochs}


def budget(cfg: Config, rows: Path) -> Pretrain:
    """As many steps as take the tokens of the budget, whatever the part has."""
    steps = max(1, round(cfg.proxy.tokens / (cfg.proxy.batch_rows * opened(rows).row_length)))
    every = max(1, steps // 4)
    return Pretrain(steps=steps, batch_rows=cfg.proxy.batch_rows, eval_every=steps, save_every=every, log_every=every)


def precision(cfg: Config) -> Precision:
    return Precision.fp32 if cfg.compute.precision is Precision.auto else cfg.compute.precision

"""Drop the least used experts of a model, and say what that costs on the run's held-out rows."""

from conf.entry import early, job

early(__name__)

from pathlib import Path

import torch
from torch import Tensor

from cluster.run import CHATTING, newest_model
from cluster.storage import committed
from conf.errors import InputError
from conf.schema import Config
from moe.decoder import Decoder
from moe.formats import hugging_face
from moe.formats.checkpoints import defaults
from moe.prune import prune
from moe.text.tokenizer import Tokenizer
from moe.training.objectives import on
from trainers.rows.held_out import in_turn
from trainers.rows.rows import Rows
from trainers.suites import held_out


@job
def main(cfg: Config) -> dict[str, float]:
    """Write `prune.model`, or the best of rl, hfft, cohft, chat, base in the run, with `prune.keep` experts a layer to
    `prune.target`; print and return its held-out loss before and after."""

    if not cfg.prune.target or Path(cfg.prune.target).exists():
        raise InputError(f"prune.target={cfg.prune.target!r} must name a folder that is not there yet")
    path = newest_model(cfg, cfg.prune.model, among=(*CHATTING, "base"), knob="prune.model")
    model, tokenizer = hugging_face.load(path), Tokenizer.load(path)
    rows = Rows(cfg.run.folder / "tokens" / "val")
    before = held_out(model, tokenizer, rows, limit=cfg.evaluate.rows)
    load = expert_load(model, rows, limit=cfg.evaluate.rows)
    pruned = prune(model, load, cfg.prune.keep)
    after = held_out(pruned, tokenizer, rows, limit=cfg.evaluate.rows)
    with committed(cfg.prune.target) as target:
        hugging_face.save(pruned, target, defaults(path))
    metrics = {
        "loss_before": before["loss"],
        "loss_after": after["loss"],
        "load_kept": float(load.topk(cfg.prune.keep).values.sum(1).mean()),
        "parameters_before": float(sum(p.numel() for p in model.parameters())),
        "parameters_after": float(sum(p.numel() for p in pruned.parameters())),
    }
    print(f"{cfg.prune.target}: {cfg.prune.keep} of {model.cfg.experts} experts a layer of {path}")
    for name, value in metrics.items():
        print(f"  {name:<18} {value:.4g}")
    return metrics


def expert_load(model: Decoder, rows: Rows, *, limit: int) -> Tensor:
    """[layers, E] share of the assignments of the first `limit` rows that went to each expert; a layer sums to 1."""

    total = torch.zeros(model.cfg.layers, model.cfg.experts, dtype=torch.float64)
    with torch.no_grad():
        for batch in (on(one, model) for one in in_turn(rows, limit)):
            hidden = model(batch["tokens"], batch["segments"])
            total += hidden.load.double().to(total) * hidden.states.shape[0]
    return total / total.sum(1, keepdim=True)


if __name__ == "__main__":
    main()

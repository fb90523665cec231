"""Drop the least used experts of a model, and say what that costs on the run's held-out rows."""

from pathlib import Path
from typing import TYPE_CHECKING

from conf.entry import job
from conf.schema import Config, InputError

if TYPE_CHECKING:
    from torch import Tensor

    from moe.decoder import Decoder
    from trainers.rows import Rows


@job
def main(cfg: Config) -> dict[str, float]:
    """Write `prune.model`, or the newest of rl, chat, base in the run, with `prune.keep` experts a layer to
    `prune.target`; print and return its held-out loss before and after."""
    from cluster.run import newest_model
    from cluster.storage import committed
    from moe import folder
    from moe.parents import ends
    from moe.prune import prune
    from moe.tokenizer import Tokenizer
    from trainers.evaluate import held_out
    from trainers.rows import Rows

    if not cfg.prune.target or Path(cfg.prune.target).exists():
        raise InputError(f"prune.target={cfg.prune.target!r} must name a folder that is not there yet")
    path = newest_model(cfg, cfg.prune.model, among=("rl", "chat", "base"), knob="prune.model")
    model, tokenizer = folder.load(path), Tokenizer.load(path)
    rows = Rows(cfg.run.folder / "tokens" / "val")
    before = held_out(model, tokenizer, rows, limit=cfg.evaluate.rows)
    load = expert_load(model, rows, limit=cfg.evaluate.rows)
    pruned = prune(model, load, cfg.prune.keep)
    after = held_out(pruned, tokenizer, rows, limit=cfg.evaluate.rows)
    with committed(cfg.prune.target) as target:
        stop, pad = ends(path)
        folder.save(pruned, target, stop=stop, pad=pad)
        tokenizer.save(target)
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


def expert_load(model: "Decoder", rows: "Rows", *, limit: int) -> "Tensor":
    """[layers, E] share of the assignments of the first `limit` rows that went to each expert; a layer sums to 1."""
    import torch

    from trainers.objectives import in_turn

    total = torch.zeros(model.cfg.layers, model.cfg.experts, dtype=torch.float64)
    with torch.no_grad():
        for batch in in_turn(rows, limit):
            hidden = model(batch["tokens"], batch["segments"])
            total += hidden.load.double() * hidden.states.shape[0]
    return total / total.sum(1, keepdim=True)


if __name__ == "__main__":
    main()

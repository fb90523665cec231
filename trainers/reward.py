"""Train the reward model: the chat model with a fully connected layer in the place of its vocabulary head."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from conf.entry import job
from conf.schema import Config, InputError, Reward

if TYPE_CHECKING:
    from moe.decoder import Decoder
    from moe.tokenizer import Tokenizer
    from trainers.packing import Row
    from trainers.rows import Rows

Ids = list[int]


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the chat and ranked stages, write the reward model; returns its accuracy on pairs of unseen queries."""
    from cluster.connect import connect
    from cluster.run import open_stage
    from moe import folder
    from moe.adapt import adapt
    from moe.tokenizer import Tokenizer
    from trainers.loop import Plan, fit
    from trainers.objectives import PREFERENCE
    from trainers.readers import read_records
    from trainers.rows import Rows, write_rows

    settings = {
        "optim": cfg.optim,
        "compute.precision": cfg.compute.precision,
        "reward": cfg.reward,
        "adapt": cfg.adapt,
        "cluster.workers": cfg.cluster.workers,
    }
    with open_stage(cfg, "reward", reads=["chat", "ranked"], settings=settings) as stage:
        if stage.done:
            return stage.metrics
        connect(cfg.cluster)
        chat = stage.input("chat")
        tokenizer = Tokenizer.load(chat)
        rankings = [record for _, record in read_records(stage.input("ranked") / "rankings.jsonl")]
        train, held = split(rankings, cfg.reward)
        meta = {"tokenizer": tokenizer.digest}
        row_length = cfg.reward.row_length or 2 * folder.load_config(chat).context
        for name, part in (("train", train), ("val", held)):
            rows = pack_pairs(pairs(part, tokenizer), row_length, pad=tokenizer.pad)
            path = stage.folder / "rows" / name
            about = write_rows(path, rows, row_length=row_length, rows_per_shard=16384, meta=meta)
            if not about["rows"]:
                raise InputError(
                    f"{stage.input('ranked')}: no {name} pair of answers differs in rank; rank more queries"
                )
        plan = Plan.of(
            cfg,
            "reward",
            cfg.reward,
            start=lambda: adapt(folder.load_scalar(chat, seed=cfg.run.seed), cfg.adapt, seed=cfg.run.seed),
            objective=PREFERENCE,
            rows=stage.folder / "rows" / "train",
            held_out=stage.folder / "rows" / "val",
        )
        model = fit(plan)
        folder.save(model, stage.folder, pad=tokenizer.pad)
        tokenizer.save(stage.folder)
        return stage.finish(measure(model, Rows(plan.held_out)))


def split(rankings: Sequence[dict[str, Any]], cfg: Reward) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(train, held out): whole queries, so that no held-out pair shares its query with a training pair."""
    held = max(1, round(cfg.held_out * len(rankings)))
    return list(rankings[held:]), list(rankings[:held])


def pairs(rankings: Sequence[dict[str, Any]], tokenizer: "Tokenizer") -> Iterator[tuple[Ids, Ids]]:
    """(better, worse) of every two answers whose ranks differ, as the ids of query and answer."""
    from moe.chat import prompt_ids

    for ranking in rankings:
        prompt = prompt_ids(tokenizer, ranking["messages"])
        answers = [
            (answer["rank"], prompt + tokenizer.encode(answer["text"]) + [tokenizer.im_end] * answer["finished"])
            for answer in ranking["answers"]
        ]
        for rank, better in answers:
            yield from ((better, worse) for other, worse in answers if rank < other)


def pack_pairs(pairs: Iterator[tuple[Ids, Ids]], row_length: int, *, pad: int) -> Iterator["Row"]:
    """Whole pairs into rows, in order: two segments a pair, better first; `loss` marks the last token of each."""
    import numpy as np

    from trainers.packing import Row

    def row(segments: list[Ids]) -> Row:
        arrays = np.zeros((3, row_length), dtype=np.int32)
        arrays[0] = pad
        at = 0
        for number, ids in enumerate(segments, start=1):
            end = at + len(ids)
            arrays[0, at:end], arrays[1, at:end], arrays[2, end - 1] = ids, number, 1
            at = end
        return Row(arrays[0], arrays[1], arrays[2].astype(np.uint8))

    held: list[Ids] = []
    filled = 0
    for better, worse in pairs:
        size = len(better) + len(worse)
        if size > row_length:
            raise InputError(f"a pair of {size} tokens does not fit into reward.row_length={row_length}")
        if filled + size > row_length:
            yield row(held)
            held, filled = [], 0
        held += [better, worse]
        filled += size
    if held:
        yield row(held)


def measure(model: "Decoder", rows: "Rows") -> dict[str, float]:
    """Over all pairs in the rows: {"pair_accuracy", "loss" (mean, nats)} and {"score_mean", "score_std"} of the single
    answers, the scale that PPO normalises by."""
    import torch

    from moe.losses import pairwise_sum
    from trainers.objectives import in_turn, pair_scores

    parts = []
    with torch.no_grad():
        for batch in in_turn(rows, len(rows)):
            parts.append(pair_scores(model, batch)[0])
    scores = torch.cat(parts)  # [P, 2], the better answer first
    better, worse = scores.unbind(1)
    return {
        "pair_accuracy": float((better > worse).float().mean()),
        "loss": float(pairwise_sum(better, worse) / len(scores)),
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
    }


if __name__ == "__main__":
    main()

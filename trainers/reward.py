"""Train the reward model: the chat model with a fully connected layer in the place of its vocabulary head.

The layer scores an answer in total and under each principle that the rankings tell answers apart by. What a ranking may
hold is said in `trainers.rankings`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.entry import job
from conf.schema import Config, InputError, Reward, RewardLoss

if TYPE_CHECKING:
    from moe.config import Head
    from moe.decoder import Decoder
    from moe.tokenizer import Tokenizer
    from trainers.preferences import Ranking
    from trainers.rankings import Record
    from trainers.rows import Rows

ROUND = 64  # tokens: the row length that is chosen is a multiple


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the chat stage and rankings, write the reward model; returns how it ranks answers to unseen queries."""
    from cluster.connect import connect
    from cluster.run import open_stage
    from cluster.storage import sha256, write_json
    from moe import folder
    from moe.adapt import adapt
    from moe.tokenizer import Tokenizer
    from trainers.course import Course
    from trainers.loop import fit
    from trainers.plan import Plan
    from trainers.preferences import NO_SCORE, TOTAL, pack, preference
    from trainers.rankings import principles, read_rankings
    from trainers.readers import expand
    from trainers.rows import Rows, write_rows

    own = {file: sha256(Path(file)) for file in expand(cfg.reward.files, "reward.files")}
    settings = {
        "optim": cfg.optim,
        "compute.precision": cfg.compute.precision,
        "reward": cfg.reward,
        "rankings": own,
        "adapt": cfg.adapt,
        "spikes": cfg.spikes,
    }
    with open_stage(cfg, "reward", reads=["chat"] if own else ["chat", "ranked"], settings=settings) as stage:
        if stage.done:
            return stage.metrics
        connect(cfg.cluster)
        chat = stage.input("chat")
        tokenizer = Tokenizer.load(chat)
        files = [Path(file) for file in own] or [stage.input("ranked") / "rankings.jsonl"]
        train, held = split([record for file in files for record in read_rankings(file)], cfg.reward, cfg.run.seed)
        head = (TOTAL, *(principles(train) if cfg.reward.principles else ()))
        context = folder.load_config(chat).context
        parts = {
            name: rankings(records, tokenizer, head, context) for name, records in (("train", train), ("val", held))
        }
        longest = max((ranking.size for part in parts.values() for ranking in part), default=0)
        row_length = cfg.reward.row_length or -(-longest // ROUND) * ROUND
        if cfg.reward.loss is RewardLoss.margin and all((r.scores == NO_SCORE).all() for r in parts["train"]):
            raise InputError(f"{files[0]}: no answer has a score, which reward.loss=margin needs; try pairwise")
        for name, part in parts.items():
            if not any(ranking.pairs(0) for ranking in part):
                raise InputError(f"{files[0]}: no two {name} answers to a query differ in rank; rank more queries")
            rows = pack(part, row_length, head, pad=tokenizer.pad)
            meta = {"tokenizer": tokenizer.digest}
            write_rows(stage.folder / "rows" / name, rows, row_length=row_length, rows_per_shard=16384, meta=meta)
        plan = Plan.of(
            cfg,
            "reward",
            cfg.reward,
            start=lambda: adapt(folder.load_scalar(chat, seed=cfg.run.seed, head=head), cfg.adapt, seed=cfg.run.seed),
            objective=preference(head, cfg.reward.loss, cfg.reward.principles),
            course=Course.of(stage.folder / "rows" / "train"),
            held_out={"val": stage.folder / "rows" / "val"},
            decode=tokenizer.decode,
        )
        model = fit(plan)
        folder.save(model, stage.folder, pad=tokenizer.pad)
        tokenizer.save(stage.folder)
        metrics, bins = measure(model, Rows(stage.folder / "rows" / "val"), head, cfg.reward.loss)
        write_json(stage.folder / "calibration.json", bins)
        return stage.finish(metrics)


def split(records: Sequence["Record"], cfg: Reward, seed: int) -> tuple[list["Record"], list["Record"]]:
    """(train, held out) by query, so that no held-out ranking shares its query with one that is learnt from."""
    from trainers.poems import hashed

    asked = {record["where"]: json.dumps(record["messages"], ensure_ascii=False) for record in records}
    queries = sorted(set(asked.values()), key=lambda query: hashed(seed, "reward", query))
    held = set(queries[: max(1, round(cfg.held_out * len(queries)))])
    return (
        [record for record in records if asked[record["where"]] not in held],
        [record for record in records if asked[record["where"]] in held],
    )


def rankings(records: Sequence["Record"], tokenizer: "Tokenizer", head: "Head", context: int) -> list["Ranking"]:
    """Those that tell answers apart, without the answers that have no place at all.

    Raises `InputError` naming an answer that is longer than the model's context.
    """
    import numpy as np

    from moe.chat import prompt_ids
    from trainers.preferences import NO_SCORE, SCALE, TOTAL, Ranking
    from trainers.rankings import judged

    found = []
    for record in records:
        prompt = prompt_ids(tokenizer, record["messages"])
        answers = record["answers"]
        under = [judged(answers, None if name == TOTAL else name) for name in head]
        ranks = np.array([[-1 if rank is None else rank for rank in ranks] for ranks, _ in under], np.int32).T
        scores = np.array([[NO_SCORE if s is None else round(s * SCALE) for s in given] for _, given in under]).T
        kept = np.flatnonzero((ranks >= 0).any(1))
        ids = []
        for place in kept:
            text, finished = answers[place]["text"], answers[place].get("finished", True)
            ids.append(prompt + tokenizer.encode(text) + [tokenizer.im_end] * finished)
            if len(ids[-1]) > context:
                raise InputError(
                    f"{record['where']}: answers[{place}] and its query have {len(ids[-1])} tokens, more than the "
                    f"model's context of {context}; leave it out"
                )
        ranking = Ranking(record["where"], ids, ranks[kept], scores[kept].astype(np.int32))
        if any(ranking.pairs(number) for number in range(len(head))):
            found.append(ranking)
    return found


def measure(
    model: "Decoder", rows: "Rows", head: "Head", kind: RewardLoss
) -> tuple[dict[str, float], dict[str, list[dict[str, float]]]]:
    """(metrics, the bins of each score's calibration) over all rankings in the rows.

    "loss" (of the total, mean, nats), "pair_accuracy", "brier", "ece", of a principle "<name>/accuracy" and so on where
    the rows tell answers apart by it, and "score_mean" and "score_std" of all answers, the scale of PPO.
    """
    import torch

    from trainers.objectives import in_turn
    from trainers.preferences import calibration, count_units, judge

    totals, units, loss = [], 0, 0.0
    ahead: dict[str, list[Any]] = {name: [] for name in head}
    with torch.no_grad():
        for batch in in_turn(rows, len(rows)):
            judged, _ = judge(model, batch, head)
            loss += float(judged[0].loss(kind))
            units += count_units(batch, kind)
            totals.append(judged[0].scores[judged[0].ranks >= 0])
            for name, one in zip(head, judged, strict=True):
                ahead[name].append(one.ahead())
    scores = torch.cat(totals)
    metrics = {"loss": loss / units, "score_mean": float(scores.mean()), "score_std": float(scores.std())}
    bins = {}
    for name, parts in ahead.items():
        if len(differences := torch.cat(parts)):
            found, bins[name] = calibration(differences)
            if name == head[0]:
                metrics |= {"pair_accuracy": found.pop("accuracy"), **found}
            else:
                metrics |= {f"{name}/{key}": value for key, value in found.items()}
    return metrics, bins


if __name__ == "__main__":
    main()

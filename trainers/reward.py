"""Train the reward model: the chat model with a fully connected layer in the place of its vocabulary head.

The layer scores an answer in total and under each principle that the rankings tell answers apart by. What a ranking may
hold is said in `trainers.files.rankings`.
"""

from conf.entry import early, job

early(__name__)

from collections.abc import Collection, Sequence
from functools import partial

import numpy as np

from cluster.connect import connect, on_worker
from cluster.run import make, model_stage, open_stage, present
from cluster.storage import read_json, write_json
from conf.errors import InputError
from conf.knobs.alignment import RewardLoss
from conf.schema import Config
from moe.decoder import Head
from moe.formats import hugging_face
from moe.tasks.domain import Domain
from moe.text.chat import answer_ids, naming, prompt_ids
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from moe.training.adapt import adapt
from trainers import closing
from trainers.files.forgotten import FORGOTTEN, Forgotten
from trainers.files.rankings import Record, judged, read_all, split, telling
from trainers.files.readers import digest, expand, folders
from trainers.loop.growth import lengthened
from trainers.loop.loop import fit
from trainers.loop.recipe import Plan
from trainers.rows.epochs import FILE as SEEN
from trainers.rows.epochs import Seen, in_steps
from trainers.rows.mixture import Course, opened
from trainers.rows.names import write_names
from trainers.rows.preferences import NO_SCORE, SCALE, TOTAL, Ranking, pack, preference
from trainers.rows.rows import write_rows

ROUND = 64  # tokens: the row length that is chosen is a multiple


def reads(cfg: Config, there: Collection[str]) -> list[str]:
    return [model_stage(cfg, "chat", there), *([] if cfg.reward.files else ["ranked"])]


def check(cfg: Config) -> None:
    """Raise `InputError` for rankings that are not there."""
    expand(cfg.reward.files, "reward.files")
    Domain.of(cfg.tasks)


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the chat (or parent) stage and rankings, write the reward model; returns how it ranks answers to unseen
    queries."""

    own = {file: digest(file) for file in expand(cfg.reward.files, "reward.files")}
    forgotten = Forgotten.of(cfg.run.folder / FORGOTTEN).among(own)
    settings = {
        "optim": cfg.optim,
        "compute.precision": cfg.compute.precision,
        "reward": cfg.reward,
        "rankings": own,
        "adapt": cfg.adapt,
        "spikes": cfg.spikes,
        **forgotten.setting,
    }
    if (origin := model_stage(cfg, "chat", present(cfg))) == "parent":
        make(cfg, "parent")
    longer = partial(lengthened, "reward", cfg.reward, cfg.optim)
    needs, outside = reads(cfg, present(cfg)), folders(own)
    with open_stage(cfg, "reward", reads=needs, settings=settings, longer=longer, outside=outside) as stage:
        if stage.done:
            return stage.metrics
        connect(cfg.cluster)
        chat = stage.input(origin)
        tokenizer = Tokenizer.load(chat)
        known = Domain.of(cfg.tasks).principles
        ranked, most = cfg.run.folder / "ranked", cfg.reward.max_bad_fraction
        records, counts = read_all(own, ranked, known, stage.folder, "reward.max_bad_fraction", most, forgotten)
        by_place = {record["where"]: record for record in records}
        train, held = split(records, cfg.reward.held_out, cfg.run.seed)
        head = (TOTAL, *(telling(train, known) if cfg.reward.principles else ()))
        context = hugging_face.load_config(chat).context
        source = next(iter(own), ranked)
        parts = {
            name: rankings(records, tokenizer, head, context) for name, records in (("train", train), ("val", held))
        }
        longest = max((ranking.size for part in parts.values() for ranking in part), default=0)
        row_length = cfg.reward.row_length or -(-longest // ROUND) * ROUND
        if cfg.reward.loss is RewardLoss.margin and all((r.scores == NO_SCORE).all() for r in parts["train"]):
            raise InputError(f"{source}: no answer has a score, which reward.loss=margin needs; try pairwise")
        for name, part in parts.items():
            if not any(ranking.pairs(0) for ranking in part):
                raise InputError(f"{source}: no two {name} answers to a query differ in rank; rank more queries")
            rows = pack(part, row_length, head, pad=tokenizer.pad)
            meta = {"tokenizer": tokenizer.digest}
            where = stage.folder / "rows" / name
            write_rows(where, rows, row_length=row_length, rows_per_shard=16384, meta=meta)
            write_names(where, [(one.where, by_place[one.where]["origin"]) for one in part])
        course = Course.of(stage.folder / "rows" / "train")
        fitted = in_steps(cfg.reward, len(opened(course.sets[0])), row_length)
        seen = Seen.of("reward", fitted, course, own=1, seed=cfg.run.seed)
        print(seen.told(len(parts["train"]), "rankings"))
        write_json(stage.folder / SEEN, {"epochs": seen.epochs, **counts})
        plan = Plan.of(
            cfg,
            "reward",
            fitted,
            start=lambda: adapt(
                hugging_face.load_scalar(chat, seed=cfg.run.seed, head=head), cfg.adapt, seed=cfg.run.seed
            ),
            objective=preference(head, cfg.reward.loss, cfg.reward.principles),
            course=course,
            held_out={"val": stage.folder / "rows" / "val"},
            decode=tokenizer.decode,
        )
        model = fit(plan)
        hugging_face.save(model, stage.folder, Defaults.of(tokenizer, chat=True))
        found = (stage.folder, stage.folder / "rows" / "val", cfg.reward.loss, cfg.cluster)
        metrics, bins = on_worker(cfg.cluster, closing.of_reward, *found, within=cfg.evaluate.timeout)
        write_json(stage.folder / "calibration.json", bins)
        return stage.finish({**metrics, **read_json(stage.folder / SEEN)})


def rankings(records: Sequence[Record], tokenizer: Tokenizer, head: Head, context: int) -> list[Ranking]:
    """Those that tell answers apart, without the answers that have no place at all.

    Raises `InputError` naming an answer that is longer than the model's context.
    """

    found = []
    for record in records:
        with naming(record["where"]):
            prompt = prompt_ids(tokenizer, record["messages"])
        answers = record["answers"]
        under = [judged(answers, None if name == TOTAL else name) for name in head]
        ranks = np.array([[-1 if rank is None else rank for rank in ranks] for ranks, _ in under], np.int32).T
        scores = np.array([[NO_SCORE if s is None else round(s * SCALE) for s in given] for _, given in under]).T
        kept = np.flatnonzero((ranks >= 0).any(1))
        ids = []
        for place in kept:
            whole = answer_ids(tokenizer, record["messages"], [answers[place]["text"]])[0]
            ids.append(prompt + (whole if answers[place].get("finished", True) else whole[:-1]))
            if len(ids[-1]) > context:
                raise InputError(
                    f"{record['where']}: answers[{place}] and its query have {len(ids[-1])} tokens, more than the "
                    f"model's context of {context}; leave it out"
                )
        ranking = Ranking(record["where"], ids, ranks[kept], scores[kept].astype(np.int32))
        if any(ranking.pairs(number) for number in range(len(head))):
            found.append(ranking)
    return found


if __name__ == "__main__":
    main()

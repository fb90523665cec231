"""Instruction samples from passages of the corpus: a teacher asks and answers, and what is not grounded in the passage,
said before, or of no use goes with its reason. The result is a file for `sft.files`.

The teacher is the model of the section judge: any endpoint with OpenAI's API, ours included, or a folder. Its replies
are kept in the run by what was asked, so that nothing is asked or paid for twice.
"""

from conf.entry import early, job

early(__name__)

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cluster.progress import counter
from cluster.run import open_stage
from cluster.storage import write_file, write_json
from conf.errors import InputError
from conf.schema import Config
from moe.tasks.task import hashed
from moe.tasks.writing import spans
from rlhf.judges import ai, endpoint, local
from rlhf.judges.replies import Ask, Lost, Question, Replies
from rlhf.teacher import prompts, sifting
from rlhf.teacher.prompts import Pair
from rlhf.teacher.sifting import Passage, Sieve

STAGE = "taught"
ASKED = "teacher"  # the folder of its replies, beside the stages: it outlives them
SAMPLES, REJECTS, REPORT = "samples.jsonl", "rejects.jsonl", "report.json"
TRIES = 2  # replies in another form than was asked for, before a passage is given up


def check(cfg: Config) -> None:
    """Raise `InputError` where the knobs do not say whom to ask."""
    if bool(cfg.judge.url) == bool(cfg.judge.folder):
        raise InputError("the teacher: give judge.url and judge.model, or judge.folder, and not both")
    if cfg.judge.url:
        endpoint.check(cfg.judge)
    elif not (Path(cfg.judge.folder) / "config.json").is_file():
        raise InputError(f"judge.folder={cfg.judge.folder}: no model here (config.json is missing)")


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the stage corpus, write samples.jsonl, rejects.jsonl and report.json; the counts."""
    check(cfg)
    who = ai.who(cfg.judge)
    with open_stage(cfg, STAGE, reads=["corpus"], settings={"teach": cfg.teach, "teacher": who}) as stage:
        if stage.done:
            return stage.metrics
        passages = drawn(documents(stage.input("corpus")), cfg)
        if not passages:
            raise InputError(f"teach.least={cfg.teach.least}: no document of the train split has so many characters")
        there = partial(endpoint.ask, cfg=cfg.judge, seed=cfg.run.seed)
        ask = partial(local.ask, cfg=cfg) if cfg.judge.folder else there
        kept = Replies(cfg.run.folder / ASKED / "replies.jsonl", str(sorted(who.items())))
        told = heard(passages, cfg, kept, ask)
        taught = sifted(passages, told.pairs, cfg)
        for name, lines in ((SAMPLES, taught.samples), (REJECTS, [*told.lost, *taught.rejects])):
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            write_file(stage.folder / name, text)
        rules = dict(sorted(Counter(line["rule"] for line in taught.rejects).items()))
        lost = dict(sorted(Counter(line["rule"] for line in told.lost).items()))
        numbers = {"passages": len(passages), "lost": len(told.lost), "unparsable": told.unparsable}
        numbers |= {"pairs": sum(map(len, told.pairs.values())), "rejected": len(taught.rejects)}
        numbers |= {"samples": len(taught.samples), "turns": taught.turns}
        failures = dict(sorted(told.failures.items()))
        write_json(stage.folder / REPORT, {**numbers, "rejects": rules, "lost_by": lost, "failures": failures})
        print(said(numbers, rules), flush=True)
        if not taught.samples:
            raise InputError(f"{stage.folder / REJECTS}: none of {numbers['pairs']} pairs serves; see why there")
        return stage.finish({name: float(number) for name, number in numbers.items()})


@dataclass
class Told:
    """What a teacher said of the passages."""

    pairs: dict[int, list[Pair]] = field(default_factory=dict)  # by the passage's number
    lost: list[dict[str, Any]] = field(default_factory=list)  # passages of which there is nothing, and why
    unparsable: int = 0  # replies in another form
    failures: Counter[str] = field(default_factory=Counter)  # requests that came to nothing


@dataclass
class Taught:
    samples: list[dict[str, Any]] = field(default_factory=list)
    rejects: list[dict[str, Any]] = field(default_factory=list)
    turns: int = 0


def documents(corpus: Path) -> Iterator[tuple[int, str]]:
    """(number of the record, text) of the train split."""
    for path in sorted(corpus.glob("train-*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["id", "text"]):
                yield from zip(batch["id"].to_pylist(), batch["text"].to_pylist(), strict=True)


def drawn(texts: Iterable[tuple[int, str]], cfg: Config) -> list[Passage]:
    """`teach.passages` passages, by what their places draw: more documents change no passage, only which are taken."""
    every = (passage for number, text in texts for passage in cut(number, text, cfg.teach.least, cfg.teach.characters))
    return heapq.nsmallest(
        cfg.teach.passages,
        every,
        key=lambda one: (hashed(cfg.run.seed, "teach", f"{one.record}/{one.place}"), one.record, one.place),
    )


def cut(number: int, text: str, least: int, most: int) -> Iterator[Passage]:
    """A document in passages of whole sentences, `least` to `most` characters each; the rest of it is left out."""
    start, end, at = 0, 0, 0
    for line in text.split("\n"):
        for begin, stop in spans(line):
            begin, stop = at + begin, at + stop
            if stop - start > most and end > start:
                if least <= end - start <= most:
                    yield Passage(number, start, text[start:end])
                start = begin
            end = stop
        at += len(line) + 1
    if least <= end - start <= most:
        yield Passage(number, start, text[start:end])


def heard(passages: Sequence[Passage], cfg: Config, kept: Replies, ask: Ask) -> Told:
    """What the teacher says of each passage; one whose reply has another form is asked about again. Raises `InputError`
    where more than `teach.max_lost` of them have no usable reply."""
    told = Told()
    waiting = dict(enumerate(passages))
    why: dict[int, str] = {}
    with counter(STAGE, len(passages)) as bar:
        for attempt in range(TRIES + 1):
            about: dict[Question, list[int]] = {}
            for number, passage in waiting.items():
                about.setdefault(_question(passage, cfg, attempt), []).append(number)
            for question, reply in kept.answered(about, ask):
                told.failures.update(reply.failures)
                pairs: list[Pair] | None = None
                if isinstance(reply, Lost):
                    reason = "no reply"
                elif not reply.whole:
                    reason = "cut off"
                else:
                    pairs, reason = prompts.parsed(reply.text, cfg.teach.questions), "another form"
                told.unparsable += pairs is None and not isinstance(reply, Lost)
                for number in about[question]:
                    why[number] = reason
                    if pairs is not None:
                        told.pairs[number] = pairs
                        del waiting[number]
                        bar.advance()
                    elif isinstance(reply, Lost):  # it has been tried often enough
                        told.lost.append(_lost(waiting.pop(number), f"{reason}: {reply.why}", reason))
                if len(told.lost) > cfg.teach.max_lost * len(passages):
                    raise _too_many(len(told.lost), len(passages), cfg, told.lost[-1]["why"])
    told.lost += [_lost(passage, why[number], why[number]) for number, passage in waiting.items()]
    if len(told.lost) > cfg.teach.max_lost * len(passages):
        raise _too_many(len(told.lost), len(passages), cfg, told.lost[-1]["why"])
    return told


def _question(passage: Passage, cfg: Config, attempt: int) -> Question:
    return Question(
        prompts.question(passage.text, cfg.teach.questions),
        temperature=cfg.teach.temperature if not attempt else max(cfg.teach.temperature, ai.AGAIN),
        seed=hashed(cfg.run.seed, "teach.ask", str(attempt)) >> 33,
        max_new_tokens=cfg.teach.max_new_tokens,
    )


def _lost(passage: Passage, why: str, rule: str) -> dict[str, Any]:
    return {"rule": rule, "why": why, "record": passage.record, "place": passage.place}


def _too_many(lost: int, passages: int, cfg: Config, why: str) -> InputError:
    return InputError(
        f"{lost} of {passages} passages have no usable reply, more than teach.max_lost={cfg.teach.max_lost:g} allows; "
        f"of the last: {why}. Replies are kept: the same command asks only for the others"
    )


def sifted(passages: Sequence[Passage], pairs: dict[int, list[Pair]], cfg: Config) -> Taught:
    """The samples of what the teacher said, in the order of the passages, whatever the order of its replies."""
    sieve, taught = Sieve(cfg.teach), Taught()
    for number in sorted(pairs):
        passage, good = passages[number], []
        for pair in pairs[number]:
            if gone := sieve.gone(pair, passage):
                taught.rejects.append(sifting.rejected(pair, gone, passage))
            else:
                good.append(pair)
        taught.turns += len(good)
        for place, turns in enumerate(sifting.conversations(good, cfg.teach)):
            taught.samples.append(sifting.sample(turns, passage, place))
    return taught


def said(numbers: dict[str, int], rules: dict[str, int]) -> str:
    worst = ", ".join(f"{rule} {count}" for rule, count in sorted(rules.items(), key=lambda item: -item[1])[:5])
    return (
        f"{STAGE}: {numbers['samples']} samples of {numbers['turns']} turns from {numbers['passages']} passages, "
        f"{numbers['lost']} of them without a reply; {numbers['rejected']} of {numbers['pairs']} pairs rejected"
        + (f": {worst}" if worst else "")
    )


if __name__ == "__main__":
    main()

"""A record is followed into samples, rankings and iterations, and from any step back; what is forgotten stays out."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.run import open_stage
from conf.errors import InputError
from conf.knobs.alignment import Tasks
from conf.knobs.reinforcement import Ppo
from conf.knobs.running import Run
from conf.knobs.text import Corpus, Forget, Why
from conf.knobs.training import Sft
from conf.schema import Config
from moe.tasks.instructions import samples
from moe.tasks.measure import read_task_file
from moe.tasks.task import Sample, Source
from rlhf.record import SCHEMA
from rlhf.rollouts import Query, admit, in_order
from tests.trainers.clean.direct import collected
from trainers import forget, tasks, why
from trainers.files.forgotten import FORGOTTEN, Forgotten
from trainers.files.hindsight import plain
from trainers.files.rankings import read_all
from trainers.files.readers import digest
from trainers.files.samples import read_queries
from trainers.rows.mixture import Course
from trainers.rows.names import names_of, write_names
from trainers.rows.packing import Row
from trainers.rows.rows import order, write_rows
from trainers.rows.way import Way
from trainers.trail.seen import Wanted, at_step, places_of, seen_by

ASKED = [f"{word}是什么?" for word in "天地玄黄宇宙洪荒"]
PPO = Ppo(prompts=1, samples=2, iterations=3, minibatches=1)


def stage(cfg: Config, name: str, reads: Sequence[str], settings: dict[str, Any]) -> Any:
    return open_stage(cfg, name, reads=reads, settings=settings)


def lines(path: Path, records: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), "utf-8")


def rows(folder: Path, names: Sequence[tuple[str, Sequence[str]]], steps: int) -> None:
    """A stage that trains on a row a step, each row a sample."""
    packed = [Row(np.ones(4), np.ones(4), np.ones(4), documents=(n,)) for n in range(len(names))]
    write_rows(folder / "rows" / "train" / "0", packed, row_length=4, rows_per_shard=8, meta={"tokenizer": "t"})
    write_names(folder / "rows" / "train" / "0", names)
    Way(Course.of(folder / "rows" / "train" / "0"), 0, Sft(steps=steps, batch_rows=1)).write(folder)
    lines(folder / "metrics.jsonl", [{"step": steps, "position": float(steps)}])


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    """A corpus of samples, samples and rankings of a user's own, and every stage after them."""
    text, own = tmp_path / "corpus.jsonl", tmp_path / "own.jsonl"
    lines(text, [{"text": f"{one}\n好。"} for one in ASKED])
    answered = [{"instruction": one, "output": "好。"} for one in [*ASKED, ASKED[0]]]
    lines(own, answered)
    cfg = Config(
        run=Run(name="r", dir=str(tmp_path / "runs")),
        corpus=Corpus(files=[str(text)], val_fraction=0, test_fraction=0),
        sft=Sft(files=[str(own)]),
    )
    with stage(cfg, "corpus", [], {"corpus": cfg.corpus}) as corpus:
        corpus.finish(collected(corpus.folder, cfg.corpus))
    tasks.main(cfg)
    with stage(cfg, "chat", ["tasks"], {"sft": cfg.sft}) as chat:
        train = read_task_file(cfg.run.folder / "tasks" / "train.jsonl")
        rows(chat.folder, [(one.id, one.origin) for one in train], 6)
        (chat.folder / "model.safetensors").write_bytes(b"weights")
        chat.finish({})
    asked = read_task_file(cfg.run.folder / "tasks" / "prompts.jsonl")
    with stage(cfg, "ranked", ["chat", "tasks"], {"rank": {"prompts": 8}}) as ranked:
        answers = [{"text": "好。", "rank": 0}, {"text": "不。", "rank": 1}]
        lines(ranked.folder / "rankings.jsonl", [one.line | {"answers": answers} for one in asked])
        ranked.finish({})
    known, _ = read_all({}, ranked.folder, ("helpful",), tmp_path, "reward.max_bad_fraction", 0.0)
    with stage(cfg, "reward", ["chat", "ranked"], {"reward": cfg.reward}) as reward:
        rows(reward.folder, [(one["where"], one["origin"]) for one in known], 1)
        reward.finish({})
    with stage(cfg, "hfft", ["chat", "ranked"], {"hfft": cfg.hfft}) as hfft:
        rows(hfft.folder, [(one.id, one.origin) for one in map(plain, known)], 2)
        hfft.finish({})
    with stage(cfg, "rl", ["chat", "tasks", "reward"], {"ppo": asdict(PPO)}) as rl:
        queries = [Query(one, [1]) for one in asked]
        (rl.folder / "queries.json").write_text(json.dumps(in_order(queries, PPO)))
        (rl.folder / "iterations").mkdir()
        row = dict.fromkeys(SCHEMA.names) | {"query": asked[0].id, "sample": 0, "origin": asked[0].origin}
        table = pa.Table.from_pylist([row | {"learnt": True}], SCHEMA)
        pq.write_table(table, rl.folder / "iterations" / "step-00000001.parquet")
        rl.finish({})
    return cfg


def told(cfg: Config, **asked: Any) -> list[str]:
    return why.main(replace(cfg, why=Why(**asked)))


def test_a_sample_is_followed_through_every_stage(cfg: Config) -> None:
    run = cfg.run.folder
    (own,) = cfg.sft.files
    train, asked = (read_task_file(run / "tasks" / f"{split}.jsonl") for split in ("train", "prompts"))
    by_question = {one.messages[0]["content"]: one for one in (*train, *asked)}
    first = by_question[ASKED[0]]
    assert sorted(first.origin) == [f"{own}:1", f"{own}:9"]  # its copy is no sample of its own, and known
    for number, one in enumerate(train):
        question = ASKED.index(one.messages[0]["content"]) + 1
        found = told(cfg, record=f"own.jsonl:{question}")
        steps = [step for step in range(1, 7) if order(len(train), 0, step - 1, step)[0] == number]
        assert found[0] == f"{own}:{question}" and f"  seen by tasks: sample {one.id} to train on" in found
        came = f"trained on in step{'s' * (len(steps) > 1)} {', '.join(map(str, steps))}"
        assert f"  seen by chat: {came} (sample {one.id}); made from tasks" in found
        assert "  not seen by reward itself: made from chat, ranked" in found  # it began with the chat model
    # what was asked, and not trained on by the chat model, came into rankings and iterations
    for place, one in enumerate(asked):
        question = ASKED.index(one.messages[0]["content"]) + 1
        found = told(cfg, record=f"own.jsonl:{question}")
        assert f"  seen by tasks: sample {one.id} to ask for rankings and RL" in found
        assert f"  seen by ranked: line {place + 1} of rankings.jsonl; made from tasks" in [
            line.replace("made from chat, tasks", "made from tasks") for line in found
        ]
        queries = [Query(query, [1]) for query in asked]
        steps = [step for step in range(1, 4) if one in admit(queries, PPO, step - 1, 0)[0]]
        (rl,) = (line for line in found if line.startswith("  seen by rl: "))
        assert f"asked in iteration{'s' * (len(steps) > 1)} {', '.join(map(str, steps))} (query {one.id})" in rl
        assert ("iteration 1 still kept with the answers" in rl) == (place == 0)
        line = f"(sample rankings.jsonl:{place + 1})"
        assert any(line in seen for seen in found if seen.startswith("  seen by reward: trained on in")) == (
            place == order(len(asked), 0, 0, 1)[0]
        )
        assert any(line in seen for seen in found if seen.startswith("  seen by hfft: trained on in"))


def test_a_step_of_any_stage_leads_back_to_its_records(cfg: Config) -> None:
    run = cfg.run.folder
    train, asked = (read_task_file(run / "tasks" / f"{split}.jsonl") for split in ("train", "prompts"))
    for step in range(1, 7):
        one = train[order(len(train), 0, step - 1, step)[0]]
        assert at_step(run, "chat", step) == {one.id: list(one.origin)}
    assert told(cfg, stage="chat", step=1)[0] == "step 1 of chat saw 1 sample"
    assert told(cfg, stage="rl", step=2)[0] == "iteration 2 of rl saw 1 query"
    name, *origin = told(cfg, stage="reward", step=1)[1:]
    assert name.strip() not in [one.strip() for one in origin]  # a ranking is told once
    assert at_step(run, "rl", 2) == {f"query {asked[1 % len(asked)].id}": list(asked[1 % len(asked)].origin)}
    (ranking,) = at_step(run, "reward", 1).values()
    assert ranking[0].startswith(f"{run / 'ranked' / 'rankings.jsonl'}:") and ranking[1] in [a.origin[0] for a in asked]
    for name, step, words in (
        ("chat", 7, "has steps 1 to 6"), ("rl", 4, "has iterations 1 to 3"),
        ("tasks", 1, "knows no steps of such a stage; those that it has are of chat, reward, hfft, rl"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            at_step(run, name, step)


def test_an_iteration_asks_what_its_list_says() -> None:
    queries = [Query(Sample(id=f"q{n}", task="say", messages=[], origin=(f"x:{n}",)), [1]) for n in range(5)]
    ppo = Ppo(prompts=3, samples=2, minibatches=1)
    told = in_order(queries, ppo)
    for iteration in range(7):
        asked, _ = admit(queries, ppo, iteration, seed=4)
        names = [told["queries"][place]["id"] for place in places_of(told, iteration + 1)]
        assert names == [one.id for one in asked[::2]]


def test_samples_of_the_corpus_say_which_record_they_are_of(tmp_path: Path) -> None:
    texts = {4: "春天来了。花开了。鸟叫了。", 9: "夏天到了。天热了。人懒了。", 11: "秋天。叶落了。风起了。"}
    source = Source(
        lambda split: iter([(n, {"text": text}) for n, text in texts.items()] if split == "train" else []),
        lambda split: iter(texts.values() if split == "train" else []),
        own=[], queries=[], folder=tmp_path,
    )  # fmt: skip
    made = samples(source, Tasks(), seed=0)
    for one in (*made["train"], *made["val"]):
        (origin,) = one.origin
        assert one.messages[0]["content"] in texts[int(origin.removeprefix("corpus:"))]
        assert Sample.of(json.loads(json.dumps(one.line))).origin == one.origin


def test_an_own_record_is_forgotten_with_its_copies_and_stays_away(cfg: Config) -> None:
    (own,) = cfg.sft.files
    found = forget.main(replace(cfg, forget=Forget(records=["own.jsonl:9"])))
    assert found[:2] == [f"to be forgotten: {own}:1", f"to be forgotten: {own}:9"]
    assert "seen by chat: " in "".join(found) and "made again" not in "".join(found)
    assert f"{FORGOTTEN} names 2 records, and every stage of this run obeys it from now on" in found
    with pytest.raises(InputError, match="run.rebuild=true"):
        tasks.main(cfg)
    tasks.main(replace(cfg, run=replace(cfg.run, rebuild=True)))
    files = [cfg.run.folder / "tasks" / f"{split}.jsonl" for split in ("train", "val", "prompts")]
    every = [one for file in files for one in read_task_file(file)]
    assert all(one.messages[0]["content"] != ASKED[0] for one in every) and len(every) >= 7
    # the corpus, which has the same question, is another file's: it knows nothing of it
    assert Forgotten.of(cfg.run.folder / FORGOTTEN).among(cfg.corpus.files).setting == {}
    with pytest.raises(InputError, match=r"forget\.records=own\.jsonl: must be file:line"):
        forget.asked(replace(cfg, forget=Forget(records=["own.jsonl"])), cfg.run.folder / "corpus")


def test_queries_and_rankings_are_forgotten_too(tmp_path: Path) -> None:
    lines(tmp_path / "q.jsonl", [{"prompt": "a?"}, {"prompt": "b?", "origin": ["corpus:1"]}])
    gone = Forgotten(frozenset({(str(tmp_path / "q.jsonl"), 1)}))
    (left,) = read_queries(tmp_path / "q.jsonl", forgotten=gone)
    assert left.prompt == "b?" and left.origin == (f"{tmp_path / 'q.jsonl'}:2",)  # of this run, not of who wrote it
    pair = {"prompt": "a?", "chosen": "x", "rejected": "y", "origin": ["corpus:1"]}
    lines(tmp_path / "r.jsonl", [pair, pair])
    gone = Forgotten(frozenset({(str(tmp_path / "r.jsonl"), 2)}))
    own = {str(tmp_path / "r.jsonl"): digest(str(tmp_path / "r.jsonl"))}
    records, counts = read_all(own, tmp_path, (), tmp_path, "reward.max_bad_fraction", 0.0, gone)
    assert [one["origin"] for one in records] == [[f"{tmp_path / 'r.jsonl'}:1"]] and counts["read"] == 1


def test_a_corpus_record_is_seen_through_samples_made_of_it(cfg: Config) -> None:
    wanted = Wanted(frozenset({"corpus:3"}), train=[3])
    with stage(cfg, "cohft", ["chat"], {"cohft": cfg.cohft}) as cohft:
        rows(cohft.folder, [("x", ["corpus:3"]), ("y", [])], 2)
        cohft.finish({})
    step = order(2, 0, 0, 2).tolist().index(0) + 1
    assert f"seen by cohft: trained on in step {step} (sample x); made from chat" in seen_by(cfg.run.folder, wanted)
    assert names_of(cohft.folder / "rows" / "train" / "0") == [("x", ["corpus:3"]), ("y", [])]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a stage that has not seen a record itself is not said to have",
        "trainers/trail/seen.py",
        "if seen.parts else",
        "if True else",
        "test_a_sample_is_followed_through_every_stage",
    ),
    (
        "a copy of a sample is known as one",
        "trainers/tasks.py",
        "            once[said] = replace(held, origin=(*held.origin, *one.origin))",
        "            pass",
        "test_a_sample_is_followed_through_every_stage",
    ),
    (
        "the iterations that asked a query are named",
        "trainers/trail/seen.py",
        'first = (step - 1) * asked["prompts"]',
        'first = step * asked["prompts"]',
        "test_an_iteration_asks_what_its_list_says",
    ),
    (
        "a ranking says of which sample its query was made",
        "trainers/files/rankings.py",
        "(origin_of(record) if ours else [])",
        "([])",
        "test_a_step_of_any_stage_leads_back_to_its_records",
    ),
    (
        "a sample that is forgotten is not read again",
        "trainers/files/rejects.py",
        "        if forgotten.names(where):\n            continue\n",
        "",
        "test_an_own_record_is_forgotten_with_its_copies_and_stays_away",
    ),
    (
        "a continued document says which record it is of",
        "moe/tasks/instructions.py",
        "origin=of_corpus(number)) for one in continuations(text)",
        "origin=of_corpus(0)) for one in continuations(text)",
        "test_samples_of_the_corpus_say_which_record_they_are_of",
    ),
]

"""Tasks from poems made by hand: who gets which poem, what the sample says, what is refused."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conf.errors import InputError
from conf.knobs.alignment import Tasks
from data.verse.phrases import DIALOGUE, PHRASES
from data.verse.rules import FORMS, Copies, form_of
from data.verse.samples import (
    Poem,
    as_poem,
    balanced,
    check_tasks,
    compose_queries,
    dialogue,
    from_poems,
    make,
    samples,
)
from moe.tasks.domain import SPLITS
from moe.tasks.task import Sample, Source
from trainers.files import store
from trainers.tasks import count, given

TITLES = "春夏秋冬山水花月风雪"
HAN = "".join(chr(0x4E00 + n) for n in range(2000))


def poem(number: int, form: str = "五言绝句", title: str = "", author: str = "李白", dynasty: str = "唐") -> Poem:
    """A poem of characters that no other number has."""
    lines, width = FORMS[form]
    line = [HAN[number] + HAN[place] * (width - 1) for place in range(lines)]
    text = "".join(f"{line[n]}，{line[n + 1]}。" for n in range(0, lines, 2))
    return Poem(number, title or "题" + HAN[number], author, dynasty, form, text)


def corpus(train: int = 80) -> dict[str, list[Poem]]:
    forms = list(FORMS)

    def split(start: int, size: int) -> list[Poem]:
        return [poem(n, forms[n % 4], dynasty="唐宋"[n % 2]) for n in range(start, start + size)]

    return {"train": split(0, train), "val": split(train, 12), "test": split(train + 12, 12)}


def test_titles_of_queries_are_in_no_compose_sample() -> None:
    output = from_poems(corpus(), Tasks(prompts=8), 0)
    assert len(output["prompts"]) == 8
    assert Counter(sample.task for sample in output["prompts"]) == {"compose": 7, "form": 1}
    asked = {sample.fields["title"] for sample in output["prompts"] if sample.task == "compose"}
    trained = {sample.fields["title"] for sample in output["train"] if sample.task == "compose"}
    assert not asked & trained and len(trained) == 72


def test_a_small_corpus_asks_each_title_in_every_form() -> None:
    output = from_poems(corpus(16), Tasks(prompts=64), 0)
    poems = [sample for sample in output["prompts"] if sample.task == "compose"]
    assert len({sample.fields["title"] for sample in poems}) == 4  # a quarter of 16
    assert Counter(sample.fields["form"] for sample in poems) == dict.fromkeys(FORMS, 4)
    assert len({sample.id for sample in poems}) == 16


def test_queries_give_each_form_its_share() -> None:
    queries = compose_queries([poem(n) for n in range(10)], 20, 0)
    assert Counter(query.fields["form"] for query in queries) == {
        "五言绝句": 5,
        "七言绝句": 6,
        "五言律诗": 5,
        "七言律诗": 4,
    }
    assert len({(query.fields["title"], query.fields["form"]) for query in queries}) == 20


def test_splits_do_not_mix_and_test_titles_are_unseen() -> None:
    poems = corpus()
    poems["test"].append(poem(500, title=poems["train"][0].title))
    output = from_poems(poems, Tasks(prompts=8), 0)
    owners = {split: {p.id for p in poems[split]} for split in poems}
    for name, split in (("train", "train"), ("val", "val"), ("prompts", "train"), ("test_prompts", "test")):
        numbers = {int(s.id.split("-")[1]) for s in output[name] if s.task != "dialogue"}
        assert numbers and numbers <= owners[split], name
    titles = {sample.fields["title"] for sample in output["test_prompts"] if sample.task == "compose"}
    assert titles == {p.title for p in poems["test"][:12]}


def test_samples_say_what_the_poem_says() -> None:
    one = poem(7, "七言绝句", title="春山", author="杜甫", dynasty="宋")
    lines = [line for line in one.text.replace("。", "，").split("，") if line]
    made = {task: make(task, [one], 1, 0, {"杜甫"})[0] for task in PHRASES}
    answers = {task: sample.messages[-1]["content"] for task, sample in made.items()}
    assert answers["compose"] == answers["continue"] == one.text
    assert answers["form"] == made["form"].label == "七言绝句"
    assert answers["dynasty"] == made["dynasty"].label == "宋代"
    assert answers["author"] == made["author"].label == "杜甫"
    place = lines.index(made["next_line"].fields["line"])
    assert place % 2 == 0 and answers["next_line"] == lines[place + 1] + "。"
    asked = {task: sample.messages[0]["content"] for task, sample in made.items()}
    assert "春山" in asked["compose"] and "七言绝句" in asked["compose"] and one.text in asked["form"]
    assert made["continue"].fields["first"] == lines[0] and lines[0] in asked["continue"]
    assert form_of(answers["continue"]) == made["continue"].fields["form"]


def test_only_frequent_authors_and_regular_titled_poems_serve() -> None:
    odd = Poem(1, "其一 春", "李白", "唐", "五言绝句", poem(1).text[:-1])
    assert make("compose", [odd], 1, 0, set()) == [] and make("form", [odd], 1, 0, set()) == []
    assert make("author", [poem(2, author="无名")], 1, 0, {"李白"}) == []
    assert [poem(3, title=title).titled for title in ("春夜", "春夜 其一", "a春", "春" * 17)] == [
        True,
        False,
        False,
        False,
    ]


def test_balanced_takes_turns_and_fills_up() -> None:
    poems = [poem(n, "五言绝句") for n in range(8)] + [poem(n, "七言律诗") for n in range(8, 10)]
    assert Counter(p.form for p in balanced(poems, 4, lambda p: p.form)) == {"五言绝句": 2, "七言律诗": 2}
    assert Counter(p.form for p in balanced(poems, 7, lambda p: p.form)) == {"五言绝句": 5, "七言律诗": 2}


def test_every_choice_hangs_on_the_seed_alone() -> None:
    poems = corpus()
    again = {split: poems[split][::-1] for split in poems}
    assert from_poems(poems, Tasks(), 3) == from_poems(again, Tasks(), 3)
    assert from_poems(poems, Tasks(), 3) != from_poems(poems, Tasks(), 4)


def test_held_out_dialogue_asks_in_ways_never_trained_on() -> None:
    trained = {m["content"] for s in dialogue(600, 0, held_out=False) for m in s.messages if m["role"] == "user"}
    held = {s.messages[0]["content"] for s in dialogue(len(DIALOGUE), 0, held_out=True)}
    assert len(held) == len(DIALOGUE) and not held & trained
    assert all(len(ways) >= 4 for ways, _ in DIALOGUE) and all(len(ways) >= 4 for ways in PHRASES.values())
    assert len({way for ways, _ in DIALOGUE for way in ways}) == sum(len(ways) for ways, _ in DIALOGUE)


def test_metrics_tell_when_there_are_fewer_than_asked_for() -> None:
    cfg = Tasks(per_task={"form": 500, "dialogue": 3}, prompts=4, held_out=5)
    metrics = count(from_poems(corpus(), cfg, 0), cfg)
    assert (metrics["asked/form"], metrics["train/form"], metrics["val/form"]) == (500.0, 80.0, 5.0)
    assert metrics["train"] == 83.0 and metrics["prompts"] == 4.0


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(InputError, match=r"^tasks\.per_task\.compse: no such task; there are compose, .*dialogue$"):
        check_tasks(Tasks(per_task={"compse": 5}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": None}, "record 7 has no field 'title': tasks.domain=data.verse needs poems"),
        ({"form": "词"}, "record 7 has form='词', not one of 五言绝句"),
        ({"dynasty": "清"}, "record 7 has dynasty='清', not one of 唐, 宋"),
    ],
)
def test_a_record_that_is_no_poem_is_named(change: dict[str, str | None], message: str) -> None:
    record = {"title": "月", "author": "李白", "dynasty": "唐", "form": "五言绝句", "text": "..."}
    with pytest.raises(InputError, match=message):
        as_poem(7, record | change)


def source(folder: Path, **parts: Any) -> Source:
    """Forty poems of the regular kind, as the corpus holds them."""
    poems = {"train": corpus()["train"][:40], "val": corpus()["val"], "test": corpus()["test"]}
    records = {
        split: [(p.id, {name: getattr(p, name) for name in ("title", "author", "dynasty", "form", "text")}) for p in of]
        for split, of in poems.items()
    }
    made = Source(
        records=lambda split: iter(records[split]),
        documents=lambda split: (record["text"] for _, record in records[split]),
        own=[],
        queries=[],
        folder=folder,
    )
    return replace(made, **parts)


def test_the_domain_makes_samples_and_keeps_which_lines_the_corpus_holds(tmp_path: Path) -> None:
    made = samples(source(tmp_path), Tasks(prompts=8, held_out=3), 0)
    assert {split: len(of) > 0 for split, of in made.items()} == dict.fromkeys(SPLITS, True)
    assert Copies.load(tmp_path / "copies.npy").copied(poem(3, "七言律诗").text)
    assert not Copies.load(tmp_path / "copies.npy").copied(poem(300).text)


def brought(source: Source) -> Source:
    """With the splits of what the user brings, as the stage gives them."""
    return replace(source, given=given(source, Tasks(prompts=8), 0))


def test_own_samples_and_queries_take_their_places(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    own = [Sample(id=str(n), task="mine", messages=[{**talk[0], "content": f"q{n}"}, talk[1]]) for n in range(20)]
    asked = [Sample(id=f"a{n}", task="ask", messages=[{**talk[0], "content": f"春{n}"}]) for n in range(8)]
    made = samples(brought(source(tmp_path, own=own, queries=asked)), Tasks(prompts=8), 0)
    assert {s.task for s in made["train"] + made["val"]} == {"mine"}
    assert {s.task for s in made["prompts"] + made["test_prompts"]} == {"ask"}
    assert {s.task for s in samples(brought(source(tmp_path, own=own)), Tasks(prompts=8), 0)["prompts"]} == {
        "compose",
        "form",
    }


def test_a_form_that_verse_does_not_know_is_refused_by_its_sample(tmp_path: Path) -> None:
    asked = [
        Sample(id=f"a{n}", task="compose", messages=[{"role": "user", "content": f"{n}"}], fields={"form": "table"})
        for n in range(2)
    ]
    with pytest.raises(InputError, match="sample a[01]: form='table' is none that verse knows; there are 五言绝句"):
        samples(brought(source(tmp_path, queries=asked)), Tasks(prompts=8), 0)


def test_one_record_that_is_almost_a_poem_is_named(tmp_path: Path) -> None:
    broken = source(tmp_path)
    records = [*broken.records("val"), (99, {"title": "x", "author": "y", "dynasty": "唐", "form": "五言绝句"})]
    bad = replace(broken, records=lambda split: iter(records) if split == "val" else broken.records(split))
    with pytest.raises(InputError, match="record 99 has no field 'text': tasks.domain=data.verse needs poems"):
        samples(bad, Tasks(prompts=8), 0)


def test_records_and_documents_are_read_from_the_shards_in_order(tmp_path: Path) -> None:
    for shard, numbers in ((1, [5]), (0, [2, 3])):
        records = [json.dumps({"text": f"第{number}"}) for number in numbers]
        table = pa.table({"id": pa.array(numbers, pa.int64()), "text": ["document"] * len(numbers), "record": records})
        pq.write_table(table, tmp_path / f"train-{shard:05d}.parquet")
    assert list(store.records(tmp_path, "train")) == [(n, {"text": f"第{n}"}) for n in (2, 3, 5)]
    assert list(store.documents(tmp_path, "train")) == ["第2", "第3", "第5"]
    assert list(store.records(tmp_path, "val")) == []

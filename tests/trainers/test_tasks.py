"""Tasks from poems made by hand: who gets which poem, what the sample says, what is refused."""

import json
from collections import Counter
from pathlib import Path

import pytest

from conf.schema import InputError, Tasks
from moe.verse import FORMS, form_of
from trainers.phrases import DIALOGUE, PHRASES
from trainers.poems import Poem, as_poem, balanced, check_tasks, compose_queries, dialogue, from_poems, make
from trainers.samples import read_samples
from trainers.tasks import count, from_samples, read_poems, try_poems

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
    assert Counter(sample["task"] for sample in output["prompts"]) == {"compose": 7, "form": 1}
    asked = {sample["title"] for sample in output["prompts"] if sample["task"] == "compose"}
    trained = {sample["title"] for sample in output["train"] if sample["task"] == "compose"}
    assert not asked & trained and len(trained) == 72


def test_a_small_corpus_asks_each_title_in_every_form() -> None:
    output = from_poems(corpus(16), Tasks(prompts=64), 0)
    poems = [sample for sample in output["prompts"] if sample["task"] == "compose"]
    assert len({sample["title"] for sample in poems}) == 4  # a quarter of 16
    assert Counter(sample["form"] for sample in poems) == dict.fromkeys(FORMS, 4)
    assert len({sample["id"] for sample in poems}) == 16


def test_queries_give_each_form_its_share() -> None:
    queries = compose_queries([poem(n) for n in range(10)], 20, 0)
    assert Counter(query["form"] for query in queries) == {"五言绝句": 5, "七言绝句": 6, "五言律诗": 5, "七言律诗": 4}
    assert len({(query["title"], query["form"]) for query in queries}) == 20


def test_splits_do_not_mix_and_test_titles_are_unseen() -> None:
    poems = corpus()
    poems["test"].append(poem(500, title=poems["train"][0].title))
    output = from_poems(poems, Tasks(prompts=8), 0)
    owners = {split: {p.id for p in poems[split]} for split in poems}
    for name, split in (("train", "train"), ("val", "val"), ("prompts", "train"), ("test_prompts", "test")):
        numbers = {int(s["id"].split("-")[1]) for s in output[name] if s["task"] != "dialogue"}
        assert numbers and numbers <= owners[split], name
    titles = {sample["title"] for sample in output["test_prompts"] if sample["task"] == "compose"}
    assert titles == {p.title for p in poems["test"][:12]}


def test_samples_say_what_the_poem_says() -> None:
    one = poem(7, "七言绝句", title="春山", author="杜甫", dynasty="宋")
    lines = [line for line in one.text.replace("。", "，").split("，") if line]
    made = {task: make(task, [one], 1, 0, {"杜甫"})[0] for task in PHRASES}
    answers = {task: sample["messages"][-1]["content"] for task, sample in made.items()}
    assert answers["compose"] == answers["continue"] == one.text
    assert answers["form"] == made["form"]["label"] == "七言绝句"
    assert answers["dynasty"] == made["dynasty"]["label"] == "宋代"
    assert answers["author"] == made["author"]["label"] == "杜甫"
    place = lines.index(made["next_line"]["line"])
    assert place % 2 == 0 and answers["next_line"] == lines[place + 1] + "。"
    asked = {task: sample["messages"][0]["content"] for task, sample in made.items()}
    assert "春山" in asked["compose"] and "七言绝句" in asked["compose"] and one.text in asked["form"]
    assert made["continue"]["first"] == lines[0] and lines[0] in asked["continue"]
    assert form_of(answers["continue"]) == made["continue"]["form"]


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
    trained = {m["content"] for s in dialogue(600, 0, held_out=False) for m in s["messages"] if m["role"] == "user"}
    held = {s["messages"][0]["content"] for s in dialogue(len(DIALOGUE), 0, held_out=True)}
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
        ({"title": None}, "record 7 has no field 'title': the tasks stage needs poems"),
        ({"form": "词"}, "record 7 has form='词', not one of 五言绝句"),
        ({"dynasty": "清"}, "record 7 has dynasty='清', not one of 唐, 宋"),
    ],
)
def test_a_record_that_is_no_poem_is_named(change: dict[str, str | None], message: str) -> None:
    record = {"title": "月", "author": "李白", "dynasty": "唐", "form": "五言绝句", "text": "..."}
    with pytest.raises(InputError, match=message):
        as_poem(7, record | change)


def test_poems_are_read_from_the_shards_in_order(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    record = {"title": "月", "author": "李白", "dynasty": "唐", "form": "五言绝句"}
    for shard, numbers in ((1, [5]), (0, [2, 3])):
        records = [json.dumps(record | {"text": f"第{number}"}) for number in numbers]
        table = pa.table({"id": pa.array(numbers, pa.int64()), "text": ["document"] * len(numbers), "record": records})
        pq.write_table(table, tmp_path / f"train-{shard:05d}.parquet")
    assert [(p.id, p.text) for p in read_poems(tmp_path, "train")] == [(2, "第2"), (3, "第3"), (5, "第5")]
    assert read_poems(tmp_path, "val") == []
    pq.write_table(pa.table({"id": [1], "text": ["a"], "record": ['{"text": "a"}']}), tmp_path / "val-00000.parquet")
    assert try_poems(tmp_path) is None


ALPACA = '{"instruction": "问", "input": "甲", "output": "答"}'


def test_own_samples_in_both_forms(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    turns = [("system", "短"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in turns]
    file.write_text(ALPACA + "\n" + json.dumps({"task": "talk", "messages": messages}) + "\n")
    first, second = read_samples(file)
    assert first == {
        "id": "own.jsonl-1",
        "task": "own",
        "messages": [{"role": "user", "content": "问\n甲"}, {"role": "assistant", "content": "答"}],
    }
    assert second["task"] == "talk" and second["messages"] == messages


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"instruction": "a"}', "no field 'output'"),
        ('{"instruction": "a", "output": ""}', "output is empty"),
        ('{"instruction": 3, "output": "b"}', "instruction must be a string, not int"),
        ('{"messages": []}', "messages must be a list of one message or more"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "the roles are user; user and assistant must take turns"),
        (
            '{"messages": [{"role": "bot", "content": "a"}]}',
            r"messages\[0\]\.role='bot' must be system, user or assist",
        ),
        ('{"messages": [{"role": "user", "content": " "}]}', r"messages\[0\]\.content must be a string that is not em"),
        ('{"messages": [3]}', r"messages\[0\] must be an object"),
        ('{"instruction": ', "JSON"),
        ("[1]", "object"),
    ],
)
def test_a_bad_sample_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text(ALPACA + "\n" + line + "\n")
    with pytest.raises(InputError, match=message) as caught:
        read_samples(file)
    assert str(caught.value).startswith(f"{file}:2") and "\n" not in str(caught.value)


def test_own_samples_validate_one_in_ten_of_each_task() -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    samples = [
        {"id": f"{task}-{n}", "task": task, "messages": talk}
        for task, size in (("a", 40), ("b", 5))
        for n in range(size)
    ]
    output = from_samples(samples, Tasks(prompts=7), 0)
    assert Counter(sample["task"] for sample in output["val"]) == {"a": 4}
    assert len(output["train"]) == 41 and len(output["prompts"]) == 7
    assert all(sample["messages"] == talk[:1] for sample in output["prompts"])


def test_a_handful_of_own_samples_still_validates() -> None:
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    samples = [{"id": str(n), "task": "a", "messages": talk} for n in range(3)]
    output = from_samples(samples, Tasks(), 0)
    assert (len(output["train"]), len(output["val"])) == (2, 1)
    with pytest.raises(InputError, match="at least two"):
        from_samples(samples[:1], Tasks(), 0)

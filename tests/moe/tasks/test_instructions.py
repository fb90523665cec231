"""Who learns from what: splits by hash, no question on two sides, documents continued."""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conf.errors import InputError
from conf.knobs.alignment import Tasks
from moe.tasks.instructions import ANSWER, WINDOWS, continuations, samples
from moe.tasks.task import Message, Sample, Source


def turns(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def own(number: int, task: str = "a", answer: str = "It is so.", **fields: Any) -> Sample:
    return Sample(id=f"{task}-{number}", task=task, messages=turns(f"Q{number} of {task}?", answer), fields=fields)


def asked(number: int, task: str = "quiz") -> Sample:
    return Sample(id=f"q-{number}", task=task, messages=turns(f"Ask {number}?", "")[:1], label=str(number))


def source(
    own: list[Sample] | None = None,
    queries: list[Sample] | None = None,
    records: dict[str, list[dict[str, Any]]] | None = None,
) -> Source:
    splits = records or {}

    def numbered(split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(splits.get(split, []))

    def documents(split: str) -> Iterator[str]:
        yield from (record["text"] for record in splits.get(split, []))

    return Source(numbered, documents, own or [], queries or [], Path("unused"))


def questions(made: list[Sample], *, answered: bool) -> set[str]:
    return {str(one.messages[:-1] if answered else one.messages) for one in made}


def test_own_samples_are_split_by_their_question() -> None:
    given = [own(n, task) for task, size in (("a", 40), ("b", 5)) for n in range(size)]
    given += [own(n, answer="Another answer.") for n in range(40)]  # a second answer to each question of a
    made = samples(source(given), Tasks(prompts=8, held_out=3), 0)
    train, val = questions(made["train"], answered=True), questions(made["val"], answered=True)
    prompts, test = questions(made["prompts"], answered=False), questions(made["test_prompts"], answered=False)
    assert (len(train), len(prompts)) == (34, 8) and len(made["val"]) == 3
    assert not train & val and not train & prompts and not train & test and not prompts & test
    assert Counter(one.task for one in made["test_prompts"]) == {"a": 3}
    assert all(one.fields["reference"] for one in made["prompts"])


def test_order_changes_nothing_and_the_seed_something() -> None:
    given = [own(n) for n in range(50)]
    made = samples(source(given), Tasks(), 3)
    assert made == samples(source(given[::-1]), Tasks(), 3) != samples(source(given), Tasks(), 4)
    assert len(made["prompts"]) == 11 and len(made["val"]) == 5 and len(made["train"]) == 34  # a quarter of 45


def test_equal_samples_count_once() -> None:
    made = samples(source([own(1), own(1), own(2), own(3)]), Tasks(), 0)
    assert sum(len(made[name]) for name in ("train", "val")) == 3


def test_two_samples_are_enough_and_one_is_not() -> None:
    made = samples(source([own(1), own(2)]), Tasks(), 0)
    assert {name: len(its) for name, its in made.items()} == {"train": 1, "val": 1, "prompts": 1, "test_prompts": 1}
    assert questions(made["prompts"], answered=False) == questions(made["val"], answered=True)
    for few, count in (([own(1)], 1), ([own(1), own(1, answer="No.")], 1)):
        with pytest.raises(InputError, match=f"^sft.files hold {count} sample.* at least two in sft.files"):
            samples(source(few), Tasks(), 0)
    with pytest.raises(InputError, match="^sft.files is empty and the corpus makes 0 sample"):
        samples(source(), Tasks(), 0)


def test_a_label_is_known_and_a_reference_only_where_nothing_better_is() -> None:
    given = [own(n, answer="x", choices=["x", "y"]) for n in range(8)]
    made = samples(source(given), Tasks(), 0)
    assert all(one.label == "x" and "reference" not in one.fields for one in made["prompts"] + made["train"])
    with pytest.raises(InputError, match="^sft.files: sample a-1: no label, which must be one of choices="):
        samples(source([own(1, choices=["x", "y"]), own(2)]), Tasks(), 0)
    with pytest.raises(InputError, match=re.escape("sft.files: sample a-1: checks[0]: rule='wrods' is none")):
        samples(source([own(1, checks=[{"rule": "wrods"}]), own(2)]), Tasks(), 0)


def test_queries_are_split_and_stay_out_of_training() -> None:
    shared = Sample(id="s", task="a", messages=turns("Ask 3?", "3"))
    made = samples(source([own(1), own(2), shared], [asked(n) for n in range(24)]), Tasks(prompts=10), 0)
    assert len(made["prompts"]) == 10 and len(made["test_prompts"]) == 3  # an eighth of 24
    assert not questions(made["prompts"], answered=False) & questions(made["test_prompts"], answered=False)
    assert "Ask 3?" not in {one.prompt for one in made["train"] + made["val"]}
    assert all(one.label for one in made["prompts"])


def test_one_query_serves_both() -> None:
    made = samples(source([own(1), own(2)], [asked(1), asked(1)]), Tasks(), 0)
    assert made["prompts"] == made["test_prompts"] == [asked(1)]


def test_of_small_tasks_a_tenth_of_them_all_validates() -> None:
    small = [own(number, task=f"t{number // 5}") for number in range(50)]
    made = samples(source(small, [asked(1)]), Tasks(), 0)
    assert (len(made["train"]), len(made["val"])) == (45, 5)
    assert len({one.task for one in made["val"]}) == 5 and {one.task for one in made["train"]} == {
        f"t{number}" for number in range(10)
    }
    large = [own(number, task="big") for number in range(29)]
    assert len(samples(source(large, [asked(1)]), Tasks(), 0)["val"]) == 2  # a tenth, and never more
    one_each = [own(number, task=f"t{number}") for number in range(30)]
    assert len(samples(source(one_each, [asked(1)]), Tasks(), 0)["val"]) == 1  # one at least


def test_records_that_are_samples_keep_the_split_of_the_corpus() -> None:
    train: list[dict[str, Any]] = [
        {"instruction": "Add", "input": "2 3", "output": "5", "task": "sums"},
        {"prompt": "Say b", "completion": "b", "task": "say"},
        {"messages": turns("Say c", "c")},
        {"prompt": "Say d", "completion": "d"},
    ]
    splits = {"train": train, "val": [{"prompt": "Say e", "completion": "e"}, train[1]]}
    made = samples(source(records=splits | {"test": [{"prompt": "Say f", "completion": "f"}]}), Tasks(), 0)
    assert [one.prompt for one in made["val"]] == ["Say e"] and [one.prompt for one in made["test_prompts"]] == [
        "Say f"
    ]
    assert sorted(one.prompt for one in made["train"] + made["prompts"]) == ["Add\n2 3", "Say b", "Say c", "Say d"]
    assert {one.task for one in made["train"] + made["prompts"]} == {"sums", "say", "instruct"}
    with pytest.raises(InputError, match="^corpus: record 1 is no sample, as the first one is"):
        samples(source(records={"train": [train[0], {"text": "a"}]}), Tasks(), 0)


STORY = (
    "A fox lived in a wood. It was red. One day it met a hare. They ran to the river. The water was cold. They drank."
)


def test_documents_are_continued_at_a_sentence() -> None:
    made = list(continuations(STORY))
    assert [one.messages for one in made] == [
        turns(
            "A fox lived in a wood. It was red. One day it met a hare.",
            "They ran to the river. The water was cold. They drank.",
        )
    ]
    verse = "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"
    assert [one.messages for one in continuations(verse)] == [
        turns("床前明月光，疑是地上霜。", "举头望明月，低头思故乡。")
    ]


def test_one_sentence_is_cut_between_words() -> None:
    (made,) = continuations("The quick brown fox jumps over the dog.")
    assert made.messages == turns("The quick brown fox", "jumps over the dog.")
    assert (
        list(continuations("Too short.")) == [] and list(continuations("")) == [] and list(continuations("\n \n")) == []
    )


def test_a_book_gives_many_and_none_is_too_long() -> None:
    made = list(continuations("\n".join(f"This is line {n} of a long book that goes on." for n in range(2000))))
    assert len(made) == WINDOWS and len({one.id for one in made}) == WINDOWS
    endless = list(continuations("word " * 5000 + "x" * 5000))
    assert endless and all(len(one.messages[-1]["content"]) <= ANSWER for one in [*made, *endless])


def test_documents_make_train_val_and_queries() -> None:
    def stories(start: int, size: int) -> list[dict[str, Any]]:
        return [{"title": "t", "text": STORY.replace("fox", f"fox {n}")} for n in range(start, start + size)]

    splits = {"train": stories(0, 40), "val": stories(40, 5), "test": stories(50, 4)}
    cfg = Tasks(per_task={"continue": 20}, prompts=6, held_out=3)
    made = samples(source(records=splits), cfg, 0)
    sizes = {name: len(its) for name, its in made.items()}
    assert sizes == {"train": 20, "val": 3, "prompts": 6, "test_prompts": 3}
    assert all(one.fields["reference"].startswith("They ran") for one in made["prompts"] + made["test_prompts"])
    alone = samples(source(records={"train": stories(0, 8)}), cfg, 0)
    assert {name: len(its) for name, its in alone.items()} == {"train": 6, "val": 1, "prompts": 1, "test_prompts": 1}
    with pytest.raises(InputError, match="^tasks.per_task=.* leaves no sample to train on"):
        samples(source(records=splits), Tasks(per_task={"continue": 0}), 0)


def test_ids_are_never_shared() -> None:
    given = [own(n) for n in range(20)]
    same = [Sample(id="x", task="a", messages=one.messages) for one in given]
    made = samples(source(same), Tasks(prompts=4), 0)
    for its in made.values():
        assert len({one.id for one in its}) == len(its)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "no query that is measured is learnt from",
        "moe/tasks/instructions.py",
        "    test = _take(ordered, lambda _: cfg.held_out, most=max(1, len(ordered) // 8))\n",
        "    test = dict(list(ordered.items())[: len(ordered) // 8])\n",
        "test_queries_are_split_and_stay_out_of_training",
    ),
    (
        "of small tasks a tenth validates",
        "moe/tasks/instructions.py",
        "most=few // 10)",
        "most=0)",
        "test_of_small_tasks_a_tenth_of_them_all_validates",
    ),
    (
        "a question is on one side however many answers it has",
        "moe/tasks/instructions.py",
        "key, whole = _question(sample.messages[:-1]), _question(sample.messages)",
        "key = whole = _question(sample.messages)",
        "test_own_samples_are_split_by_their_question",
    ),
    (
        "no query is trained on",
        "moe/tasks/instructions.py",
        "if key in asked or whole in seen",
        "if whole in seen",
        "test_queries_are_split_and_stay_out_of_training",
    ),
    (
        "equal samples count once",
        "moe/tasks/instructions.py",
        "seen.add(whole)",
        "pass",
        "test_equal_samples_count_once",
    ),
    (
        "the order of the files changes no split",
        "moe/tasks/instructions.py",
        'for key in sorted(groups, key=lambda key: hashed(seed, "split", key))',
        "for key in groups",
        "test_order_changes_nothing_and_the_seed_something",
    ),
    (
        "queries that are practised are not those that measure",
        "moe/tasks/instructions.py",
        "test = _take(ordered, lambda _: cfg.held_out, most=max(1, len(ordered) // 8))",
        "test = _take(dict(ordered), lambda _: cfg.held_out, most=max(1, len(ordered) // 8))",
        "test_queries_are_split_and_stay_out_of_training",
    ),
    (
        "a document is cut at a sentence",
        "moe/tasks/instructions.py",
        "for start, end in spans(line):",
        "for start, end in [(0, len(line))]:",
        "test_documents_are_continued_at_a_sentence",
    ),
]

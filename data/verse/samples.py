"""Instruction samples and queries made of poems: pure functions of (poems, config, seed).

Every choice hangs on a hash of the seed and the poem's number, so more poems or another task change no other sample.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice, zip_longest
from typing import Any, TypeVar

from conf.errors import InputError
from conf.knobs.alignment import Tasks
from data.verse.judge import COPIES
from data.verse.phrases import DIALOGUE, PHRASES
from data.verse.rules import FORMS, HAN, Copies, form_of, lines
from moe.tasks.task import Sample, Source, hashed, of_corpus, query

Option = TypeVar("Option")

DYNASTIES = {"唐": "唐代", "宋": "宋代"}
AUTHORS = 50  # the most frequent; a rarer one cannot be learned
KNOWLEDGE_SHARE = 8  # one query in so many asks for the form of a poem, or just talks
TITLE_LENGTH = 16  # characters
TEST_PROMPTS = {
    "compose": 512,
    "form": 256,
    "dynasty": 64,
    "continue": 64,
    "next_line": 32,
    "author": 32,
    "dialogue": 27,
}
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Poem:
    id: int  # the record's number in the corpus
    title: str
    author: str
    dynasty: str  # a key of DYNASTIES
    form: str  # a key of FORMS
    text: str

    @property
    def titled(self) -> bool:
        """Whether the title can stand in a request: a few Han characters, no "part two" after a space."""
        return re.fullmatch(f"[{HAN}]{{1,{TITLE_LENGTH}}}", self.title) is not None

    @property
    def regular(self) -> bool:
        return form_of(self.text) == self.form


_NEEDS = (
    "tasks.domain=data.verse needs poems (title, author, dynasty, form, text); for other text take "
    "tasks.domain=moe.tasks.general"
)


def check(cfg: Tasks, record: dict[str, Any] | None) -> None:
    """Whether there can be samples of a corpus that begins with `record`."""
    check_tasks(cfg)
    if record is None:
        raise InputError(f"the run has no corpus: {_NEEDS}")
    as_poem(0, record)


def as_poem(number: int, record: dict[str, Any]) -> Poem:
    for field in ("title", "author", "dynasty", "form", "text"):
        if not isinstance(record.get(field), str):
            raise InputError(f"corpus: record {number} has no field {field!r}: {_NEEDS}")
    for field, known in (("form", FORMS), ("dynasty", DYNASTIES)):
        if record[field] not in known:
            raise InputError(
                f"corpus: record {number} has {field}={record[field]!r}, not one of {', '.join(known)}: {_NEEDS}"
            )
    return Poem(number, *(record[field] for field in ("title", "author", "dynasty", "form", "text")))


PER_TASK = {  # where tasks.per_task says nothing
    "compose": 20000,
    "continue": 8000,
    "next_line": 8000,
    "form": 4000,
    "dynasty": 4000,
    "author": 4000,
    "dialogue": 1500,
}


def samples(source: Source, cfg: Tasks, seed: int) -> dict[str, list[Sample]]:
    """Instruction samples and queries made of the corpus, which must be poems. Samples of the user's own take the place
    of the first, `tasks.queries` that of the second; which lines the corpus holds is kept for the judge."""
    check_tasks(cfg)
    poems = {split: [as_poem(number, record) for number, record in source.records(split)] for split in _SPLITS}
    made = from_poems(poems, cfg, seed)
    made |= {split: list(theirs) for split, theirs in source.given.items()}
    for sample in (*made["prompts"], *made["test_prompts"]):
        _check_form(sample)
    Copies.of(source.documents("train")).save(source.folder / COPIES)
    return made


def _check_form(sample: Sample) -> None:
    form = sample.fields.get("form")
    if form is not None and form not in FORMS:
        raise InputError(f"sample {sample.id}: form={form!r} is none that verse knows; there are {', '.join(FORMS)}")


def check_tasks(cfg: Tasks) -> None:
    known = [*PHRASES, "dialogue"]
    for name in cfg.per_task:
        if name not in known:
            raise InputError(f"tasks.per_task.{name}: no such task; there are {', '.join(known)}")


def from_poems(poems: dict[str, list[Poem]], cfg: Tasks, seed: int) -> dict[str, list[Sample]]:
    """{"train", "val", "prompts", "test_prompts"} from the poems of each split; fewer where the poems run out."""
    check_tasks(cfg)
    train, test = poems["train"], poems["test"]
    queries = _one_per_title(shuffled((poem for poem in train if poem.titled), seed, "prompts"))
    # A small corpus keeps three quarters of its titles for training; a large one all that no query needs.
    queries = queries[: min(cfg.prompts, max(len(queries) // 4, 1))]
    if not queries:
        raise InputError(f"corpus: no poem to train on has a title of 1 to {TITLE_LENGTH} Han characters")
    taken = {poem.title for poem in queries}
    authors = {name for name, _ in Counter(p.author for p in train if p.author != "不详").most_common(AUTHORS)}

    output: dict[str, list[Sample]] = {"train": [], "val": []}
    for task, wanted in (cfg.per_task or PER_TASK).items():
        if not wanted:
            continue
        if task == "dialogue":
            output["train"] += dialogue(wanted, seed, held_out=False)
            output["val"] += dialogue(min(cfg.held_out, len(DIALOGUE)), seed, held_out=True)
            continue
        source = [poem for poem in train if task != "compose" or poem.title not in taken]
        output["train"] += make(task, source, wanted, seed, authors)
        output["val"] += make(task, poems["val"], cfg.held_out, seed, authors)
    for samples in output.values():
        samples.sort(key=lambda sample: hashed(seed, "mix", sample.id))

    seen = {poem.title for poem in train}
    unseen = _one_per_title(shuffled((p for p in test if p.titled and p.title not in seen), seed, "test"))
    # A few questions of knowledge among the poems: reinforcement learning must not forget what it does not practise.
    share = cfg.prompts // KNOWLEDGE_SHARE
    practised = make("form", train, share - share // 2, seed, authors) + dialogue(share // 2, seed, held_out=False)
    known = [query(sample) for sample in practised]
    output["prompts"] = compose_queries(queries, cfg.prompts - len(known), seed) + known
    output["prompts"].sort(key=lambda sample: hashed(seed, "prompts", sample.id))
    output["test_prompts"] = compose_queries(unseen, TEST_PROMPTS["compose"], seed)
    for task, wanted in TEST_PROMPTS.items():
        if task == "compose":
            continue
        made = dialogue(wanted, seed, held_out=True) if task == "dialogue" else make(task, test, wanted, seed, authors)
        output["test_prompts"] += [query(sample) for sample in made]
    return output


def make(task: str, poems: Iterable[Poem], wanted: int, seed: int, authors: set[str]) -> list[Sample]:
    """At most `wanted` samples of one task, its classes as equal as the poems allow."""
    fits, kind, build = _MAKERS[task]
    pool = [poem for poem in shuffled(poems, seed, task) if fits(poem) and (task != "author" or poem.author in authors)]
    return [_sample(task, poem, seed, build) for poem in balanced(pool, wanted, kind)]


def balanced(poems: Sequence[Poem], wanted: int, kind: Callable[[Poem], str]) -> list[Poem]:
    """The first `wanted` poems when the classes take turns; a class that runs out leaves its turns to the others."""
    classes: dict[str, list[Poem]] = defaultdict(list)
    for poem in poems:
        classes[kind(poem)].append(poem)
    turns = zip_longest(*(classes[name] for name in sorted(classes)))
    return list(islice((poem for turn in turns for poem in turn if poem is not None), wanted))


def compose_queries(poems: Sequence[Poem], wanted: int, seed: int) -> list[Sample]:
    """Requests for a poem, the forms by turns; with few titles each is asked for in up to four forms."""
    forms = list(FORMS)
    made = []
    for place in range(min(wanted, len(poems) * len(forms))):
        turn, poem = place // len(poems), poems[place % len(poems)]
        # Within a round the forms take turns; each round starts one later, so no title meets a form twice.
        form = forms[(place % len(poems) + turn) % len(forms)]
        name = f"compose-{poem.id}-{forms.index(form)}"
        phrase = _choose(PHRASES["compose"], seed, name).format(form=form, title=poem.title)
        message = {"role": "user", "content": phrase}
        fields = {"form": form, "title": poem.title}
        made.append(Sample(id=name, task="compose", messages=[message], fields=fields, origin=of_corpus(poem.id)))
    return made


def dialogue(wanted: int, seed: int, *, held_out: bool) -> list[Sample]:
    """Talk about the model and its trade, one turn or two; `held_out` asks in ways that are never trained on."""
    made = []
    for number, (questions, answer) in enumerate(islice(cycle(DIALOGUE), wanted)):
        name = f"dialogue-{'held' if held_out else 'train'}-{number}"
        ways = questions[-1:] if held_out else questions[:-1]
        messages = [_turn("user", _choose(ways, seed, name)), _turn("assistant", answer)]
        if not held_out and number // len(DIALOGUE) % 2:
            before, reply = _choose(DIALOGUE, seed, name + "before")
            opening = [_turn("user", _choose(before[:-1], seed, name + "way")), _turn("assistant", reply)]
            messages = opening + messages
        made.append(Sample(id=name, task="dialogue", messages=messages))
    return made


def _couplet(poem: Poem, seed: int) -> tuple[str, str, str]:
    """(odd line, even line, mark that ends it) of one couplet."""
    parts = lines(poem.text)
    place = 2 * _choose(range(len(parts) // 2), seed, f"couplet-{poem.id}")
    return parts[place], parts[place + 1], "。"


def _compose(poem: Poem, seed: int) -> tuple[dict[str, str], str, dict[str, str]]:
    return {"form": poem.form, "title": poem.title}, poem.text, {"form": poem.form, "title": poem.title}


def _continue(poem: Poem, seed: int) -> tuple[dict[str, str], str, dict[str, str]]:
    first = lines(poem.text)[0]
    return {"form": poem.form, "line": first}, poem.text, {"form": poem.form, "first": first}


def _next_line(poem: Poem, seed: int) -> tuple[dict[str, str], str, dict[str, str]]:
    line, following, mark = _couplet(poem, seed)
    return {"line": line}, following + mark, {"line": line}


def _author(poem: Poem, seed: int) -> tuple[dict[str, str], str, dict[str, str]]:
    line, following, _ = _couplet(poem, seed)
    return {"line": f"{line}，{following}"}, poem.author, {"label": poem.author}


def _form(poem: Poem, seed: int) -> tuple[dict[str, str], str, dict[str, str]]:
    return {"poem": poem.text}, poem.form, {"label": poem.form}


def _dynasty(poem: Poem, seed: int) -> tuple[dict[str, str], str, dict[str, str]]:
    return {"poem": poem.text}, DYNASTIES[poem.dynasty], {"label": DYNASTIES[poem.dynasty]}


Build = Callable[[Poem, int], tuple[dict[str, str], str, dict[str, str]]]  # -> words of the phrase, answer, fields
# task: (which poems serve, the class that is kept in balance, how the sample is built)
_MAKERS: dict[str, tuple[Callable[[Poem], bool], Callable[[Poem], str], Build]] = {
    "compose": (lambda poem: poem.titled and poem.regular, lambda poem: poem.form, _compose),
    "continue": (lambda poem: poem.regular, lambda poem: poem.form, _continue),
    "next_line": (lambda poem: poem.regular, lambda poem: poem.form, _next_line),
    "form": (lambda poem: poem.regular, lambda poem: poem.form, _form),
    "dynasty": (lambda poem: poem.regular, lambda poem: poem.dynasty, _dynasty),
    "author": (lambda poem: poem.regular, lambda poem: poem.author, _author),
}


def _sample(task: str, poem: Poem, seed: int, build: Build) -> Sample:
    words, answer, fields = build(poem, seed)
    name = f"{task}-{poem.id}"
    question = _choose(PHRASES[task], seed, name).format(**words)
    return Sample(
        id=name,
        task=task,
        messages=[_turn("user", question), _turn("assistant", answer)],
        label=fields.get("label"),
        fields={field: value for field, value in fields.items() if field != "label"},
        origin=of_corpus(poem.id),
    )


def shuffled(poems: Iterable[Poem], seed: int, purpose: str) -> list[Poem]:
    """The poems in an order that depends on the seed, the purpose and each poem alone."""
    return sorted(poems, key=lambda poem: hashed(seed, purpose, poem.id))


def _one_per_title(poems: Iterable[Poem]) -> list[Poem]:
    first: dict[str, Poem] = {}
    for poem in poems:
        first.setdefault(poem.title, poem)
    return list(first.values())


def _choose(options: Sequence[Option], seed: int, name: str) -> Option:
    return options[hashed(seed, "choose", name) % len(options)]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}

"""Instruction samples and queries from whatever there is: a user's own samples, a corpus of samples, plain documents.

Who learns from what hangs on a hash of the seed and the question, so the order of files changes nothing, and a question
is on one side only, however many answers it has.
"""

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from conf.errors import InputError
from conf.knobs.alignment import Tasks
from moe.tasks import forms
from moe.tasks.queries import answer_fields, task_name
from moe.tasks.task import Message, Sample, Source, hashed, of_corpus, query
from moe.tasks.writing import spans, word_starts

SPLITS = ("train", "val", "test")
CONTINUE, INSTRUCT = "continue", "instruct"  # tasks whose samples name none
CONTINUED = 8000  # samples of that task where tasks.per_task does not say
BEGINNING, ANSWER = 200, 400  # characters: what is asked, and what is answered at most
WINDOWS = 16  # samples of one document at most, or one book would be all there is
WHOLE = 6  # words; a shorter sentence has no beginning that says anything

Groups = dict[str, list[Sample]]  # the samples of each question


def samples(source: Source, cfg: Tasks, seed: int) -> dict[str, list[Sample]]:
    """{"train", "val", "prompts", "test_prompts"}: see `moe.tasks.task`. Raises `InputError` where there is too little.

    Samples come from `source.own`, else from records that are samples, else documents are continued. One in ten of
    each task validates, at most `cfg.held_out`, of small tasks one in ten of them all, or the corpus's own split does.
    Queries are `source.queries`, else at most a quarter of the questions, which nobody trains on; then the sample's
    answer is their reference.
    """
    pools = {"train": [_own(sample) for sample in source.own]} if source.own else _of_corpus(source, cfg, seed)
    asked = {_question(one.messages) for one in source.queries}
    train, val, test = _grouped(pools, asked, seed)
    if len(train) + len(val) < 2:
        what = "sft.files hold" if source.own else "sft.files is empty and the corpus makes"
        beside = " that are not in tasks.queries" if asked else ""
        raise InputError(
            f"{what} {len(train) + len(val)} sample(s) with different questions{beside}; give at least two in "
            "sft.files, one to train on and one to validate"
        )
    if not val:
        totals = Counter(group[0].task for group in train.values())
        val = _take(train, lambda task: min(cfg.held_out, totals[task] // 10))
        # a tenth of the tasks too small for a tenth of their own, together
        few = sum(count for count in totals.values() if 1 < count < 10)
        val |= _take(train, lambda task: int(1 < totals[task] < 10), most=few // 10)
        val = val or _take(train, lambda _: 1, most=1)
    elif not train:
        train = _take(val, lambda _: len(val), most=len(val) - 1)
    validating = _capped((one for group in val.values() for one in group), lambda _: cfg.held_out)
    if source.queries:
        prompts, measured = _split_queries(source.queries, cfg, seed)
    else:
        held = _take(train, lambda _: cfg.prompts, most=min(cfg.prompts, len(train) // 4)) or val
        prompts = [_asked(group[0]) for group in held.values()][: cfg.prompts]
        measured = [_asked(group[0]) for group in (test or val).values()]
    training = _capped(
        (one for group in train.values() for one in group),
        lambda task: cfg.per_task.get(task, CONTINUED if task == CONTINUE else len(train) * 10**6),
    )
    if not training:
        raise InputError(f"tasks.per_task={dict(cfg.per_task)} leaves no sample to train on; give a task more than 0")
    return {
        "train": _named(training),
        "val": _named(validating),
        "prompts": _named(prompts),
        "test_prompts": _named(_capped(measured, lambda _: cfg.held_out)),
    }


def _own(sample: Sample) -> Sample:
    """With what it knows of its answer checked; fields that only its owner knows stay."""
    record = {**sample.fields, "label": sample.label}
    label, fields = answer_fields(record, f"sft.files: sample {sample.id}", answer=sample.messages[-1]["content"])
    return replace(sample, label=label, fields={**sample.fields, **fields})


def _of_corpus(source: Source, cfg: Tasks, seed: int) -> dict[str, list[Sample]]:
    first = next(source.records("train"), None)
    if first is not None and forms.is_sample(first[1]):
        return {split: [_as_sample(*numbered) for numbered in source.records(split)] for split in SPLITS}
    wanted = {"train": cfg.per_task.get(CONTINUE, CONTINUED) + cfg.prompts, "val": cfg.held_out, "test": cfg.held_out}
    # Only what will serve is kept: a corpus is larger than memory.
    return {
        split: heapq.nsmallest(
            wanted[split],
            _continued(source, split),
            key=lambda one: (hashed(seed, "split", _question(one.messages[:-1])), one.messages[-1]["content"]),
        )
        for split in SPLITS
    }


def _continued(source: Source, split: str) -> Iterator[Sample]:
    """The continuations of each document, which say what record they are of."""
    for (number, _), text in zip(source.records(split), source.documents(split), strict=True):
        yield from (replace(one, origin=of_corpus(number)) for one in continuations(text))


def _as_sample(number: int, record: Mapping[str, Any]) -> Sample:
    where = f"corpus: record {number}"
    if not forms.is_sample(record):
        raise InputError(f"{where} is no sample, as the first one is: it has {forms.KNOWN}")
    told = forms.sample(record, where)
    known = {name: record[name] for name in ("label", "choices", "checks") if record.get(name) is not None}
    label, fields = answer_fields(known, where, answer=told.messages[-1]["content"])
    task = task_name(record.get("task", INSTRUCT), where)
    name = f"record-{number}"
    return Sample(
        id=name,
        task=task,
        messages=told.messages,
        muted=told.muted,
        label=label,
        fields=fields,
        origin=of_corpus(number),
    )


def continuations(text: str) -> Iterator[Sample]:
    """Samples of the task `continue`: the beginning of a stretch of the text, and what follows it, cut between
    sentences or lines; in a text of one sentence, between words. No word of instruction, so it serves every language.
    """
    text = text.strip()
    pieces = list(_pieces(text))
    if len(pieces) == 1:
        starts = word_starts(text)
        if len(starts) >= WHOLE:
            cut = starts[len(starts) // 2]
            yield _continuation(text[:cut], text[cut:])
        return
    enough = min(BEGINNING, len(text) // 3)
    place = made = 0
    while place + 1 < len(pieces) and made < WINDOWS:
        start, end = pieces[place]
        place += 1
        while end - start < enough and place + 1 < len(pieces) and pieces[place][1] - start <= 2 * BEGINNING:
            end = pieces[place][1]
            place += 1
        begins, ends = pieces[place]
        place += 1
        while place < len(pieces) and pieces[place][1] - begins <= ANSWER:
            ends = pieces[place][1]
            place += 1
        yield _continuation(text[start:end], text[begins:ends])
        made += 1


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """(start, end) of the sentences of each line, those too long for an answer cut between words."""
    at = 0
    for line in text.split("\n"):
        for start, end in spans(line):
            starts = (
                [start, *(start + word for word in word_starts(line[start:end]))] if end - start > ANSWER else [start]
            )
            while end - start > ANSWER:
                fits = [word for word in starts if start < word <= start + ANSWER] or [start + ANSWER]
                yield at + start, at + fits[-1]
                start = fits[-1]
                starts = [word for word in starts if word > start]
            yield at + start, at + end
        at += len(line) + 1


def _continuation(beginning: str, answer: str) -> Sample:
    messages = [_turn("user", beginning.strip()), _turn("assistant", answer.strip())]
    name = f"{CONTINUE}-{hashed(0, CONTINUE, messages):016x}"
    return Sample(id=name, task=CONTINUE, messages=messages)


def _turn(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _question(messages: Sequence[Message]) -> str:
    return json.dumps([[turn["role"], turn["content"].strip()] for turn in messages], ensure_ascii=False)


def _grouped(pools: Mapping[str, Sequence[Sample]], asked: set[str], seed: int) -> tuple[Groups, Groups, Groups]:
    """The samples of each question in train, val and test, the questions in the order of their hashes; equal samples
    once, no question on two sides, none that is in `asked`."""
    found: dict[str, Groups] = {split: defaultdict(list) for split in SPLITS}
    side: dict[str, str] = {}
    seen: set[str] = set()
    for split in SPLITS:
        for sample in pools.get(split, ()):
            key, whole = _question(sample.messages[:-1]), _question(sample.messages)
            if key in asked or whole in seen or side.setdefault(key, split) != split:
                continue
            seen.add(whole)
            found[split][key].append(sample)
    train, val, test = (
        {
            key: sorted(groups[key], key=lambda one: hashed(seed, "answer", one.messages[-1]["content"]))
            for key in sorted(groups, key=lambda key: hashed(seed, "split", key))
        }
        for groups in found.values()
    )
    return train, val, test


def _take(groups: Groups, of_task: Callable[[str], int], *, most: int = 10**9) -> Groups:
    """Moves the first questions out of `groups`: so many of each task, `most` in all."""
    taken: Groups = {}
    counts: Counter[str] = Counter()
    for key, group in list(groups.items()):
        task = group[0].task
        if len(taken) < most and counts[task] < of_task(task):
            counts[task] += 1
            taken[key] = groups.pop(key)
    return taken


def _capped(ordered: Iterable[Sample], of_task: Callable[[str], int]) -> list[Sample]:
    """The first of each task, in their order."""
    counts: Counter[str] = Counter()
    kept = []
    for sample in ordered:
        if counts[sample.task] < of_task(sample.task):
            counts[sample.task] += 1
            kept.append(sample)
    return kept


def _asked(sample: Sample) -> Sample:
    """The question; the sample's answer is its reference, where it knows no better."""
    fields = dict(sample.fields)
    if sample.label is None and not {"reference", "references"} & fields.keys():
        fields["reference"] = sample.messages[-1]["content"]
    return replace(query(sample), fields=fields)


def _split_queries(queries: Sequence[Sample], cfg: Tasks, seed: int) -> tuple[list[Sample], list[Sample]]:
    """(prompts, test_prompts): an eighth of the questions tests, at least one; a single one serves both."""
    by_question: Groups = {}
    for one in queries:
        by_question.setdefault(_question(one.messages), [one])
    ordered = {key: by_question[key] for key in sorted(by_question, key=lambda key: hashed(seed, "queries", key))}
    if len(ordered) == 1:
        return list(queries[:1]), list(queries[:1])
    test = _take(ordered, lambda _: cfg.held_out, most=max(1, len(ordered) // 8))
    return [group[0] for group in ordered.values()][: cfg.prompts], [group[0] for group in test.values()]


def _named(ordered: Sequence[Sample]) -> list[Sample]:
    """With ids that none shares: files of the same name in two folders give the same ones."""
    used: set[str] = set()
    named = []
    for sample in ordered:
        name, number = sample.id, 2
        while name in used:
            name, number = f"{sample.id}-{number}", number + 1
        used.add(name)
        named.append(sample if name == sample.id else replace(sample, id=name))
    return named

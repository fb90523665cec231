"""Which merges a text teaches, by the trainer of `tokenizers`."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

LONG = 256  # characters of a word that the trainer is shown in one
_RUNS = re.compile(r"\S++|[^\S\r\n]++")


def learnt(
    texts: Sequence[str],
    splitter: pre_tokenizers.PreTokenizer,
    alphabet: set[str],
    characters: int,
    room: int,
    min_frequency: int,
) -> list[tuple[str, str]]:
    """The first merges, in order, that need `alphabet` only and make at most `room` new pieces. `characters`: how many
    different ones the texts have."""
    if room <= 0:
        return []
    # The trainer sees every character: one that it did not know it would skip, and join its two neighbours.
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = splitter
    trainer = trainers.BpeTrainer(
        vocab_size=characters + room, min_frequency=min_frequency, special_tokens=[], show_progress=False
    )
    learner.train_from_iterator(in_short_words(texts, splitter), trainer)
    known = json.loads(learner.to_str())["model"]["merges"]
    return [(left, right) for left, right in known if alphabet.issuperset(left + right)][:room]


def in_short_words(texts: Iterable[str], splitter: pre_tokenizers.PreTokenizer) -> Iterator[str]:
    """The texts, cut within the words that are longer than LONG: the trainer takes the square of a word's length, and
    nobody wants a piece of that many letters. A text without such words comes as it is."""
    for text in texts:
        if all(run.end() - run.start() <= LONG for run in _RUNS.finditer(text)):
            yield text
            continue
        begun = 0
        for _, (start, end) in splitter.pre_tokenize_str(text):
            for cut in range(start + LONG, end, LONG):
                yield text[begun:cut]
                begun = cut
        yield text[begun:]

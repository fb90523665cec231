"""Instruction samples that the policy learns again beside its rewards, to keep what rewards do not ask for."""

from collections import defaultdict
from collections.abc import Collection
from pathlib import Path

import numpy as np

from conf.errors import InputError
from moe.tasks.measure import read_task_file
from moe.tasks.task import Sample
from moe.text.chat import answer_ids, prompt_ids
from moe.text.tokenizer import Tokenizer
from rlhf.messages import Batch, Key, Response, pad


def tasks_of(file: Path, tasks: Collection[str]) -> list[list[Sample]]:
    """The samples of each of `tasks`, or of all. Raises `InputError` naming a task that the file does not have."""
    by_task = defaultdict(list)
    for sample in read_task_file(file):
        if len(sample.messages) - 1 not in sample.muted:  # its last answer is what is learnt
            by_task[sample.task].append(sample)
    for name in tasks:
        if name not in by_task:
            raise InputError(f"ppo.replay_tasks={name}: {file} has none; there are {', '.join(sorted(by_task))}")
    return [by_task[name] for name in sorted(tasks or by_task)]


class Replay:
    """Draws from a samples file of the tasks stage; draw `n` is a function of (seed, n) alone."""

    def __init__(self, file: Path, tokenizer: Tokenizer, seed: int, tasks: Collection[str] = ()) -> None:
        self._tokenizer, self._seed = tokenizer, seed
        self._tasks = tasks_of(file, tasks)

    def draw(self, number: int, count: int) -> Batch:
        """`count` samples, the tasks by turns. Their log-probs are 0: nobody sampled them."""
        places = np.random.SeedSequence([self._seed, number]).generate_state(count, np.uint64).tolist()
        drawn = []
        for turn, place in enumerate(places):
            task = self._tasks[(number * count + turn) % len(self._tasks)]
            messages = task[place % len(task)].messages
            (answer,) = answer_ids(self._tokenizer, messages[:-1], [messages[-1]["content"]])
            key = Key(number, "replay", turn, version=0)
            drawn.append(Response(key, prompt_ids(self._tokenizer, messages[:-1]), answer, [0.0] * len(answer), True))
        return pad(drawn)

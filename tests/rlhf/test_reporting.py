"""What an iteration reports, by hand."""

import time
from typing import Any

import pytest
import torch

from moe.tasks.task import Sample, Verdict
from rlhf.messages import Key, Response, pad
from rlhf.record import Answered
from rlhf.reporting import Stopwatch, answer_metrics, hacked, learning_metrics, to_look_at

RESPONSES = [
    Response(Key(0, "q", 0, version=0), [5, 6], [7, 8, 9], [-1.0, -2.0, -3.0], True),
    Response(Key(0, "q", 1, version=0), [5], [7], [-0.5], False),
]


def query(name: str) -> Sample:
    return Sample(id=name, task="t", messages=[{"role": "user", "content": f"say {name}"}])


def test_all_answers_are_measured() -> None:
    verdicts = [Verdict({}, 1.0, measures={"form": 1.0, "rhyme": 0.5}), Verdict({}, -0.5, measures={"form": 0.0})]
    assert answer_metrics(Answered([query("q")] * 2, RESPONSES, verdicts, ["one", "one"])) == {
        "rl/task/form": 0.5,
        "rl/task/rhyme": 0.5,  # of the answers that have it
        "rl/task/distinct": 0.5,
        "response_length/mean": 2.0,
        "response/finished": 0.5,
        "rl/rules/mean": 0.25,
    }


def test_reward_and_distance_are_of_whole_answers() -> None:
    batch = pad(RESPONSES)
    earned = torch.tensor([[0.0, 0, 1, 0, 2], [0, -1, 0, 0, 0]])
    reference = torch.tensor([[9.0, 9, -1.5, -2.5, -3.5], [9, -1.0, 9, 9, 9]])  # what is no answer does not count
    # KL of the answers: 3 * .5 and .5
    told = learning_metrics(batch, earned, reference, earned - 0.5 * batch.mask)
    assert told == pytest.approx({"rl/reward": 1.0, "rl/kl": 1.0, "critic/rewards/mean": (1.5 - 1.5) / 2})


def test_answers_to_look_at_are_of_as_many_queries_as_there_are() -> None:
    asked = [query(name) for name in "aabb"]
    verdicts = [Verdict({}, reward) for reward in (0.1, 0.2, 0.3, 0.4)]
    shown = to_look_at(asked, ["a1", "a2", "b1", "b2"], verdicts, 3)
    assert [(one["id"], one["answer"], one["rules"]) for one in shown] == [
        ("a", "a1", 0.1), ("b", "b1", 0.3), ("a", "a2", 0.2),
    ]  # fmt: skip
    assert to_look_at(asked, ["a1", "a2", "b1", "b2"], verdicts, 0) == []


def test_laps_add_up_to_the_step() -> None:
    watch = Stopwatch()
    time.sleep(0.02)
    watch.lap("gen")
    watch.lap("adv")
    told = watch.times(100)
    assert list(told) == ["timing_s/gen", "timing_s/adv", "timing_s/step", "perf/throughput"]
    assert told["timing_s/gen"] >= 0.02 > told["timing_s/adv"]
    assert told["timing_s/step"] >= told["timing_s/gen"] + told["timing_s/adv"]
    assert told["perf/throughput"] == pytest.approx(100 / told["timing_s/step"])


def paid(answers: list[list[int]], earned: list[float], **knobs: Any) -> dict[str, str]:
    made = [Response(Key(3, f"q{n // 2}", n % 2, 3), [5], ids, [0.0] * len(ids), True) for n, ids in enumerate(answers)]
    return hacked(made, torch.tensor(earned), **knobs)


VARIED = [[(7 * n + 3 * at * at) % 97 for at in range(12 + n % 5)] for n in range(16)]


def test_a_reward_that_pays_repetition_is_told_with_its_samples() -> None:
    earned = [n / 16 for n in range(16)]
    again = [*VARIED[:9], *([[4, 5] * 9] * 7)]  # of the eight best paid, all but the ninth answer
    assert paid(again, earned) == {
        "rl/alarm/repetition": "7 of the 8 best paid answers repeat themselves, of the others 0: q7/1, q7/0, q6/1, "
        "q6/0, q5/1, ..."
    }
    assert paid(again, earned[::-1]) == {}  # where it costs, nothing is hacked
    assert paid([[4, 5] * 9] * 16, earned) == {}  # where all do it, it is not what is paid
    assert paid(VARIED, earned) == {} and paid(again[:14], earned[:14]) == {} and paid(again, [1.0] * 16) == {}


def test_a_reward_that_pays_length_is_told_with_its_samples() -> None:
    growing = [[(7 * n + 3 * at * at) % 97 for at in range(5 + n)] for n in range(16)]
    earned = [float(len(answer)) for answer in growing]
    assert paid(growing, earned) == {
        "rl/alarm/length": "the longer an answer, the more it earned (rank correlation +1.00): q7/1, q7/0, q6/1, q6/0, "
        "q5/1, ..."
    }
    assert paid(growing, [-value for value in earned])["rl/alarm/length"].startswith("the shorter an answer, the more")
    assert paid(growing, earned, by_length=True) == {}
    assert paid(growing, [value % 7 for value in earned]) == {}
    same = [[n, *range(20, 30 + n % 2)] for n in range(16)]  # hardly a difference in length
    assert paid(same, [float(len(answer)) for answer in same]) == {}


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "the KL that is told is of answers' tokens alone",
        "rlhf/reporting.py",
        "((batch.logprobs - reference) * batch.mask)",
        "(batch.logprobs - reference)",
        "test_reward_and_distance_are_of_whole_answers",
    ),
    (
        "a lap begins where the one before ended",
        "rlhf/reporting.py",
        "        self._last = now\n",
        "",
        "test_laps_add_up_to_the_step",
    ),
    (
        "answers to look at are of different queries first",
        "rlhf/reporting.py",
        "[*firsts, *rest][:count]",
        "range(len(asked))[:count]",
        "test_answers_to_look_at_are_of_as_many_queries_as_there_are",
    ),
    (
        "a reward that pays repetition raises an alarm",
        "rlhf/reporting.py",
        "if len(paid) >= len(best) / 2 and",
        "if len(paid) > len(best) and",
        "test_a_reward_that_pays_repetition_is_told_with_its_samples",
    ),
]

"""Answers go on over iterations: the same tokens as in one, each learnt from once, and kept over a kill."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.tracking.tracker import read_metrics
from conf.errors import InputError
from conf.knobs.reinforcement import Advantages, Ppo
from moe.generation.engine import Sampling
from rlhf.carried.segments import Segments
from rlhf.graph import Graph
from rlhf.losses import gae
from rlhf.messages import Key, Request, Response
from rlhf.record import FOLDER, read
from rlhf.rollouts import Begun
from tests.rlhf.carried.alone import alone, weights
from tests.rlhf.graphs import PPO, Before, config

CFG = replace(PPO, segment=5, max_new_tokens=12, keep=0, iterations=5, rewards={"rules": 1.0, "length": 0.5})
SAME = replace(CFG, critic_warmup=99)  # every version of the policy has the same weights


class Seen:
    """What a graph was asked, and answered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all: list[tuple[Request, Response]] = []
        rollout = Graph.rollout

        def seen(graph: Graph, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
            made = rollout(graph, requests, sampling)
            self.all += zip(requests, made, strict=True)
            return made

        monkeypatch.setattr(Graph, "rollout", seen)

    def answers(self) -> dict[tuple[int, str, int], list[int]]:
        """Those that are done, by what names them."""
        limit = CFG.max_new_tokens
        return {
            (made.key.iteration, made.key.query, made.key.sample): made.whole
            for _, made in self.all
            if made.finished or len(made.whole) == limit
        }


def test_what_is_open_comes_first_and_then_as_many_as_there_is_room_for() -> None:
    cfg, segments = replace(CFG, prompts=1, samples=3, minibatches=1), Segments()
    assert segments.next(cfg, 0) == [Begun(0, 0), Begun(1, 0), Begun(2, 0)]
    made = [
        Response(Key(0, "q", 0, 0), [5], [7] * 5, [-1.0] * 5, False),
        Response(Key(0, "q", 1, 0), [5], [7] * 2, [-1.0] * 2, True),
        Response(Key(0, "q", 2, 0), [5, 8, 8, 8, 8, 8, 8, 8], [7] * 5, [-1.0] * 5, False, begun=7),  # its last tokens
    ]
    assert segments.going(made, cfg) == [True, False, False]
    saved = Segments.of(segments.plain)
    assert segments.next(cfg, 1) == saved.next(cfg, 1) == [Begun(0, 0, (7,) * 5), Begun(3, 1), Begun(4, 1)]
    assert saved.begun == 5


def test_a_segments_edge_is_worth_what_is_expected_after_it() -> None:
    """By hand: rewards 1 and 0, values .5 and .25, .8 expected after them; gamma .9, lambda .5."""
    mask, values = torch.ones(1, 2), torch.tensor([[0.5, 0.25]])
    following = 0.9 * torch.tensor([[0.0, 0.8]])
    advantages, returns = gae(torch.tensor([[1.0, 0.0]]) + following, values, mask, gamma=0.9, lam=0.5)
    last = 0.9 * 0.8 - 0.25
    first = 1.0 + 0.9 * 0.25 - 0.5
    assert advantages.tolist()[0] == pytest.approx([first + 0.45 * last, last])
    assert returns.tolist()[0] == pytest.approx([first + 0.45 * last + 0.5, last + 0.25])


def test_segments_make_the_answers_that_one_iteration_would(
    before: Before, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched, alone(before, config(SAME)) as graph:
        cut = Seen(patched)
        before.learn(graph, config(SAME), tmp_path / "cut")
    made = [
        key for request, response in cut.all for key in [(request.key.iteration, request.key.query, request.key.sample)]
    ]
    assert all(len(response.answer) <= 5 for _, response in cut.all) and len(cut.all) == 5 * 8
    assert any(request.begun for request, _ in cut.all) and len(set(made)) < len(made)
    first = {name: whole for name, whole in cut.answers().items() if name[0] == 0}
    whole_cfg = replace(SAME, segment=0, iterations=1)
    with monkeypatch.context() as patched, alone(before, config(whole_cfg)) as graph:
        whole = Seen(patched)
        before.learn(graph, config(whole_cfg), tmp_path / "whole")
    assert first == whole.answers() and len(first) == 8  # all of the first iteration's are done by the third


def test_only_what_is_done_earns_and_every_token_is_learnt_from_once(before: Before, tmp_path: Path) -> None:
    with alone(before, config(CFG)) as graph:
        before.learn(graph, config(CFG), tmp_path)
        asked = [ask.method for ask in graph.supervisor.asked]  # type: ignore[attr-defined]
    learnt: dict[tuple[int, str, int], int] = {}
    for step in range(1, 6):
        for row in read(tmp_path / FOLDER, step).rows:
            name, done = (row["iteration"], row["query"], row["sample"]), row["begun"] + len(row["answer"])
            assert learnt.get(name, 0) == row["begun"] and len(row["advantages"]) == len(row["answer"])
            learnt[name] = done
            if not row["finished"] and done < 12:
                assert row["terms"] == {"rules": 0.0, "length": 0.0}
            else:
                assert row["terms"]["length"] == pytest.approx(1 - done / 12)
    assert asked.count("edges") >= 2
    told = read_metrics(tmp_path)
    assert max(line.get("response_length/mean", 0.0) for line in told) > 5


def test_what_is_open_survives_a_kill(before: Before, tmp_path: Path) -> None:
    with alone(before, config(CFG)) as graph:
        before.learn(graph, config(CFG), tmp_path / "straight")
        straight = weights(graph).flat
    for iterations in (2, 5):
        cfg = config(replace(CFG, iterations=iterations))
        with alone(before, cfg) as graph:
            before.learn(graph, cfg, tmp_path / "cut")
            again = weights(graph).flat
    assert (again == straight).all()


def test_what_segments_cannot_be_learnt_from_by_is_refused() -> None:
    wrong: list[dict[str, Any]] = [{"advantages": Advantages.group}, {"keep": 2}, {"normalise": True}]
    for knobs in wrong:
        with pytest.raises(InputError, match="^ppo.segment=5 learns from answers that are not done by what a critic"):
            replace(Ppo(segment=5, keep=0), **knobs)
    with pytest.raises(InputError, match="ppo.segment=-1 must not be negative"):
        Ppo(segment=-1)


PLANTED = [  # promise, file, right code, bug, test
    (
        "a run continues from its newest checkpoint",
        "rlhf/ppo.py",
        "graph.begin(found)",
        "graph.begin(None)",
        "test_what_is_open_survives_a_kill",
    ),
    (
        "an answer that goes on throws the dice that it would have thrown",
        "rlhf/actors/rollout.py",
        "                begun=request.begun,\n",
        "",
        "test_segments_make_the_answers_that_one_iteration_would",
    ),
    (
        "an answer that goes on has not earned yet",
        "rlhf/rewards.py",
        "name: part * done.unsqueeze(1) for name, part",
        "name: part for name, part",
        "test_only_what_is_done_earns_and_every_token_is_learnt_from_once",
    ),
    (
        "open answers are in the checkpoint",
        "rlhf/carried/state.py",
        'segments = Segments.of(saved["segments"]) if "segments" in saved else Segments()',
        "segments = Segments()",
        "test_what_is_open_survives_a_kill",
    ),
]

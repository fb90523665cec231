"""Which queries are asked, under which keys, and what is compared with what."""

from pathlib import Path

import pytest

from conf.errors import InputError
from conf.knobs.alignment import Rank
from conf.knobs.reinforcement import Ppo
from conf.knobs.text import Tokenizer as Settings
from moe.tasks.task import Sample
from moe.text.tokenizer import Tokenizer
from rlhf.rollouts import Query, admit, fitting, groups, ranked
from tests.moe.text.parents import parent

QUERIES = [
    Query(Sample(id=f"q{number}", task="say", messages=[{"role": "user", "content": "?"}]), [number])
    for number in range(5)
]
CFG = Ppo(prompts=3, samples=2, minibatches=3)


def test_what_is_too_long_is_left_out_counted_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = Tokenizer.train(["user assistant abc\n"] * 4, Settings(vocab_size=450))
    samples = [
        Sample(id=name, task="say", messages=[{"role": "user", "content": content}])
        for name, content in (("short", "a"), ("long", "abc" * 40), ("longer", "abc" * 50))
    ]
    every = fitting(samples, tokenizer, context=1000, answer=8, knob="ppo.max_new_tokens")
    assert [query.sample.id for query in every] == ["short", "long", "longer"] and capsys.readouterr().out == ""
    longest, length = len(every[2].prompt), len(every[1].prompt)
    found = fitting(samples, tokenizer, context=len(every[0].prompt) + 8, answer=8, knob="ppo.max_new_tokens")
    assert found == every[:1]  # that just fits
    told = capsys.readouterr().out
    assert told == (
        f"2 of 3 queries leave no room for ppo.max_new_tokens=8 tokens in the model's context of "
        f"{len(every[0].prompt) + 8}, the first of them long with {length} tokens: they are left out\n"
    )
    assert longest > length
    with pytest.raises(InputError, match=r"^3 of 3 queries leave no room for rank.max_new_tokens=8 tokens in the"):
        fitting(samples, tokenizer, context=8, answer=8, knob="rank.max_new_tokens")


def test_a_query_that_the_models_template_refuses_is_named(tmp_path: Path) -> None:
    llama = Tokenizer.load(parent("llama2", tmp_path))
    (right, wrong) = (
        Sample(id=name, task="say", messages=[{"role": "user", "content": "a"}] * turns)
        for name, turns in (("right", 1), ("wrong", 2))
    )
    (found,) = fitting([right], llama, context=1000, answer=8, knob="ppo.max_new_tokens")
    assert found.prompt[0] == llama.opening[0]
    with pytest.raises(
        InputError, match=r"^query wrong: .*: the chat template refuses this conversation: Conversation"
    ):
        fitting([right, wrong], llama, context=1000, answer=8, knob="ppo.max_new_tokens")


def test_an_iterations_requests_are_a_function_of_seed_and_iteration() -> None:
    asked, requests = admit(QUERIES, CFG, 1, seed=7)
    assert [sample.id for sample in asked] == ["q3", "q3", "q4", "q4", "q0", "q0"]
    assert [request.key.query for request in requests] == [sample.id for sample in asked]
    assert [request.prompt for request in requests] == [[3], [3], [4], [4], [0], [0]]
    assert {(request.key.iteration, request.key.version) for request in requests} == {(1, 1)}
    assert len({request.seed for request in requests}) == 6
    assert admit(QUERIES, CFG, 1, seed=7) == (asked, requests)
    seeds = {request.seed for request in requests}
    assert not seeds & {request.seed for request in admit(QUERIES, CFG, 1, seed=8)[1]}
    assert not seeds & {request.seed for iteration in (0, 2) for request in admit(QUERIES, CFG, iteration, seed=7)[1]}


def test_a_query_that_comes_round_again_is_another_group_with_other_answers() -> None:
    cfg = Ppo(prompts=4, samples=2, minibatches=4)
    requests = admit(QUERIES[:2], cfg, 0, seed=7)[1]
    assert [request.key.query for request in requests] == ["q0", "q0", "q1", "q1"] * 2
    assert len({request.key for request in requests}) == len({request.seed for request in requests}) == 8
    found = groups(requests, cfg)
    assert found[0] == found[1] != found[4] == found[5]
    assert len(set(found)) == 4 and all(found.count(group) == 2 for group in found)


def test_rankings_have_answers_of_every_temperature() -> None:
    cfg = Rank(answers=4, temperatures=[0.7, 1.0, 1.0])
    found = ranked(QUERIES[:2], cfg, seed=7)
    assert {temperature: len(requests) for temperature, requests in found.items()} == {0.7: 4, 1.0: 4}
    assert [(request.key.query, request.key.sample) for request in found[0.7]] == [
        ("q0", 0),
        ("q0", 3),
        ("q1", 0),
        ("q1", 3),
    ]
    assert len({request.seed for requests in found.values() for request in requests}) == 8


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a prompt that just fits is asked",
        "rlhf/rollouts.py",
        "fit = [query for query in queries if len(query.prompt) + answer <= context]",
        "fit = [query for query in queries if len(query.prompt) + answer < context]",
        "test_what_is_too_long_is_left_out_counted_and_named",
    ),
    (
        "a query that comes round again has other answers",
        "rlhf/rollouts.py",
        "sample += cfg.samples * (place // len(queries))",
        "sample += 0",
        "test_a_query_that_comes_round_again_is_another_group_with_other_answers",
    ),
    (
        "each round of a query is a group",
        "rlhf/rollouts.py",
        "(request.key.query, request.key.sample // cfg.samples)",
        "(request.key.query, 0)",
        "test_a_query_that_comes_round_again_is_another_group_with_other_answers",
    ),
    (
        "a later iteration asks later queries",
        "rlhf/rollouts.py",
        "range(iteration * count, (iteration + 1) * count)",
        "range(count)",
        "test_an_iterations_requests_are_a_function_of_seed_and_iteration",
    ),
]

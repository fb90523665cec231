"""Queries as requests to a rollout actor: which fit, which prompt they are, and under which key they are asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conf.errors import InputError
from conf.knobs.alignment import Rank
from conf.knobs.reinforcement import Ppo
from moe.tasks.task import Sample
from moe.text.chat import naming, prompt_ids
from moe.text.tokenizer import Tokenizer
from rlhf.messages import Key, Request, Response


@dataclass(frozen=True)
class Query:
    """A query with its prompt's ids."""

    sample: Sample
    prompt: list[int]


def fitting(samples: Sequence[Sample], tokenizer: Tokenizer, *, context: int, answer: int, knob: str) -> list[Query]:
    """The queries whose prompt leaves room for an answer of so many tokens; how many do not is printed, and the first
    of them. Raises `InputError` naming `knob` when none does."""
    queries = []
    for sample in samples:
        with naming(f"query {sample.id}"):
            queries.append(Query(sample, prompt_ids(tokenizer, sample.messages)))
    fit = [query for query in queries if len(query.prompt) + answer <= context]
    if len(fit) < len(queries):
        first = next(query for query in queries if len(query.prompt) + answer > context)
        told = (
            f"{len(queries) - len(fit)} of {len(queries)} queries leave no room for {knob}={answer} tokens in the "
            f"model's context of {context}, the first of them {first.sample.id} with {len(first.prompt)} tokens"
        )
        if not fit:
            raise InputError(told)
        print(f"{told}: they are left out")
    return fit


@dataclass(frozen=True)
class Begun:
    """An answer that an iteration makes, or makes more of."""

    number: int  # of all answers of the run
    iteration: int  # that began it
    tokens: tuple[int, ...] = ()  # those that are there


def fresh(cfg: Ppo, iteration: int) -> list[Begun]:
    """All that an iteration makes where every answer is done in one."""
    count = cfg.prompts * cfg.samples
    return [Begun(number, iteration) for number in range(iteration * count, (iteration + 1) * count)]


def admit(
    queries: Sequence[Query],
    cfg: Ppo,
    iteration: int,
    seed: int,
    begun: Sequence[Begun] | None = None,
    *,
    version: int | None = None,
) -> tuple[list[Sample], list[Request]]:
    """(query of each request, requests) of an iteration: a function of (seed, iteration) and what is `begun` alone.
    They are asked of policy `version`, or of the iteration's own."""
    asked, requests = [], []
    for one in fresh(cfg, iteration) if begun is None else begun:
        place, sample = divmod(one.number, cfg.samples)
        query = queries[place % len(queries)]
        # a query that comes round again within one iteration is another sample of it
        sample += cfg.samples * (place // len(queries))
        key = Key(one.iteration, query.sample.id, sample, iteration if version is None else version)
        left = cfg.max_new_tokens - len(one.tokens)
        room = min(cfg.segment or left, left)
        asked.append(query.sample)
        requests.append(Request(key, [*query.prompt, *one.tokens], key.seed(seed), len(one.tokens), room))
    return asked, requests


def in_order(queries: Sequence[Query], cfg: Ppo) -> dict[str, Any]:
    """Which query an iteration asks, for whoever wants to know what it saw: see `admit`."""
    named = [{"id": query.sample.id, "origin": list(query.sample.origin)} for query in queries]
    return {"prompts": cfg.prompts, "queries": named}


def groups(requests: Sequence[Request], cfg: Ppo) -> list[tuple[str, int]]:
    """Of each request what it is compared within: its query, each time that it comes round."""
    return [(request.key.query, request.key.sample // cfg.samples) for request in requests]


def numbered(groups: Sequence[tuple[str, int]]) -> Tensor:
    """[B] the group of each, as a number."""
    number = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    return torch.tensor([number[group] for group in groups])


def ranked(queries: Sequence[Query], cfg: Rank, seed: int) -> dict[float, list[Request]]:
    """The requests of `rank.answers` answers a query, by temperature."""
    found: dict[float, list[Request]] = {temperature: [] for temperature in sorted(set(cfg.temperatures))}
    for query in queries:
        for number in range(cfg.answers):
            key = Key(0, query.sample.id, number, version=0)
            request = Request(key, query.prompt, key.seed(seed))
            found[cfg.temperatures[number % len(cfg.temperatures)]].append(request)
    return found


def other_keys(asked: Sequence[Request], made: Sequence[Response]) -> str:
    """Why the answers cannot be those to the requests; "" where they can."""
    same = [response.key for response in made] == [request.key for request in asked]
    return "" if same else "its answers are to other requests"

"""What moves an answer's draws, number by number as transformers' and vLLM's processors have it."""

import random
from dataclasses import replace

import pytest
import torch
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from moe.decoder import Decoder
from moe.generation.engine import Engine, Sampling, _truncate, generate, sample
from moe.generation.penalties import Penalties, moved
from moe.kernels.processor import processor, using

WORDS = 40
PROMPT, MADE = [3, 5, 5, 9], [5, 7, 7, 7, 1]


def logits(rows: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, WORDS, generator=torch.Generator().manual_seed(seed)) * 3


def own(row: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    penalties = Penalties.of(sampling, PROMPT, MADE, row)
    assert penalties is not None
    return moved(row.unsqueeze(0).clone(), [penalties])[0]


def test_repetition_and_bias_are_transformers_to_the_bit() -> None:
    given = logits()
    ids = torch.tensor([PROMPT + MADE])
    theirs = RepetitionPenaltyLogitsProcessor(1.3)(ids, given.clone())
    assert own(given[0], Sampling(1, repetition_penalty=1.3)).tolist() == theirs[0].tolist()
    bias = {5: -4.0, 11: 2.5}
    biased = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])(ids, given.clone())
    sampling = Sampling(1, logit_bias=tuple(bias.items()))
    assert own(given[0], sampling).tolist() == biased[0].tolist()
    both = RepetitionPenaltyLogitsProcessor(1.3)(ids, biased)
    assert own(given[0], replace(sampling, repetition_penalty=1.3)).tolist() == both[0].tolist()


def test_presence_and_frequency_are_of_the_answer_alone() -> None:
    moves = own(torch.zeros(WORDS), Sampling(1, presence_penalty=0.5, frequency_penalty=0.25)).tolist()
    assert {token: move for token, move in enumerate(moves) if move} == {1: -0.75, 5: -0.75, 7: -1.25}


@pytest.mark.parametrize(("min_p", "sharp"), [(0.05, 1.0), (0.3, 0.2), (0.001, 0.01), (1.0, 1.0)])
def test_min_p_keeps_what_transformers_keeps(min_p: float, sharp: float) -> None:
    given = torch.randn(1, 300, generator=torch.Generator().manual_seed(4)) * sharp
    theirs = MinPLogitsWarper(min_p)(torch.tensor([[0]]), given.clone())[0].isfinite()
    assert (_truncate(given.softmax(-1)[0], Sampling(1, min_p=min_p)) > 0).tolist() == theirs.tolist()
    assert theirs.any() and (sharp > 0.01 or int(theirs.sum()) == 300)  # more than are sorted first
    drawn, logprobs = sample(given.repeat(200, 1), [Sampling(1, min_p=min_p, seed=s) for s in range(200)], [0] * 200)
    assert theirs[drawn].all()
    assert logprobs.tolist() == given.log_softmax(-1)[0][drawn].tolist()  # of all of them


def test_what_a_guide_forbids_stays_forbidden() -> None:
    row = logits()[0]
    row[5] = float("-inf")
    for sampling in (Sampling(1, logit_bias=((5, 100.0),)), Sampling(1, repetition_penalty=0.5, presence_penalty=-2)):
        assert own(row, sampling)[5] == float("-inf")


SAMPLINGS = [
    Sampling(12, temperature=0.0, repetition_penalty=1.4),
    Sampling(12, seed=1, presence_penalty=1.5, frequency_penalty=0.7),
    Sampling(12, seed=2),
    Sampling(12, temperature=0.0, logit_bias=((17, 100.0),)),
    Sampling(12, seed=3, min_p=0.1, repetition_penalty=1.1, logit_bias=((8, -100.0),)),
    Sampling(12, temperature=0.0, frequency_penalty=2.0),
    Sampling(12, temperature=0.0, frequency_penalty=2.0, logit_bias=((17, 12.0),)),  # again and again, to an end
]


@pytest.mark.parametrize("in_c", [True, False], ids=["c", "torch"])
def test_a_penalised_answer_is_the_same_in_any_company_and_after_a_pause(
    in_c: bool, model: Decoder, kernels_built: str
) -> None:
    if in_c and kernels_built:
        pytest.skip(kernels_built)
    with using(replace(processor(), kernels=in_c)):
        asked = [([4 + i, 5, 6, 7 + i], each) for i, each in enumerate(SAMPLINGS)]
        alone = [generate(model, [p], [s], stop=(), slots=1)[0] for p, s in asked]
        order = list(range(len(asked)))
        random.Random(0).shuffle(order)
        together = generate(model, [asked[i][0] for i in order], [asked[i][1] for i in order], stop=(), slots=4)
        assert [together[order.index(i)].tokens for i in range(len(asked))] == [answer.tokens for answer in alone]
        assert alone[3].tokens == [17] * 12 and 8 not in alone[4].tokens
        for (prompt, sampling), answer in zip(asked, alone, strict=True):  # as a stream that was left goes on
            engine = Engine(model, 1, ())
            engine.add("x", prompt + answer.tokens[:5], replace(sampling, max_new_tokens=7, begun=5))
            rest = [token for _ in range(7) for token in engine.step()]
            assert [token.id for token in rest] == answer.tokens[5:]


def test_a_penalised_answer_is_drawn_from_the_moved_logits_of_every_step(model: Decoder) -> None:
    for sampling in SAMPLINGS:
        (answer,) = generate(model, [PROMPT], [sampling], stop=())
        for at, (token, logprob) in enumerate(zip(answer.tokens, answer.logprobs, strict=True)):
            made = answer.tokens[:at]
            ids = torch.tensor([PROMPT + made])
            with torch.no_grad():
                row = model.logits(model(ids, torch.ones_like(ids)).states[-1:])
            ids, values = sample(moved(row, [Penalties.of(sampling, PROMPT, made, row[0])]), [sampling], [at])
            assert token == int(ids) and logprob == pytest.approx(float(values), abs=1e-4)


def test_who_asks_for_nothing_pays_nothing() -> None:
    given = logits(3)
    assert moved(given, [Penalties.of(Sampling(1, top_p=0.5, min_p=0.2), PROMPT, MADE, given[0])] * 3) is given


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what stood in the prompt is repeated, too",
        "moe/generation/penalties.py",
        "self._there[self._ids([*prompt, *made])] = True",
        "self._there[self._ids(made)] = True",
        "test_repetition_and_bias_are_transformers_to_the_bit",
    ),
    (
        "a token is penalised for every time that it came",
        "moe/generation/penalties.py",
        "self._counts[token] += 1",
        "self._counts[token] = 1",
        "test_a_penalised_answer_is_drawn_from_the_moved_logits_of_every_step",
    ),
    (
        "min-p is a share of the likeliest",
        "moe/generation/engine.py",
        "least = sampling.min_p * ordered[0]",
        "least = sampling.min_p * ordered.mean()",
        "test_min_p_keeps_what_transformers_keeps",
    ),
    (
        "an answer that goes on knows what it has",
        "moe/generation/engine.py",
        "at = len(self.prompt) - self.sampling.begun",
        "at = len(self.prompt)",
        "test_a_penalised_answer_is_the_same_in_any_company_and_after_a_pause",
    ),
]

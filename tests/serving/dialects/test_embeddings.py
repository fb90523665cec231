"""Embeddings over real HTTP, asked by the real `openai` client."""

import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from openai import APIStatusError, OpenAI

from tests.serving.conftest import CONTEXT, LINES, Tiny


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=600) as client:
        yield client


def directly(tiny: Tiny, text: str) -> list[float]:
    tokens = torch.tensor([tiny.tokenizer.encode(text)])
    with torch.no_grad():
        mean = tiny.model(tokens, torch.ones_like(tokens)).states.mean(0)
    return list((mean / mean.norm()).tolist())


def test_an_embedding_is_the_mean_of_the_last_states_and_of_length_one(client: OpenAI, tiny: Tiny) -> None:
    made = client.embeddings.create(model="tiny", input=LINES)  # which asks for base64
    assert [each.index for each in made.data] == [0, 1, 2, 3]
    for line, each in zip(LINES, made.data, strict=True):
        assert each.embedding == pytest.approx(directly(tiny, line), abs=1e-5)
        assert math.hypot(*each.embedding) == pytest.approx(1, abs=1e-5)
    assert made.usage.prompt_tokens == sum(len(tiny.tokenizer.encode(line)) for line in LINES)


def test_every_form_of_input_and_of_output(address: str, client: OpenAI, tiny: Tiny) -> None:
    expected = pytest.approx(directly(tiny, LINES[0]), abs=1e-5)
    ids = tiny.tokenizer.encode(LINES[0])
    for given in (LINES[0], ids, [ids]):
        assert (
            client.embeddings.create(model="tiny", input=given, encoding_format="float").data[0].embedding == expected
        )
    plain = httpx.post(f"{address}/v1/embeddings", json={"model": "tiny", "input": LINES[0]}, timeout=600).json()
    assert plain["data"][0]["embedding"] == expected


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "ada"}, 404, "model"),
        ({"input": ""}, 400, "input"),
        ({"input": ["a", ""]}, 400, "input"),
        ({"input": "月" * (CONTEXT + 1)}, 400, "input"),
        ({"input": [10**6]}, 400, "input"),
        ({"dimensions": 7}, 400, "dimensions"),
        ({"encoding_format": "int8"}, 400, "encoding_format"),
        ({"extra_body": {"truncate": True}}, 400, "truncate"),
    ],
)
def test_what_is_refused(client: OpenAI, fields: dict[str, Any], status: int, param: str) -> None:
    with pytest.raises(APIStatusError) as caught:
        client.embeddings.create(**{"model": "tiny", "input": "月"} | fields)
    assert (caught.value.status_code, caught.value.param) == (status, param)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an embedding has length one",
        "moe/generation/embeddings.py",
        "torch.nn.functional.normalize(states.mean(0), dim=0)",
        "states.mean(0)",
        None,
    ),
]

"""What /metrics says, read as Prometheus reads it."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx
from prometheus_client.parser import text_string_to_metric_families

from conf.knobs.running import Serve
from moe.generation.engine import Engine
from serving.app import endpoint
from serving.decoding import DecodingThread
from serving.replies import Served
from tests.serving.conftest import CONTEXT, Tiny, data

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "你好"}], "temperature": 0, "max_tokens": 5}
Figures = dict[str, float]


async def figures(client: httpx.AsyncClient) -> Figures:
    """{sample, its reason or bound appended: value} of the model's."""
    response = await client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            assert (sample.labels["model_name"], sample.labels["engine"]) == ("tiny", "0")
            more = [value for name, value in sample.labels.items() if name in ("finished_reason", "le")]
            found[":".join([sample.name.removeprefix("vllm:"), *more])] = sample.value
    return found


def run(tiny: Tiny, scenario: Callable[[httpx.AsyncClient, DecodingThread], Awaitable[None]]) -> None:
    async def inside() -> None:
        decoding = DecodingThread(Engine(tiny.model, 2, tiny.tokenizer.stop), waiting=6, name="tiny")
        app = endpoint(Served("tiny", tiny.tokenizer, decoding, CONTEXT, 16), Serve())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            await scenario(client, decoding)
        decoding.close()

    asyncio.run(asyncio.wait_for(inside(), 600))


def test_tokens_answers_and_times_are_counted(tiny: Tiny) -> None:
    async def scenario(client: httpx.AsyncClient, _: DecodingThread) -> None:
        used = (await client.post("/v1/chat/completions", json=ASK | {"n": 3})).json()["usage"]
        found = await figures(client)
        assert found["prompt_tokens_total"] == 3 * used["prompt_tokens"]
        assert found["generation_tokens_total"] == used["completion_tokens"] == 15
        assert found["request_success_total:length"] == 3
        assert (found["num_requests_running"], found["num_requests_waiting"]) == (0, 0)
        counts = {name: found[f"{name}_seconds_count"] for name in ("time_to_first_token", "inter_token_latency")}
        assert counts == {"time_to_first_token": 3, "inter_token_latency": 12}
        for name in ("e2e_request_latency", "request_time_per_output_token"):
            assert found[f"{name}_seconds_count"] == found[f"{name}_seconds_bucket:+Inf"] == 3
        first, whole = (found[f"{name}_seconds_sum"] for name in ("time_to_first_token", "e2e_request_latency"))
        assert 0 < first < whole < first + found["inter_token_latency_seconds_sum"] + 1
        mean = found["request_time_per_output_token_seconds_sum"] / 3
        assert abs(mean * 12 - found["inter_token_latency_seconds_sum"]) < 1e-6

    run(tiny, scenario)


def test_what_runs_and_what_waits_is_told_apart_and_whoever_leaves_is_neither(tiny: Tiny) -> None:
    async def scenario(client: httpx.AsyncClient, decoding: DecodingThread) -> None:
        ask = ASK | {"max_tokens": 900}
        running = [asyncio.create_task(client.post("/v1/chat/completions", json=ask)) for _ in range(5)]
        found: Figures = {}
        while found.get("num_requests_running") != 2 or found["num_requests_waiting"] != 3:
            found = await figures(client)
            assert found["num_requests_running"] <= 2
            await asyncio.sleep(0.01)
        for each in running:
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        while decoding.active:
            await asyncio.sleep(0.01)
        found = await figures(client)
        assert (found["num_requests_running"], found["num_requests_waiting"]) == (0, 0)
        assert found["request_success_total:abort"] == 5
        assert found["e2e_request_latency_seconds_count"] == 0

    run(tiny, scenario)


def test_a_stop_string_ends_an_answer_as_a_stop_does(tiny: Tiny) -> None:
    async def scenario(client: httpx.AsyncClient, _: DecodingThread) -> None:
        whole = (await client.post("/v1/chat/completions", json=ASK)).json()["choices"][0]["message"]["content"]
        response = await client.post(
            "/v1/chat/completions", json=ASK | {"stop": whole[1:3], "stream": True, "max_tokens": 900}
        )
        events = [data(each) for each in response.text.split("\n\n") if "data: {" in each]
        assert events[-1]["choices"][0]["finish_reason"] == "stop"
        found = await figures(client)
        assert (found["request_success_total:length"], found["request_success_total:stop"]) == (1, 1)

    run(tiny, scenario)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "an answer that has no token yet waits",
        "serving/metrics.py",
        "return self.made > 0",
        "return True",
        None,
    ),
    (
        "whoever leaves does not count among the times",
        "serving/metrics.py",
        'if reason != "abort":',
        "if reason:",
        None,
    ),
    (
        "the first token is not one between two",
        "serving/metrics.py",
        "        if clock.made:\n",
        "        if clock:\n",
        None,
    ),
]

"""The endpoint without Ray, for what must not be done to a shared server."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import httpx
import pytest

from conf.knobs.running import Serve
from moe.generation.engine import Engine, Sampling, Token, generate
from moe.text.chat import prompt_ids
from moe.text.tokenizer import Tokenizer
from serving.app import endpoint
from serving.decoding import DecodingThread
from serving.replica import decoding_threads
from serving.replies import Served
from tests.moe.text.parents import parent
from tests.serving.conftest import CONTEXT, Tiny, data

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "你好"}], "temperature": 0, "max_tokens": 900}


def with_dying_engine(
    tiny: Tiny, scenario: Callable[[httpx.AsyncClient, threading.Event, DecodingThread], Awaitable[None]]
) -> None:
    """Run `scenario` against an endpoint whose engine fails at the next step once the event is set."""
    armed = threading.Event()

    class Fragile(Engine):
        def step(self) -> list[Token]:
            if armed.is_set():
                raise ArithmeticError("the numbers are off")
            return super().step()

    async def run() -> None:
        decoding = DecodingThread(Fragile(tiny.model, 2, (tiny.tokenizer.im_end,)), waiting=2)
        app = endpoint(Served("tiny", tiny.tokenizer, decoding, CONTEXT, 16), Serve(max_body_bytes=10_000))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            await scenario(client, armed, decoding)
        decoding.close()

    asyncio.run(asyncio.wait_for(run(), 600))


async def kill_when_busy(armed: threading.Event, decoding: DecodingThread) -> None:
    while not decoding.active:
        await asyncio.sleep(0.01)
    armed.set()


def test_a_dead_engine_fails_requests_and_health_with_503(tiny: Tiny) -> None:
    async def scenario(client: httpx.AsyncClient, armed: threading.Event, decoding: DecodingThread) -> None:
        assert (await client.get("/healthz")).status_code == 200
        plain, _ = await asyncio.gather(client.post("/v1/chat/completions", json=ASK), kill_when_busy(armed, decoding))
        later = await client.post("/v1/chat/completions", json=ASK)
        for response in (plain, later, await client.get("/healthz")):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            error = response.json()["error"]
            assert (error["type"], error["code"]) == ("server_error", "decoding_stopped")
            assert "ArithmeticError: the numbers are off" in error["message"]

    with_dying_engine(tiny, scenario)


def test_a_stream_cut_by_a_dead_engine_ends_in_an_error_and_not_in_done(tiny: Tiny) -> None:
    async def scenario(client: httpx.AsyncClient, armed: threading.Event, decoding: DecodingThread) -> None:
        response, _ = await asyncio.gather(
            client.post("/v1/chat/completions", json=ASK | {"stream": True}), kill_when_busy(armed, decoding)
        )
        events = [event for event in response.text.split("\n\n") if event]
        assert data(events[-1])["error"]["code"] == "decoding_stopped"
        assert "data: [DONE]" not in events

    with_dying_engine(tiny, scenario)


def test_a_folders_own_template_writes_the_prompt_or_refuses_in_a_line(tiny: Tiny, tmp_path: Path) -> None:
    llama = Tokenizer.load(parent("llama2", tmp_path))

    async def run() -> None:
        decoding = DecodingThread(Engine(tiny.model, 2, llama.stop), waiting=2)
        app = endpoint(Served("tiny", llama, decoding, CONTEXT, 16), Serve(max_body_bytes=10_000))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            asked = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x</s><s>[INST]"}]
            made = await client.post("/v1/chat/completions", json=ASK | {"messages": asked, "max_tokens": 1})
            assert made.json()["usage"]["prompt_tokens"] == len(prompt_ids(llama, asked))
            text = {"model": "tiny", "prompt": "the cat", "max_tokens": 1}
            made = await client.post("/v1/completions", json=text)
            assert made.json()["usage"]["prompt_tokens"] == 1 + len(llama.encode(" the cat"))  # <s> before it
            refused = await client.post("/v1/chat/completions", json=ASK | {"messages": asked[1:] * 2})
            assert refused.status_code == 400
            assert refused.json()["error"]["message"] == (
                "the chat template refuses this conversation: "
                "Conversation roles must alternate user/assistant/user/assistant/..."
            )
        decoding.close()

    asyncio.run(asyncio.wait_for(run(), 600))


def drained(tiny: Tiny, seconds: float) -> tuple[httpx.Response, list[str], list[httpx.Response]]:
    """(a plain answer, the last event of each of two streams) that ran when the server was asked to end, and (health,
    a request) a moment later."""

    async def run() -> tuple[httpx.Response, list[str], list[httpx.Response]]:
        decoding = DecodingThread(Engine(tiny.model, 2, (tiny.tokenizer.im_end,)), waiting=2)
        app = endpoint(Served("tiny", tiny.tokenizer, decoding, CONTEXT, 16), Serve())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            ask = ASK | {"max_tokens": 200}
            asked = [client.post("/v1/chat/completions", json=ask | {"stream": each}) for each in (False, True, True)]
            running = [asyncio.create_task(each) for each in asked]
            while decoding.active < 3:
                await asyncio.sleep(0.01)
            draining = asyncio.create_task(decoding.drain(seconds))
            await asyncio.sleep(0)
            later = [await client.get("/healthz"), await client.post("/v1/chat/completions", json=ASK)]
            plain, *streams = await asyncio.gather(*running)
            await draining
            assert not decoding.active
            return plain, [stream.text.split("\n\n")[-2] for stream in streams], later

    return asyncio.run(asyncio.wait_for(run(), 600))


def test_who_runs_when_the_server_is_asked_to_end_may_end_and_nobody_begins(tiny: Tiny) -> None:
    plain, lasts, later = drained(tiny, 600.0)
    assert plain.json()["usage"]["completion_tokens"] == 200
    assert lasts == ["data: [DONE]"] * 2
    for response in later:
        assert (response.status_code, response.json()["error"]["code"]) == (503, "shutting_down")
        assert response.headers["retry-after"] == "1"


def test_who_runs_beyond_the_deadline_hears_of_it(tiny: Tiny) -> None:
    plain, lasts, _ = drained(tiny, 0.0)
    assert plain.status_code == 503
    errors = [plain.json()["error"], *(data(last)["error"] for last in lasts)]
    assert {error["message"] for error in errors} == {"the server is shutting down"}


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 1), (8, 7)])
def test_a_core_stays_free_beside_the_decoding_thread(
    monkeypatch: pytest.MonkeyPatch, cores: int, threads: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    assert (decoding_threads(0), decoding_threads(3)) == (threads, 3)


def answered(tiny: Tiny, **fields: object) -> httpx.Response:
    async def run() -> httpx.Response:
        decoding = DecodingThread(Engine(tiny.model, 2, tiny.tokenizer.stop), waiting=6)
        app = endpoint(Served("tiny", tiny.tokenizer, decoding, CONTEXT, 16), Serve())
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            made = await client.post("/v1/chat/completions", json=ASK | {"max_tokens": 12} | fields)
        decoding.close()
        return made

    return asyncio.run(asyncio.wait_for(run(), 600))


def test_requests_with_neighbouring_seeds_share_no_answer(tiny: Tiny) -> None:
    texts = [
        [choice["message"]["content"] for choice in answered(tiny, n=n, seed=seed, temperature=1).json()["choices"]]
        for n, seed in ((3, 5), (3, 6), (1, 5))
    ]
    assert len({*texts[0], *texts[1]}) == 6
    assert texts[2] == texts[0][:1]


def test_a_begun_answer_goes_on(tiny: Tiny) -> None:
    whole = answered(tiny).json()
    text = whole["choices"][0]["message"]["content"]
    ids = prompt_ids(tiny.tokenizer, [{"role": "user", "content": "你好"}])
    begun = {"role": "assistant", "content": text[:5]}
    asked = {"messages": [{"role": "user", "content": "你好"}, begun], "continue_final_message": True}
    made = answered(tiny, **asked, max_tokens=4).json()
    ids += tiny.tokenizer.encode(text[:5])
    expected = generate(tiny.model, [ids], [Sampling(4, temperature=0)], stop=tiny.tokenizer.stop)[0]
    assert made["choices"][0]["message"]["content"] == tiny.tokenizer.decode(expected.tokens)
    assert made["usage"]["prompt_tokens"] == len(ids)


def test_a_label_is_named_with_the_answer_that_it_does_not_change(tiny: Tiny) -> None:
    plain = answered(tiny)
    labelled = answered(tiny, metadata={"trace": "7"}, prompt_cache_key="k")
    assert labelled.json()["choices"] == plain.json()["choices"]
    assert labelled.headers["warning"] == '299 conclave "no answer hangs on: metadata, prompt_cache_key"'
    assert "warning" not in plain.headers
    assert answered(tiny, metadata={}, stream=True).headers["warning"] == '299 conclave "no answer hangs on: metadata"'


def test_prompts_become_tokens_beside_the_event_loop(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = Tokenizer.encode_batch

    def watched(self: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        seen.append(threading.current_thread() is threading.main_thread())
        return original(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", watched)
    assert answered(tiny).status_code == 200
    assert seen
    assert not any(seen)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "nothing begins once the server was asked to end",
        "serving/decoding.py",
        "if self.closing is not None:",
        "if self.error is not None:",
        None,
    ),
    (
        "answers that run may end before the server does",
        "serving/decoding.py",
        "ends = time.monotonic() + seconds",
        "ends = time.monotonic()",
        None,
    ),
    (
        "the decoding thread leaves a core to the others",
        "serving/replica.py",
        "len(os.sched_getaffinity(0)) - 1",
        "len(os.sched_getaffinity(0))",
        None,
    ),
    (
        "requests with neighbouring seeds share no answer",
        "serving/asking.py",
        'int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:8])',
        "(seed + index) % 2**64",
        None,
    ),
    (
        "a begun answer has no end before it goes on",
        "serving/asking.py",
        "while ids[-1] in tokenizer.stop:",
        "while not ids:",
        None,
    ),
    (
        "a long prompt does not hold up other streams",
        "serving/asking.py",
        "await asyncio.to_thread(_prompt, served.tokenizer, request, names)",
        "_prompt(served.tokenizer, request, names)",
        None,
    ),
]

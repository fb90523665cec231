import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from moe.generation.engine import Engine, Sampling, Token, generate
from moe.text.chat import prompt_ids
from serving.decoding import Busy, DecodingThread, Died
from tests.serving.conftest import Tiny


@contextmanager
def decoding(tiny: Tiny, *, slots: int = 2, waiting: int = 2) -> Iterator[DecodingThread]:
    stop = (tiny.tokenizer.im_end, tiny.tokenizer.eos)
    thread = DecodingThread(Engine(tiny.model, slots, stop), waiting=waiting)
    yield thread
    thread.close()


def prompt(tiny: Tiny, text: str = "你是谁") -> list[int]:
    return prompt_ids(tiny.tokenizer, [{"role": "user", "content": text}])


async def ids(thread: DecodingThread, prompt: list[int], *samplings: Sampling) -> list[list[int]]:
    out: list[list[int]] = [[] for _ in samplings]
    async for index, token in thread.submit([(prompt, sampling) for sampling in samplings]):
        out[index].append(token.id)
    return out


def test_answers_are_those_of_generate(tiny: Tiny) -> None:
    samplings = [Sampling(20, temperature=0), Sampling(9, seed=1), Sampling(15, seed=2, top_p=0.5)]
    expected = generate(tiny.model, [prompt(tiny)] * 3, samplings, stop=(tiny.tokenizer.im_end, tiny.tokenizer.eos))
    with decoding(tiny) as thread:
        assert asyncio.run(ids(thread, prompt(tiny), *samplings)) == [answer.tokens for answer in expected]
        assert thread.active == 0


def test_more_than_slots_and_queue_is_refused_whole(tiny: Tiny) -> None:
    async def scenario(thread: DecodingThread) -> None:
        held = thread.submit([(prompt(tiny), Sampling(60, temperature=0))] * 3)
        with pytest.raises(Busy, match="3 answers are under way and at most 4"):
            thread.submit([(prompt(tiny), Sampling(5))] * 2)
        assert thread.active == 3
        held.close()
        assert len((await ids(thread, prompt(tiny), *[Sampling(5, temperature=0)] * 4))[3]) == 5

    with decoding(tiny) as thread:
        asyncio.run(scenario(thread))


def test_a_closed_request_frees_its_slots(tiny: Tiny) -> None:
    async def scenario(thread: DecodingThread) -> None:
        for _ in range(50):
            answers = thread.submit([(prompt(tiny), Sampling(90, temperature=0))] * 4)
            async for _ in answers:
                break
            answers.close()
        assert thread.active == 0
        assert len((await ids(thread, prompt(tiny), Sampling(7, temperature=0)))[0]) == 7

    with decoding(tiny) as thread:
        asyncio.run(scenario(thread))
        assert thread._engine.idle


def test_one_answer_stopped_and_the_other_goes_on(tiny: Tiny) -> None:
    async def scenario(thread: DecodingThread) -> list[int]:
        counts = [0, 0]
        answers = thread.submit([(prompt(tiny), Sampling(30, temperature=0))] * 2)
        async for index, _ in answers:
            counts[index] += 1
            if counts[0] == 3:
                answers.stop(0)
        return counts

    with decoding(tiny) as thread:
        assert asyncio.run(scenario(thread)) == [3, 30]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_death_fails_everybody_at_once(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    armed = threading.Event()

    class Fragile(Engine):
        def step(self) -> list[Token]:
            if armed.is_set():
                raise ArithmeticError("the numbers are off")
            return super().step()

    async def scenario(thread: DecodingThread) -> None:
        answers = [thread.submit([(prompt(tiny), Sampling(90, temperature=0))]) for _ in range(3)]
        first = aiter(answers[0])
        assert (await anext(first))[0] == 0
        armed.set()
        for waiting in (first, answers[1], answers[2]):
            with pytest.raises(Died, match="ArithmeticError: the numbers are off"):
                async for _ in waiting:
                    pass
        with pytest.raises(Died):
            thread.submit([(prompt(tiny), Sampling(1))])

    thread = DecodingThread(Fragile(tiny.model, 2, (tiny.tokenizer.im_end,)), waiting=2)
    asyncio.run(asyncio.wait_for(scenario(thread), 30))
    assert "the numbers are off" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_death_fails_those_who_wait_for_scores(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go = threading.Event(), threading.Event()

    def broken(*_: object, **__: object) -> None:
        entered.set()
        go.wait(20)
        raise ArithmeticError("the numbers are off")

    async def scenario() -> None:
        with decoding(tiny) as thread:
            waiting = [asyncio.ensure_future(thread.score(prompt(tiny), top=1)) for _ in range(3)]
            await asyncio.to_thread(entered.wait, 20)  # one is under way, the others wait
            waiting[2].cancel()
            go.set()
            for one in waiting[:2]:
                with pytest.raises(Died, match="ArithmeticError: the numbers are off"):
                    await one
            with pytest.raises(Died):
                await thread.score(prompt(tiny), top=1)

    monkeypatch.setattr("serving.decoding.score", broken)
    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_answers_go_on_while_much_is_scored(tiny: Tiny) -> None:
    async def scenario(thread: DecodingThread) -> None:
        answers = asyncio.ensure_future(ids(thread, prompt(tiny), Sampling(20, temperature=0)))
        scores = [asyncio.ensure_future(thread.score(prompt(tiny), top=0)) for _ in range(200)]
        await answers
        assert sum(one.done() for one in scores) < 60  # about one between two tokens
        first, *rest = [scored.logprobs for scored in await asyncio.gather(*scores)]
        assert len(first) == len(prompt(tiny)) - 1 and rest == [first] * 199

    with decoding(tiny) as thread:
        asyncio.run(scenario(thread))


def test_the_end_of_the_thread_is_told(tiny: Tiny) -> None:
    async def scenario() -> None:
        with decoding(tiny) as thread:
            answers = thread.submit([(prompt(tiny), Sampling(90, temperature=0))] * 3)
            thread.close()
            with pytest.raises(Died, match="shutting down"):
                async for _ in answers:
                    pass

    asyncio.run(asyncio.wait_for(scenario(), 30))

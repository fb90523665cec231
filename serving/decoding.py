"""One thread that decodes for everybody: requests come in from event loops, tokens go back to them.

The engine belongs to the thread alone, so nothing in it needs a lock; the two sides share the inbox and the table of
answers under way.
"""

import asyncio
import itertools
import queue
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from moe.generation.engine import Engine, Sampling, Token
from moe.generation.scoring import Scores, score
from serving.metrics import Clock, Meter

_LOOK, _FAREWELL = 0.05, 2.0  # seconds: between two looks at what runs, and for the last words to be sent


class Busy(RuntimeError):
    """As many answers are under way as may wait; try again later."""


class TooMany(ValueError):
    """More answers at once than there can ever be room for."""


class Closing(Busy):
    """The server is about to end: what runs may end, and nothing begins."""


class Died(RuntimeError):
    """The decoding thread ended; the message says of what. Nothing more will be decoded."""


class Answers:
    """The answers to one request while they are decoded: iterate for (index of the answer, token), in any mixture.

    Used on the event loop it was made on; only `put` may be called from elsewhere.
    """

    def __init__(self, thread: "DecodingThread", names: list[str]) -> None:
        self._thread = thread
        self._names = names
        self._loop = asyncio.get_running_loop()
        self._tokens: asyncio.Queue[tuple[int, Token] | Died] = asyncio.Queue()
        self._going = set(range(len(names)))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Token]]:
        """Ends when every answer has ended or was stopped. Raises `Died`."""
        while self._going:
            item = await self._tokens.get()
            if isinstance(item, Died):
                raise item
            index, token = item
            if index not in self._going:  # decoded before the thread heard of `stop`
                continue
            if token.finish is not None:
                self._going.discard(index)
            yield index, token

    def put(self, item: tuple[int, Token] | Died) -> None:
        self._loop.call_soon_threadsafe(self._tokens.put_nowait, item)

    def stop(self, index: int, why: str = "stop") -> None:
        """This answer needs no more tokens; free what it holds. Harmless when it has ended."""
        self._going.discard(index)
        self._thread.cancel(self._names[index], why)

    def close(self) -> None:
        """No answer needs more tokens."""
        for index in range(len(self._names)):
            self.stop(index, "abort")
        self._thread.forget(self)


@dataclass(frozen=True)
class _Question:
    """What does the model say of these tokens?"""

    ids: list[int]
    top: int
    scores: Future[Scores] = field(default_factory=Future)

    def wanted(self) -> bool:
        """False once whoever asked has gone; from here on it is answered."""
        return self.scores.running() or self.scores.set_running_or_notify_cancel()


class DecodingThread:
    """Drives an engine. At most `slots` answers of the engine are decoded together and at most `waiting` wait."""

    def __init__(self, engine: Engine, *, waiting: int, threads: int = 1, name: str = "") -> None:
        self._engine = engine
        self._waiting = waiting
        self._limit = engine.slots + waiting
        self._threads = threads  # of torch
        # (name, prompt, sampling) adds, a name cancels, a question is answered, None ends the thread
        self._inbox: queue.SimpleQueue[tuple[str, list[int], Sampling] | str | _Question | None] = queue.SimpleQueue()
        self._questions: deque[_Question] = deque()
        self._answers: dict[str, tuple[Answers, int, Clock]] = {}
        self._open: set[Answers] = set()  # requests that are not closed
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self.error: Died | None = None
        self.closing: Closing | None = None
        self.meter = Meter(name)
        self.meter.watch(lambda: self._count(runs=True), lambda: self._count(runs=False))
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """Answers under way, the waiting ones included."""
        return len(self._answers)

    def _count(self, *, runs: bool) -> int:
        with self._lock:
            return sum(clock.runs == runs for _, _, clock in self._answers.values())

    def submit(self, asked: Sequence[tuple[list[int], Sampling]]) -> Answers:
        """Queue an answer for each (prompt, sampling), all or none. Called from a running event loop, which gets the
        tokens.

        Raises `Busy`, `TooMany` or `Died`.
        """
        if len(asked) > self._limit:
            raise TooMany(
                f"{len(asked)} answers at once are more than serve.slots={self._engine.slots} and "
                f"serve.queue={self._waiting} hold; ask for {self._limit} at most"
            )
        names = [str(next(self._numbers)) for _ in asked]
        answers = Answers(self, names)
        with self._lock:
            if self.error is not None:
                raise self.error
            if self.closing is not None:
                raise self.closing
            if len(self._answers) + len(names) > self._limit:
                raise Busy(f"{len(self._answers)} answers are under way and at most {self._limit} may be")
            clocks = [Clock(len(prompt)) for prompt, _ in asked]
            self._answers |= {name: (answers, place, clocks[place]) for place, name in enumerate(names)}
            self._open.add(answers)
        for name, (prompt, sampling) in zip(names, asked, strict=True):
            self._inbox.put((name, prompt, sampling))
        return answers

    async def score(self, ids: list[int], *, top: int) -> Scores:
        """What the model says of all but the first of `ids`, with the `top` likeliest at each place; between two steps
        of decoding one such question is answered. Raises `Died`."""
        question = _Question(ids, top)
        with self._lock:
            if self.error is not None:
                raise self.error
            self._inbox.put(question)
        return await asyncio.wrap_future(question.scores)

    def cancel(self, name: str, why: str = "abort") -> None:
        with self._lock:
            known = self._answers.pop(name, None)
        if known is not None:
            self.meter.ended(known[2], why)
            self._inbox.put(name)

    def forget(self, answers: Answers) -> None:
        with self._lock:
            self._open.discard(answers)

    async def drain(self, seconds: float) -> None:
        """From now on nothing begins; returns when all that runs is closed, after `seconds` by an error."""
        self.closing = Closing("the server is shutting down")
        ends = time.monotonic() + seconds
        while self._open and time.monotonic() < ends:
            await asyncio.sleep(_LOOK)
        await asyncio.to_thread(self.close)  # those who still wait hear of it
        ends = time.monotonic() + _FAREWELL
        while self._open and time.monotonic() < ends:
            await asyncio.sleep(_LOOK)

    def close(self) -> None:
        """End the thread; answers under way fail with `Died`."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # OpenMP counts threads per calling thread
        try:
            while self._take():
                for token in self._engine.step():
                    self._deliver(token)
                self._answer_one()
            self._end(Died("the server is shutting down"))
        except Exception as error:  # whatever it was, those who wait must hear of it
            traceback.print_exc()
            self._end(Died(f"decoding stopped: {type(error).__name__}: {error}"))

    def _take(self) -> bool:
        """Move the inbox into the engine, waiting for mail while the engine has nothing to do. False: the end."""
        while True:
            try:
                mail = self._inbox.get(block=self._engine.idle and not self._questions)
            except queue.Empty:
                return True
            if mail is None:
                return False
            if isinstance(mail, str):
                self._engine.cancel(mail)
            elif isinstance(mail, _Question):
                self._questions.append(mail)
            else:
                self._engine.add(*mail)

    def _answer_one(self) -> None:
        if self._questions:
            question = self._questions[0]  # if this fails it is still there, to be told so
            if question.wanted():
                question.scores.set_result(score(self._engine.model, [question.ids], top=question.top)[0])
            self._questions.popleft()

    def _deliver(self, token: Token) -> None:
        with self._lock:
            known = self._answers.get(token.request)
            if token.finish is not None:
                self._answers.pop(token.request, None)
        if known is not None:  # else cancelled while this step was decoded
            answers, index, clock = known
            self.meter.token(clock)
            if token.finish is not None:
                self.meter.ended(clock, token.finish)
            answers.put((index, token))

    def _end(self, error: Died) -> None:
        with self._lock:
            self.error = error
            left = {id(answers): answers for answers, _, _ in self._answers.values()}
            self._answers.clear()
        for answers in left.values():
            answers.put(error)
        while not self._inbox.empty():  # nothing more comes in once the error is set
            if isinstance(mail := self._inbox.get(), _Question):
                self._questions.append(mail)
        for question in self._questions:
            if question.wanted():
                question.scores.set_exception(error)

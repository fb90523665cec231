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
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch

from moe.decoder import Decoder
from moe.generation.engine import Engine, Sampling, Token
from moe.generation.guides import Grammar, GrammarGuide
from moe.generation.scoring import Scores, score
from serving.metrics import Clock, Meter

T = TypeVar("T")
_LOOK, _FAREWELL = 0.05, 2.0  # seconds: between two looks at what runs, and for the last words to be sent


class Busy(RuntimeError):
    """As many answers are under way as may wait; try again later."""


class TooMany(ValueError):
    """More answers at once than there can ever be room for."""


class Closing(Busy):
    """The server is about to end: what runs may end, and nothing begins."""


class Died(RuntimeError):
    """The decoding thread ended; the message says of what. Nothing more will be decoded."""


class Spoilt(Died):
    """This answer is not what it had to be; others are decoded as before."""


class Answers:
    """The answers to one request while they are decoded: iterate for (index of the answer, token), in any mixture.

    They may be paused, which frees what they hold, and go on as if nothing had been. Used on the event loop it was made
    on; only `put` may be called from elsewhere.
    """

    def __init__(
        self, thread: "DecodingThread", asked: Sequence[tuple[list[int], Sampling]], grammar: Grammar | None
    ) -> None:
        self.asked = asked
        self.made: list[list[int]] = [[] for _ in asked]  # tokens of each answer
        self.cached = [0] * len(asked)  # tokens of each prompt that were not computed for it, once its first token came
        self._grammar = grammar
        self._guides: list[GrammarGuide | None] = [None] * len(asked)
        self._thread = thread
        self._names: list[str] = []  # by index, in the thread
        self._places: dict[str, int] = {}
        self._loop = asyncio.get_running_loop()
        self._tokens: asyncio.Queue[Token | Died] = asyncio.Queue()
        self._going = set(range(len(asked)))
        self.paused = False

    async def __aiter__(self) -> AsyncIterator[tuple[int, Token]]:
        """Ends when every answer has ended or was stopped. Raises `Died`, and `Spoilt` of one that lost its form."""
        while self._going:
            token = await self._tokens.get()
            if isinstance(token, Died):
                raise token
            index = self._places.get(token.request, -1)
            if index not in self._going:  # decoded before the thread heard of `stop` or `pause`
                continue
            if not self.made[index]:
                self.cached[index] = token.cached
            self.made[index].append(token.id)
            if token.finish is not None:
                self._going.discard(index)
                if (guide := self._guides[index]) is not None and guide.error:
                    raise Spoilt(f"this answer could not keep its form: {guide.error}")
            yield index, token

    def put(self, item: Token | Died) -> None:
        self._loop.call_soon_threadsafe(self._tokens.put_nowait, item)

    def left(self, names: Iterator[str]) -> list["_Asked"]:
        """What the thread has to do, under new names: tokens of earlier ones, which are not made, count no more."""
        out = []
        self._names = [next(names) for _ in self.asked]
        self._places = {self._names[index]: index for index in self._going}
        for index in sorted(self._going):
            (prompt, sampling), made = self.asked[index], self.made[index]
            guide = self._guides[index] = self._grammar.guide(made) if self._grammar else None
            rest = replace(sampling, max_new_tokens=sampling.max_new_tokens - len(made), begun=len(made))
            out.append((self._names[index], prompt + made, rest, guide))
        return out

    def pause(self) -> None:
        """Free what they hold, until `resume`."""
        self.paused = True
        for index in self._going:
            self._thread.cancel(self._names[index], "abort")
        self._thread.forget(self)

    def resume(self) -> None:
        """Go on after the tokens that were made. Raises `Busy` or `Died`."""
        self._thread.enter(self)
        self.paused = False

    def stop(self, index: int, why: str = "stop") -> None:
        """This answer needs no more tokens; free what it holds. Harmless when it has ended."""
        self._going.discard(index)
        self._thread.cancel(self._names[index], why)

    def close(self) -> None:
        """No answer needs more tokens."""
        for index in range(len(self._names)):
            self.stop(index, "abort")
        self._thread.forget(self)


_Asked = tuple[str, list[int], Sampling, GrammarGuide | None]  # as the engine is told of it


@dataclass(frozen=True)
class _Question(Generic[T]):
    """What does the model say of something, beside what it decodes?"""

    ask: Callable[[Decoder], T]
    answer: Future[T] = field(default_factory=Future)

    def wanted(self) -> bool:
        """False once whoever asked has gone; from here on it is answered."""
        return self.answer.running() or self.answer.set_running_or_notify_cancel()


class DecodingThread:
    """Drives an engine. At most `slots` answers of the engine are decoded together and at most `waiting` wait."""

    def __init__(self, engine: Engine, *, waiting: int, threads: int = 1, name: str = "") -> None:
        self._engine = engine
        self._waiting = waiting
        self._limit = engine.slots + waiting
        self._threads = threads  # of torch
        # (name, prompt, sampling, guide) adds, a name cancels, a question is answered, None ends the thread
        self._inbox: queue.SimpleQueue[
            tuple[str, list[int], Sampling, GrammarGuide | None] | str | _Question | None
        ] = queue.SimpleQueue()
        self._questions: deque[_Question[Any]] = deque()
        self._answers: dict[str, tuple[Answers, Clock]] = {}
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
    def hidden_size(self) -> int:
        return self._engine.model.cfg.hidden_size

    @property
    def active(self) -> int:
        """Answers under way, the waiting ones included."""
        return len(self._answers)

    def _count(self, *, runs: bool) -> int:
        with self._lock:
            return sum(clock.runs == runs for _, clock in self._answers.values())

    def submit(self, asked: Sequence[tuple[list[int], Sampling]], grammar: Grammar | None = None) -> Answers:
        """Queue an answer for each (prompt, sampling), all or none, each of the grammar where there is one. Called from
        a running event loop, which gets the tokens.

        Raises `Busy`, `TooMany` or `Died`.
        """
        if len(asked) > self._limit:
            raise TooMany(
                f"{len(asked)} answers at once are more than serve.slots={self._engine.slots} and "
                f"serve.queue={self._waiting} hold; ask for {self._limit} at most"
            )
        answers = Answers(self, asked, grammar)
        self.enter(answers)
        return answers

    def enter(self, answers: Answers) -> None:
        """Queue what is left of them, all or none. Raises `Busy` or `Died`."""
        left = answers.left(map(str, self._numbers))
        with self._lock:
            if self.error is not None:
                raise self.error
            if self.closing is not None:
                raise self.closing
            if len(self._answers) + len(left) > self._limit:
                raise Busy(f"{len(self._answers)} answers are under way and at most {self._limit} may be")
            self._answers |= {name: (answers, Clock(len(prompt))) for name, prompt, *_ in left}
            self._open.add(answers)
        for each in left:
            self._inbox.put(each)

    async def score(self, ids: list[int], *, top: int) -> Scores:
        """What the model says of all but the first of `ids`, with the `top` likeliest at each place. Raises `Died`."""
        return await self.ask(lambda model: score(model, [ids], top=top)[0])

    async def ask(self, question: Callable[[Decoder], T]) -> T:
        """What the model says; between two steps of decoding one such question is answered. Raises `Died`."""
        asked = _Question(question)
        with self._lock:
            if self.error is not None:
                raise self.error
            self._inbox.put(asked)
        return await asyncio.wrap_future(asked.answer)

    def cancel(self, name: str, why: str = "abort") -> None:
        with self._lock:
            known = self._answers.pop(name, None)
        if known is not None:
            self.meter.ended(known[1], why)
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
                question.answer.set_result(question.ask(self._engine.model))
            self._questions.popleft()

    def _deliver(self, token: Token) -> None:
        with self._lock:
            known = self._answers.get(token.request)
            if token.finish is not None:
                self._answers.pop(token.request, None)
        if known is not None:  # else cancelled while this step was decoded
            answers, clock = known
            self.meter.token(clock, token.cached)
            if token.finish is not None:
                self.meter.ended(clock, token.finish)
            answers.put(token)

    def _end(self, error: Died) -> None:
        with self._lock:
            self.error = error
            left = {id(answers): answers for answers, _ in self._answers.values()}
            self._answers.clear()
        for answers in left.values():
            answers.put(error)
        while not self._inbox.empty():  # nothing more comes in once the error is set
            if isinstance(mail := self._inbox.get(), _Question):
                self._questions.append(mail)
        for question in self._questions:
            if question.wanted():
                question.answer.set_exception(error)

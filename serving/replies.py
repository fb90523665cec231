"""What comes back: the answers to a request, as a whole or as chunks; both come from the same text, piece by piece."""

import itertools
import json
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from cluster.feedback import Store
from cluster.people.labels import Labels
from moe.tasks.task import PRINCIPLES
from moe.text.tokenizer import Tokenizer
from serving.decoding import Answers, Busy, Closing, DecodingThread, Died, Spoilt
from serving.dialects.strict import RETRY_AFTER, ApiError
from serving.dialects.tools import Call, CallStream
from serving.failover.origin import Origin
from serving.schema import (
    ChatRequest,
    CompletionRequest,
    Request,
    chat_choice,
    delta,
    text_choice,
    usage,
)
from serving.text import TextStream, token_name


@dataclass(frozen=True)
class Served:
    """What the endpoint answers with."""

    name: str  # the model's name in requests
    tokenizer: Tokenizer
    decoding: DecodingThread
    context: int  # positions of the model
    max_new_tokens: int  # the bound of an answer in a chat where the client names none
    created: int = field(default_factory=lambda: int(time.time()))  # unix seconds
    version: str | None = None  # of its weights, which `system_fingerprint` names
    principles: tuple[str, ...] = PRINCIPLES  # under which an answer can be better
    feedback: Store | None = None  # what people say of its answers
    labels: Labels | None = None  # answers that await their ranks

    @property
    def hidden_size(self) -> int:
        return self.decoding.hidden_size


def unavailable(error: Busy | Died) -> ApiError:
    if isinstance(error, Spoilt):
        return ApiError(500, str(error), code="response_format_failed")
    code = "decoding_stopped" if isinstance(error, Died) else "overloaded"
    code = "shutting_down" if isinstance(error, Closing) else code
    return ApiError(503, str(error), code=code, retry=RETRY_AFTER)


@dataclass
class Ended:
    """An answer that is over."""

    text: str = ""
    calls: list[Call] = field(default_factory=list)
    finish: str = "length"  # stop, length or tool_calls


class Reply(ABC):
    """Answers while they are made, in any mixture; `request.n` of them, one after the other, for each prompt."""

    prefix: ClassVar[str]  # of the id

    def __init__(
        self, served: Served, request: Request, origin: Origin, prompts: Sequence[list[int]], answers: Answers
    ) -> None:
        self.answers = answers
        self._origin = origin
        self._request = request
        self._served = served
        self._prompts = prompts
        self._each = request.n or 1
        count = len(prompts) * self._each
        self._texts = [TextStream(served.tokenizer, request.stops) for _ in range(count)]
        names = [tool.function.name for tool in request.offered]
        self._calls = [CallStream(names) if names else None for _ in range(count)]
        self.id = f"{self.prefix}{origin.token}"
        self.headers = request.headers

    @property
    def streams(self) -> bool:
        return bool(self._request.stream)

    @abstractmethod
    async def whole(self) -> dict[str, Any]:
        """All answers, when they have ended. Raises `Died`."""

    @abstractmethod
    def events(self) -> AsyncIterator[str]:
        """The lines of a server-sent event stream. A failure becomes an event too: the status is long sent."""

    async def _pieces(self) -> AsyncIterator[tuple[int, str | Call, str | None]]:
        """(index, new text or a call, finish reason), the reason with the last piece of an answer. Raises `Died`."""
        async for index, token in self.answers:
            stream, calls = self._texts[index], self._calls[index]
            finish = token.finish
            text = "" if finish == "stop" else stream.push(token.id)  # a mark, whatever it would be as text
            if finish is not None:
                text += stream.finish()
            if stream.stopped:
                finish = "stop"
                self.answers.stop(index)
            pieces: list[str | Call] = [text] if text else []
            ends: str | None = finish
            if calls is not None:
                before = calls.calls
                pieces = [*calls.push(text), *(calls.finish() if finish else ())]
                names = (self._origin.name(index, number) for number in itertools.count(before))
                pieces = [replace(p, id=f"call_{next(names)}") if isinstance(p, Call) else p for p in pieces]
                if calls.calls and self._request.single_call:
                    pieces = pieces[: 1 + next(at for at, piece in enumerate(pieces) if isinstance(piece, Call))]
                    finish = "stop"
                    self.answers.stop(index)
                ends = "tool_calls" if calls.calls and finish == "stop" else finish
            if ends and not pieces:
                pieces = [""]
            for left, piece in zip(range(len(pieces) - 1, -1, -1), pieces, strict=True):
                yield index, piece, None if left else ends

    async def _ends(self) -> list["Ended"]:
        """Each answer, when all have ended. Raises `Died`."""
        ended = [Ended() for _ in self._texts]
        async for index, piece, finish in self._pieces():
            if isinstance(piece, Call):
                ended[index].calls.append(piece)
            else:
                ended[index].text += piece
            ended[index].finish = finish or ended[index].finish
        return ended

    def _tokens(self) -> tuple[int, int]:
        """(of all prompts, of all answers so far)"""
        return sum(map(len, self._prompts)), sum(map(len, self.answers.made))

    @property
    def _cached(self) -> int:
        """Tokens of the prompts that were not computed for this request; several answers to one prompt share it."""
        cached = self.answers.cached
        return sum(min(cached[at : at + self._each]) for at in range(0, len(cached), self._each))


class Choices(Reply):
    """What OpenAI's two older APIs share: a list of choices, each an answer."""

    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(
        self, served: Served, request: Request, origin: Origin, prompts: Sequence[list[int]], answers: Answers
    ) -> None:
        super().__init__(served, request, origin, prompts, answers)
        self._head = {
            "id": self.id,
            "created": origin.created,
            "model": served.name,
            "system_fingerprint": served.version,
        }

    @abstractmethod
    async def choice(self, index: int, ended: Ended) -> dict[str, Any]:
        """One answer of a whole reply. Raises `Died`."""

    @abstractmethod
    def opening(self, index: int) -> list[dict[str, Any]]:
        """The choices that begin an answer's stream."""

    @abstractmethod
    def change(self, index: int, piece: str | Call, finish: str | None) -> Iterator[dict[str, Any]]:
        """The choices that carry on an answer's stream."""

    def _usage(self) -> dict[str, Any]:
        return usage(*self._tokens(), self._cached)

    async def whole(self) -> dict[str, Any]:
        ends = await self._ends()
        choices = [await self.choice(index, ended) for index, ended in enumerate(ends)]
        return self._head | {"object": self.whole_object, "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncIterator[str]:
        wants_usage = bool(self._request.stream_options and self._request.stream_options.include_usage)
        head: dict[str, Any] = self._head | {"object": self.chunk_object}
        if wants_usage:
            head["usage"] = None
        for index in range(len(self._texts)):
            for choice in self.opening(index):
                yield event(head | {"choices": [choice]})
        try:
            async for index, piece, finish in self._pieces():
                for choice in self.change(index, piece, finish):
                    yield event(head | {"choices": [choice]})
        except Died as error:
            yield event(unavailable(error).body)
            return
        if wants_usage:
            yield event(head | {"choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"


class ChatReply(Choices):
    prefix, whole_object, chunk_object = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(
        self, served: Served, request: ChatRequest, origin: Origin, prompt: list[int], answers: Answers
    ) -> None:
        super().__init__(served, request, origin, [prompt], answers)
        self._called = Counter[int]()  # how many calls of each answer were sent

    async def choice(self, index: int, ended: Ended) -> dict[str, Any]:
        return chat_choice(index, ended.text, ended.finish, [call.shown() for call in ended.calls])

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [delta(index, {"role": "assistant", "content": ""})]

    def change(self, index: int, piece: str | Call, finish: str | None) -> Iterator[dict[str, Any]]:
        if isinstance(piece, Call):
            yield delta(index, {"tool_calls": [{"index": self._called[index], **piece.shown()}]})
            self._called[index] += 1
        elif piece:
            yield delta(index, {"content": piece})
        if finish:
            yield delta(index, {}, finish)


class TextReply(Choices):
    prefix, whole_object, chunk_object = "cmpl-", "text_completion", "text_completion"

    def __init__(
        self, served: Served, request: CompletionRequest, origin: Origin, prompts: Sequence[list[int]], answers: Answers
    ) -> None:
        super().__init__(served, request, origin, prompts, answers)
        self._echoes, self._top, self._bound = bool(request.echo), request.logprobs, request.bound

    def _echo(self, index: int) -> str:
        return self._served.tokenizer.decode(self._prompts[index // self._each]) if self._echoes else ""

    async def choice(self, index: int, ended: Ended) -> dict[str, Any]:
        logprobs = None if self._top is None else await self._logprobs(index, self._top)
        return text_choice(index, self._echo(index) + ended.text, ended.finish, logprobs)

    async def _logprobs(self, index: int, top: int) -> dict[str, Any]:
        """Of the whole softmax at temperature 1, whatever the answer was drawn at; the first token has none."""
        prompt, tokenizer = self._prompts[index // self._each], self._served.tokenizer
        made = self.answers.made[index] if self._bound else []
        ids = prompt + made
        scores = await self._served.decoding.score(ids, top=top)
        shown = ids if self._echoes else made
        hidden = len(ids) - len(shown)
        likely = [
            {token_name(tokenizer, token): logprob for token, logprob in [*best, (drawn, itself)]}
            for drawn, itself, best in zip(ids[1:], scores.logprobs, scores.top, strict=True)
        ]
        return {
            "tokens": [token_name(tokenizer, token) for token in shown],
            "token_logprobs": [None, *scores.logprobs][hidden:],
            "top_logprobs": [None, *likely][hidden:],
            "text_offset": [0, *tokenizer.written(shown)][: len(shown)],
        }

    def opening(self, index: int) -> list[dict[str, Any]]:
        finish = None if self._bound else "length"  # no token will come to say so
        return [text_choice(index, self._echo(index), finish)] if self._echoes or finish else []

    def change(self, index: int, piece: str | Call, finish: str | None) -> Iterator[dict[str, Any]]:
        assert isinstance(piece, str), "a text completion offers no tools"
        yield text_choice(index, piece, finish)


def event(value: dict[str, Any], name: str = "") -> str:
    """A server-sent event, which some APIs give a name."""
    begun = f"event: {name}\n" if name else ""
    return f"{begun}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"

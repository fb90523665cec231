"""What comes back: the answers to a request, as a whole or as chunks; both come from the same text, piece by piece."""

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from cluster.feedback import Store
from moe.tasks.task import PRINCIPLES
from moe.text.tokenizer import Tokenizer
from serving.decoding import Answers, Busy, Closing, DecodingThread, Died
from serving.schema import (
    RETRY_AFTER,
    ApiError,
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


def unavailable(error: Busy | Died) -> ApiError:
    code = "decoding_stopped" if isinstance(error, Died) else "overloaded"
    code = "shutting_down" if isinstance(error, Closing) else code
    return ApiError(503, str(error), code=code, retry=RETRY_AFTER)


class Reply(ABC):
    """Answers while they are made, in any mixture; `request.n` of them, one after the other, for each prompt."""

    prefix: ClassVar[str]  # of the id
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]

    def __init__(self, served: Served, request: Request, prompts: Sequence[list[int]], answers: Answers) -> None:
        self.answers = answers
        self._request = request
        self._served = served
        self._prompts = prompts
        self._each = request.n or 1
        count = len(prompts) * self._each
        self._made: list[list[int]] = [[] for _ in range(count)]  # tokens of each answer
        self._texts = [TextStream(served.tokenizer, request.stops) for _ in range(count)]
        self._head = {
            "id": f"{self.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": served.version,
        }

    @property
    def headers(self) -> dict[str, str]:
        return self._request.headers

    @property
    def streams(self) -> bool:
        return bool(self._request.stream)

    @abstractmethod
    async def choice(self, index: int, text: str, finish: str) -> dict[str, Any]:
        """One answer of a whole reply. Raises `Died`."""

    @abstractmethod
    def opening(self, index: int) -> list[dict[str, Any]]:
        """The choices that begin an answer's stream."""

    @abstractmethod
    def change(self, index: int, text: str, finish: str | None) -> Iterator[dict[str, Any]]:
        """The choices that carry on an answer's stream."""

    async def _pieces(self) -> AsyncIterator[tuple[int, str, str | None]]:
        """(index, new text, finish reason), the reason with the last piece of an answer. Raises `Died`."""
        async for index, token in self.answers:
            self._made[index].append(token.id)
            stream = self._texts[index]
            text, finish = stream.push(token.id), token.finish
            if finish is not None:
                text += stream.finish()
            if stream.stopped:
                finish = "stop"
                self.answers.stop(index)
            if text or finish:
                yield index, text, finish

    def _usage(self) -> dict[str, int]:
        return usage(sum(map(len, self._prompts)), sum(map(len, self._made)))

    async def whole(self) -> dict[str, Any]:
        texts = [""] * len(self._texts)
        finishes = ["length"] * len(self._texts)
        async for index, text, finish in self._pieces():
            texts[index] += text
            finishes[index] = finish or finishes[index]
        choices = [await self.choice(index, *both) for index, both in enumerate(zip(texts, finishes, strict=True))]
        return self._head | {"object": self.whole_object, "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncIterator[str]:
        """The lines of a server-sent event stream. A failure becomes an event too: the status is long sent."""
        wants_usage = bool(self._request.stream_options and self._request.stream_options.include_usage)
        head: dict[str, Any] = self._head | {"object": self.chunk_object}
        if wants_usage:
            head["usage"] = None
        for index in range(len(self._texts)):
            for choice in self.opening(index):
                yield _event(head | {"choices": [choice]})
        try:
            async for index, text, finish in self._pieces():
                for choice in self.change(index, text, finish):
                    yield _event(head | {"choices": [choice]})
        except Died as error:
            yield _event(unavailable(error).body)
            return
        if wants_usage:
            yield _event(head | {"choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"


class ChatReply(Reply):
    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, served: Served, request: ChatRequest, prompt: list[int], answers: Answers) -> None:
        super().__init__(served, request, [prompt], answers)

    async def choice(self, index: int, text: str, finish: str) -> dict[str, Any]:
        return chat_choice(index, text, finish)

    def opening(self, index: int) -> list[dict[str, Any]]:
        return [delta(index, {"role": "assistant", "content": ""})]

    def change(self, index: int, text: str, finish: str | None) -> Iterator[dict[str, Any]]:
        if text:
            yield delta(index, {"content": text})
        if finish:
            yield delta(index, {}, finish)


class TextReply(Reply):
    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(
        self, served: Served, request: CompletionRequest, prompts: Sequence[list[int]], answers: Answers
    ) -> None:
        super().__init__(served, request, prompts, answers)
        self._echoes, self._top, self._bound = bool(request.echo), request.logprobs, request.bound

    def _echo(self, index: int) -> str:
        return self._served.tokenizer.decode(self._prompts[index // self._each]) if self._echoes else ""

    async def choice(self, index: int, text: str, finish: str) -> dict[str, Any]:
        logprobs = None if self._top is None else await self._logprobs(index, self._top)
        return text_choice(index, self._echo(index) + text, finish, logprobs)

    async def _logprobs(self, index: int, top: int) -> dict[str, Any]:
        """Of the whole softmax at temperature 1, whatever the answer was drawn at; the first token has none."""
        prompt, tokenizer = self._prompts[index // self._each], self._served.tokenizer
        ids = prompt + self._made[index]
        scores = await self._served.decoding.score(ids, top=top)
        shown = ids if self._echoes else self._made[index]
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

    def change(self, index: int, text: str, finish: str | None) -> Iterator[dict[str, Any]]:
        yield text_choice(index, text, finish)


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


class EventStream(StreamingResponse):
    """Frees what the answers hold even if the client left before the first event was made."""

    def __init__(self, reply: Reply) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"} | reply.headers
        super().__init__(reply.events(), media_type="text/event-stream", headers=headers)
        self._answers = reply.answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.close()

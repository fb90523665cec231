"""The HTTP endpoint: OpenAI's chat completions over one decoding thread."""

import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moe.chat import prompt_ids
from moe.engine import Sampling
from moe.tokenizer import Tokenizer
from serving.decoding import Answers, Busy, DecodingThread, Died
from serving.schema import ApiError, ChatRequest, choice, delta, parse, usage
from serving.text import TextStream

COLDEST = 1e-3  # temperatures below it are greedy: logits divided by less leave the range of float32
RETRY_AFTER = 1  # seconds


@dataclass(frozen=True)
class Served:
    """What the endpoint answers with."""

    name: str  # the model's name in requests
    tokenizer: Tokenizer
    decoding: DecodingThread
    context: int  # positions of the model
    max_new_tokens: int  # an answer's bound where the client names none
    created: int = field(default_factory=lambda: int(time.time()))  # unix seconds


def endpoint(served: Served, *, max_body_bytes: int) -> FastAPI:
    """The ASGI app. Every error has OpenAI's shape."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        served.decoding.close()

    app = FastAPI(title="Conclave", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit, limit=max_body_bytes)
    app.add_exception_handler(HTTPException, _error_response)
    card = {"id": served.name, "object": "model", "created": served.created, "owned_by": "conclave"}

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        if served.decoding.error is not None:
            raise ApiError(503, str(served.decoding.error), code="decoding_stopped", retry=RETRY_AFTER)
        return {"status": "ok", "model": served.name, "answers": served.decoding.active}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        _check_model(served, model)
        return card

    @app.post("/v1/chat/completions")
    async def chat_completions(http: Request) -> Response:
        request = parse(await http.body())
        _check_model(served, request.model)
        prompt = prompt_ids(served.tokenizer, [message.plain() for message in request.messages])
        reply = Reply(served, request, prompt, _submit(served, request, prompt))
        if request.stream:
            return EventStream(reply)
        try:
            return JSONResponse(await reply.whole())
        except Died as error:
            raise _unavailable(error) from None
        finally:
            reply.answers.close()  # also when the client went away and the server cancelled us

    return app


def _check_model(served: Served, model: str) -> None:
    if model != served.name:
        text = f"model {model[:100]!r} is not served here; this server has {served.name!r}"
        raise ApiError(404, text, code="model_not_found", param="model")


def _submit(served: Served, request: ChatRequest, prompt: list[int]) -> Answers:
    room = served.context - len(prompt)
    bound = request.bound or min(served.max_new_tokens, max(1, room))
    if bound > room:
        text = (
            f"the prompt has {len(prompt)} tokens and max_tokens={bound}, together {len(prompt) + bound}: "
            f"more than the model's context of {served.context}; shorten the messages"
        )
        text += f" or ask for max_tokens={room} at most" if room > 0 else ""
        raise ApiError(400, text, code="context_length_exceeded", param="messages" if room < 1 else "max_tokens")
    temperature = 1.0 if request.temperature is None else request.temperature
    seed = secrets.randbits(64) if request.seed is None else request.seed
    samplings = [
        Sampling(
            max_new_tokens=bound,
            temperature=temperature if temperature >= COLDEST else 0.0,
            top_p=request.top_p or 1.0,
            seed=(seed + index) % 2**64,
        )
        for index in range(request.n or 1)
    ]
    try:
        return served.decoding.submit(prompt, samplings)
    except (Busy, Died) as error:
        raise _unavailable(error) from None


def _unavailable(error: Busy | Died) -> ApiError:
    code = "overloaded" if isinstance(error, Busy) else "decoding_stopped"
    return ApiError(503, str(error), code=code, retry=RETRY_AFTER)


async def _error_response(_: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):  # the router's own: no such path, no such method
        assert isinstance(error, HTTPException)
        error = ApiError(error.status_code, str(error.detail), code=str(error.detail).lower().replace(" ", "_"))
    return JSONResponse(error.body, error.status_code, headers=error.headers)


class Reply:
    """One request's answers, as a whole or as chunks; both come from the same text, piece by piece."""

    def __init__(self, served: Served, request: ChatRequest, prompt: list[int], answers: Answers) -> None:
        self.answers = answers
        self._request = request
        self._prompt = len(prompt)
        self._made = 0  # tokens of all answers
        self._texts = [TextStream(served.tokenizer, request.stops) for _ in range(request.n or 1)]
        self._head = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": None,
        }

    async def _pieces(self) -> AsyncIterator[tuple[int, str, str | None]]:
        """(index, new text, finish reason), the reason with the last piece of an answer. Raises `Died`."""
        async for index, token in self.answers:
            self._made += 1
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
        return usage(self._prompt, self._made)

    async def whole(self) -> dict[str, Any]:
        texts = [""] * len(self._texts)
        finishes = ["length"] * len(self._texts)
        async for index, text, finish in self._pieces():
            texts[index] += text
            finishes[index] = finish or finishes[index]
        choices = [choice(index, *both) for index, both in enumerate(zip(texts, finishes, strict=True))]
        return self._head | {"object": "chat.completion", "choices": choices, "usage": self._usage()}

    async def events(self) -> AsyncIterator[str]:
        """The lines of a server-sent event stream. A failure becomes an event too: the status is long sent."""
        wants_usage = bool(self._request.stream_options and self._request.stream_options.include_usage)
        head: dict[str, Any] = self._head | {"object": "chat.completion.chunk"}
        if wants_usage:
            head["usage"] = None
        for index in range(len(self._texts)):
            yield _event(head | {"choices": [delta(index, {"role": "assistant", "content": ""})]})
        try:
            async for index, text, finish in self._pieces():
                if text:
                    yield _event(head | {"choices": [delta(index, {"content": text})]})
                if finish:
                    yield _event(head | {"choices": [delta(index, {}, finish)]})
        except Died as error:
            yield _event(_unavailable(error).body)
            return
        if wants_usage:
            yield _event(head | {"choices": [], "usage": self._usage()})
        yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n"


class EventStream(StreamingResponse):
    """Frees what the answers hold even if the client left before the first event was made."""

    def __init__(self, reply: Reply) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(reply.events(), media_type="text/event-stream", headers=headers)
        self._answers = reply.answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.close()


class BodyLimit:
    """Refuses a body that is too long, by its header or while it arrives, before anything keeps it."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self._limit:
                raise self._refusal()
            return message

        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length) > self._limit:
            error = self._refusal()
            await JSONResponse(error.body, error.status_code)(scope, receive, send)
            return
        await self._app(scope, counted, send)

    def _refusal(self) -> ApiError:
        return ApiError(413, f"the body is longer than {self._limit} bytes", code="body_too_large")

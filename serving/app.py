"""The HTTP endpoint: OpenAI's chat and text completions over one decoding thread."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moe.chat import prompt_ids
from moe.engine import Sampling
from moe.tokenizer import Tokenizer
from serving import schema
from serving.decoding import Answers, Busy, Died
from serving.replies import RETRY_AFTER, ChatReply, EventStream, Reply, Served, TextReply, unavailable
from serving.schema import ApiError, ChatRequest, CompletionRequest, parse

COLDEST = 1e-3  # temperatures below it are greedy: logits divided by less leave the range of float32


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
        request = parse(await http.body(), ChatRequest)
        _check_model(served, request.model)
        prompt = prompt_ids(served.tokenizer, [message.plain() for message in request.messages])
        room = served.context - len(prompt)
        bound = request.bound or min(served.max_new_tokens, max(1, room))
        _check_room(served, prompt, bound, "messages")
        return await _response(ChatReply(served, request, prompt, _submit(served, request, [prompt], bound)))

    @app.post("/v1/completions")
    async def completions(http: Request) -> Response:
        request = parse(await http.body(), CompletionRequest)
        _check_model(served, request.model)
        prompts = [_ids(served.tokenizer, prompt) for prompt in request.prompts]
        for prompt in prompts:
            _check_room(served, prompt, request.bound, "prompt")
        return await _response(TextReply(served, request, prompts, _submit(served, request, prompts, request.bound)))

    return app


async def _response(reply: Reply) -> Response:
    if reply.streams:
        return EventStream(reply)
    try:
        return JSONResponse(await reply.whole())
    except Died as error:
        raise unavailable(error) from None
    finally:
        reply.answers.close()  # also when the client went away and the server cancelled us


def _check_model(served: Served, model: str) -> None:
    if model != served.name:
        text = f"model {model[:100]!r} is not served here; this server has {served.name!r}"
        raise ApiError(404, text, code="model_not_found", param="model")


def _ids(tokenizer: Tokenizer, prompt: str | list[int]) -> list[int]:
    """Text is only ever text; a client that means `<|im_end|>` sends its id."""
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
    if not ids:
        raise ApiError(400, "prompt is empty; it must have a token to go on from", code="invalid_value", param="prompt")
    if max(ids) >= tokenizer.size:
        text = f"prompt: {max(ids)} is no token id of this model, which has {tokenizer.size}"
        raise ApiError(400, text, code="invalid_value", param="prompt")
    return ids


def _check_room(served: Served, prompt: list[int], bound: int, param: str) -> None:
    room = served.context - len(prompt)
    if bound > room:
        text = (
            f"the prompt has {len(prompt)} tokens and max_tokens={bound}, together {len(prompt) + bound}: "
            f"more than the model's context of {served.context}; shorten the {param}"
        )
        text += f" or ask for max_tokens={room} at most" if room > 0 else ""
        raise ApiError(400, text, code="context_length_exceeded", param=param if room < 1 else "max_tokens")


def _submit(served: Served, request: schema.Request, prompts: list[list[int]], bound: int) -> Answers:
    """`request.n` answers to each prompt, none where a prompt is only to be scored."""
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
        return served.decoding.submit([(prompt, each) for prompt in prompts for each in samplings] if bound else [])
    except (Busy, Died) as error:
        raise unavailable(error) from None


async def _error_response(_: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):  # the router's own: no such path, no such method
        assert isinstance(error, HTTPException)
        error = ApiError(error.status_code, str(error.detail), code=str(error.detail).lower().replace(" ", "_"))
    return JSONResponse(error.body, error.status_code, headers=error.headers)


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

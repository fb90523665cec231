"""The HTTP endpoint: OpenAI's chat and text completions over one decoding thread."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from conf.errors import InputError
from conf.knobs.running import Serve
from moe.generation.engine import Sampling
from moe.text.chat import answer_ids, prompt_ids
from moe.text.tokenizer import Tokenizer
from serving import schema, votes, web
from serving.decoding import Answers, Busy, Died, TooMany
from serving.door import Door
from serving.keys import Key, Limits
from serving.replies import ChatReply, EventStream, Reply, Served, TextReply, unavailable
from serving.schema import ApiError, ChatRequest, CompletionRequest, parse

COLDEST = 1e-3  # temperatures below it are greedy: logits divided by less leave the range of float32


def endpoint(served: Served, cfg: Serve, keys: Sequence[Key] = ()) -> FastAPI:
    """The ASGI app, which answers whoever has one of the `keys`, everybody without any. Every error has OpenAI's
    shape."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        served.decoding.close()
        if served.feedback is not None:
            served.feedback.close()

    # A redirect would lead to whatever host the client names.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    if cfg.origins:
        app.add_middleware(CORSMiddleware, allow_origins=cfg.origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Door, cfg, keys, Limits())  # the last one added is the first one asked
    app.add_exception_handler(HTTPException, _error_response)
    app.include_router(web.routes())
    app.include_router(votes.routes(served.feedback, served.principles))
    card = {
        **{"id": served.name, "object": "model", "created": served.created, "owned_by": "conclave"},
        **{"max_model_len": served.context, "principles": list(served.principles), "version": served.version},
    }

    @app.get("/health")
    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        if error := served.decoding.error or served.decoding.closing:
            raise unavailable(error)
        return {"status": "ok", "model": served.name, "answers": served.decoding.active}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(served.decoding.meter.text(), media_type=CONTENT_TYPE_LATEST)

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
        # Off the loop: a long prompt takes seconds, and other streams must not stand still.
        prompt = await asyncio.to_thread(_prompt, served.tokenizer, request)
        room = served.context - len(prompt)
        bound = request.bound or min(served.max_new_tokens, max(1, room))
        _check_room(served, prompt, bound, "messages")
        return await _response(ChatReply(served, request, prompt, _submit(served, request, [prompt], bound)))

    @app.post("/v1/completions")
    async def completions(http: Request) -> Response:
        request = parse(await http.body(), CompletionRequest)
        _check_model(served, request.model)
        prompts = await asyncio.to_thread(lambda: [_ids(served.tokenizer, prompt) for prompt in request.prompts])
        for prompt in prompts:
            _check_room(served, prompt, request.bound, "prompt")
        return await _response(TextReply(served, request, prompts, _submit(served, request, prompts, request.bound)))

    return app


async def _response(reply: Reply) -> Response:
    if reply.streams:
        return EventStream(reply)
    try:
        return JSONResponse(await reply.whole(), headers=reply.headers)
    except Died as error:
        raise unavailable(error) from None
    finally:
        reply.answers.close()  # also when the client went away and the server cancelled us


def _check_model(served: Served, model: str) -> None:
    if model != served.name:
        text = f"model {model[:100]!r} is not served here; this server has {served.name!r}"
        raise ApiError(404, text, code="model_not_found", param="model")


def _prompt(tokenizer: Tokenizer, request: ChatRequest) -> list[int]:
    messages = [message.plain() for message in request.messages]
    try:
        if not request.continue_final_message:
            return prompt_ids(tokenizer, messages)
        *before, begun = messages
        ids = [*prompt_ids(tokenizer, before), *answer_ids(tokenizer, before, [begun["content"]])[0]]
        while ids[-1] in tokenizer.stop:  # the mark of the answer's end, which is yet to come
            ids.pop()
        return ids
    except InputError as error:  # the model's template knows no such role, or no such order of them
        text = str(error).removeprefix(f"{tokenizer.form.where}: ")
        raise ApiError(400, text, code="invalid_value", param="messages") from None


def _ids(tokenizer: Tokenizer, prompt: str | list[int]) -> list[int]:
    """Text is only ever text, and begins as the model's texts do; a client that means `<|im_end|>` sends its id."""
    if isinstance(prompt, list):
        ids = prompt
    else:
        ids = [*tokenizer.opening, *tokenizer.encode_texts([prompt])[0]] if prompt else []
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
            seed=_seed(seed, index),
        )
        for index in range(request.n or 1)
    ]
    try:
        return served.decoding.submit([(prompt, each) for prompt in prompts for each in samplings] if bound else [])
    except TooMany as error:
        param = "n" if len(prompts) == 1 else "prompt"
        raise ApiError(400, str(error), code="too_many_answers", param=param) from None
    except (Busy, Died) as error:
        raise unavailable(error) from None


def _seed(seed: int, index: int) -> int:
    """Of the index-th answer: a request with the next seed shares none. The first is that of a request for one."""
    if not index:
        return seed % 2**64
    return int.from_bytes(hashlib.sha256(f"{seed}:{index}".encode()).digest()[:8])


async def _error_response(_: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):  # the router's own: no such path, no such method
        assert isinstance(error, HTTPException)
        error = ApiError(error.status_code, str(error.detail), code=str(error.detail).lower().replace(" ", "_"))
    return JSONResponse(error.body, error.status_code, headers=error.headers)

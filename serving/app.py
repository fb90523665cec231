"""The HTTP endpoint: OpenAI's chat and text completions, and what other APIs make of them, over one decoding thread."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from conf.knobs.running import Serve
from serving import asking, labels, votes, web
from serving.dialects import embeddings, messages, responses, shapes
from serving.dialects.streams import Streams
from serving.dialects.strict import ApiError, parse
from serving.door import Door
from serving.failover.origin import origin
from serving.keys import Key, Limits
from serving.replies import ChatReply, Served, TextReply, unavailable
from serving.schema import ChatRequest, CompletionRequest


def endpoint(served: Served, cfg: Serve, keys: Sequence[Key] = (), *, behind: bool = False) -> FastAPI:
    """The ASGI app, which answers whoever has one of the `keys`, everybody without any. Every error has the
    shape of the API that was asked. `behind`: nobody but our door in Serve's proxy can reach it."""

    streams = Streams(cfg)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        streams.close()
        served.decoding.close()
        for store in (served.feedback, served.labels):
            if store is not None:
                store.close()

    # A redirect would lead to whatever host the client names.
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    if cfg.origins:
        app.add_middleware(CORSMiddleware, allow_origins=cfg.origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Door, cfg, keys, Limits(), behind=behind)  # the last one added is the first one asked
    app.add_exception_handler(HTTPException, _error_response)
    app.include_router(web.routes())
    app.include_router(votes.routes(served.feedback, served.principles))
    app.include_router(labels.routes(served.labels))
    app.include_router(embeddings.routes(served))
    app.include_router(messages.routes(served, streams))
    app.include_router(responses.routes(served, streams))
    app.include_router(streams.routes())
    made = datetime.fromtimestamp(served.created, UTC).isoformat().replace("+00:00", "Z")
    card = {
        **{"id": served.name, "object": "model", "created": served.created, "owned_by": "conclave"},
        **{"type": "model", "display_name": served.name, "created_at": made},  # what Anthropic's clients read
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
        return {"object": "list", "data": [card], "has_more": False, "first_id": served.name, "last_id": served.name}

    @app.get("/v1/models/{model}")
    async def model(model: str) -> dict[str, Any]:
        asking.check_model(served, model)
        return card

    @app.post("/v1/chat/completions")
    async def chat_completions(http: Request) -> Response:
        request, drawn = parse(await http.body(), ChatRequest), origin(http)
        made = await asking.chat(served, request, drawn)
        return await streams.answered(ChatReply(served, request, drawn, *made), http)

    @app.post("/v1/completions")
    async def completions(http: Request) -> Response:
        request, drawn = parse(await http.body(), CompletionRequest), origin(http)
        made = await asking.completion(served, request, drawn)
        return await streams.answered(TextReply(served, request, drawn, *made), http)

    return app


async def _error_response(http: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):  # the router's own: no such path, no such method
        assert isinstance(error, HTTPException)
        error = ApiError(error.status_code, str(error.detail), code=str(error.detail).lower().replace(" ", "_"))
    return JSONResponse(shapes.body(http.url.path, error), error.status_code, headers=error.headers)

"""OpenAI's `/v1/embeddings`: the mean of a text's last hidden states, of length 1."""

import asyncio
import base64
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field

from moe.generation.embeddings import embed
from serving import asking
from serving.decoding import Died
from serving.dialects.strict import ApiError, Said, parse
from serving.replies import Served, unavailable
from serving.schema import Prompts, each_prompt


class EmbeddingsRequest(Said):
    """The body of POST /v1/embeddings."""

    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None  # base64: of little-endian float32
    dimensions: Annotated[int | None, Field(ge=1)] = None
    user: str | None = None


def routes(served: Served) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/embeddings")
    async def create(http: Request) -> dict[str, Any]:
        request = parse(await http.body(), EmbeddingsRequest)
        asking.check_model(served, request.model)
        texts = await asyncio.to_thread(asking.prompt_ids_of, served, each_prompt(request.input), "input")
        if request.dimensions not in (None, served.hidden_size):
            text = f"dimensions={request.dimensions}: this model's embeddings have {served.hidden_size}; leave it out"
            raise ApiError(400, text, code="unsupported_value", param="dimensions")
        data = []
        try:
            for index, ids in enumerate(texts):  # one by one: what decodes meanwhile goes on between them
                point = await served.decoding.ask(partial(embed, ids=ids))
                shown = _packed(point) if request.encoding_format == "base64" else point
                data.append({"object": "embedding", "index": index, "embedding": shown})
        except Died as error:
            raise unavailable(error) from None
        count = sum(map(len, texts))
        return {
            "object": "list",
            "data": data,
            "model": served.name,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }

    return router


def _packed(point: list[float]) -> str:
    return base64.b64encode(np.array(point, dtype="<f4").tobytes()).decode()

"""What crosses `/v1/feedback`: votes on answers, bounded, into the run's store; everybody sees and forgets their own.

    {"id": "f-1", "conversation": "c-1", "kind": "better", "principle": "clear", "better": 1,
     "messages": [{"role": "user", "content": "..."}],
     "answers": [{"text": "...", "finished": true, "model": "demo-rl", "version": "fp_3f9c", "sampling": {"seed": 5}},
                 {"text": "..."}]}

`messages` is the exact conversation up to the user's turn that the answers are to; `kind` says what the vote is:

    up, down        on the one answer
    correction      `correction` is what should have been said instead of the one answer
    better          `better` is the number of the better of two answers
    comment         `comment` alone, on the one answer

Every kind may have a `principle` and a `comment`. `visible_to` is "training" (who ranks for the next model may see it)
or "me" (nobody but its sender).
"""

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import Field, model_validator

from cluster.feedback import Forgotten, Store, Taken, Vote
from conf.errors import InputError
from moe.text.chat import check
from serving.dialects.strict import ApiError, Strict, parse
from serving.schema import MAX_MESSAGES

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
MAX_COMMENT = 4000  # characters


class Turn(Strict):
    role: Literal["system", "user", "assistant"]
    content: str


class How(Strict):
    """The sampling of an answer, as far as its request said."""

    temperature: Annotated[float | None, Field(ge=0, le=2)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=0)] = None
    min_p: Annotated[float | None, Field(ge=0, le=1)] = None
    repetition_penalty: Annotated[float | None, Field(gt=0, le=10)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2)] = None
    max_tokens: Annotated[int | None, Field(ge=0)] = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None


class Given(Strict):
    """An answer as it was shown."""

    text: str
    finished: bool = True  # by the model, not cut off
    model: Annotated[str | None, Field(max_length=200)] = None
    version: Annotated[str | None, Field(max_length=200)] = None  # `system_fingerprint` of its response
    sampling: How = How()


class Ballot(Strict):
    """The body of POST /v1/feedback."""

    id: Name  # the client's: sent again it is the same vote
    conversation: Name
    kind: Literal["up", "down", "correction", "better", "comment"]
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MAX_MESSAGES)]
    answers: Annotated[list[Given], Field(min_length=1, max_length=2)]
    better: Literal[0, 1] | None = None
    correction: str | None = None
    principle: str | None = None
    comment: Annotated[str | None, Field(max_length=MAX_COMMENT)] = None
    visible_to: Literal["me", "training"] = "training"

    @model_validator(mode="after")
    def _agree(self) -> "Ballot":
        two = 2 if self.kind == "better" else 1
        if len(self.answers) != two:
            raise ValueError(f"kind={self.kind!r} is about {two} of answers, not {len(self.answers)}")
        for field, kind in (("better", "better"), ("correction", "correction"), ("comment", "comment")):
            if self.kind == kind and getattr(self, field) in (None, ""):
                raise ValueError(f"kind={kind!r} needs {field}")
            if self.kind != kind and field != "comment" and getattr(self, field) is not None:
                raise ValueError(f"{field} is of kind={kind!r}, not of kind={self.kind!r}")
        if self.kind == "better" and self.answers[0].text == self.answers[1].text:
            raise ValueError("answers: the two have the same text, and none can be better")
        if self.kind == "correction" and self.correction == self.answers[0].text:
            raise ValueError("correction is what was answered, and corrects nothing")
        try:
            check([turn.model_dump() for turn in self.messages])
        except InputError as error:
            raise ValueError(f"messages: {error}") from None
        if self.messages[-1].role != "user":
            raise ValueError("messages must end with the user's turn that the answers are to")
        return self


def routes(store: Store | None, principles: tuple[str, ...]) -> APIRouter:
    """Of the feedback; without a store every one answers that none is kept here."""
    router = APIRouter()

    def opened() -> Store:
        if store is None:
            raise ApiError(404, "this server keeps no feedback", code="no_feedback")
        return store

    @router.post("/v1/feedback")
    async def give(http: Request) -> JSONResponse:
        ballot, kept = parse(await http.body(), Ballot), opened()
        if ballot.principle is not None and ballot.principle not in principles:
            text = f"principle={ballot.principle[:60]!r} is none of {', '.join(principles)}"
            raise ApiError(400, text, code="invalid_value", param="principle")
        said = ballot.model_dump(exclude={"id", "conversation", "visible_to"}, exclude_none=True)
        trains = ballot.visible_to == "training"
        try:
            new = await asyncio.to_thread(kept.add, _asker(http), ballot.id, ballot.conversation, said, trains=trains)
        except Taken:
            text = f"id={ballot.id!r} is that of another vote; give each its own"
            raise ApiError(409, text, code="id_taken", param="id") from None
        except Forgotten:
            text = f"{ballot.id!r}, or its conversation {ballot.conversation!r}, was deleted and is not taken again"
            raise ApiError(410, text, code="forgotten", param="conversation") from None
        return JSONResponse({"object": "feedback", "id": ballot.id, "created": int(time.time())}, 201 if new else 200)

    @router.get("/v1/feedback")
    async def mine(http: Request, conversation: str | None = None) -> dict[str, Any]:
        found = await asyncio.to_thread(opened().of, _asker(http), conversation)
        return {"object": "list", "data": [_shown(vote) for vote in found]}

    @router.delete("/v1/feedback")
    async def forget(http: Request, conversation: str = "") -> dict[str, Any]:
        if not conversation:
            raise ApiError(400, "conversation=... says what to forget", code="invalid_value", param="conversation")
        count = await asyncio.to_thread(opened().forget, _asker(http), conversation=conversation)
        return {"object": "feedback.deleted", "conversation": conversation, "deleted": count}

    @router.delete("/v1/feedback/{vote}")
    async def forget_one(http: Request, vote: str) -> dict[str, Any]:
        count = await asyncio.to_thread(opened().forget, _asker(http), vote=vote)
        return {"object": "feedback.deleted", "id": vote, "deleted": count}

    return router


def _asker(http: Request) -> str:
    return str(http.scope["state"]["asker"])


def _shown(vote: Vote) -> dict[str, Any]:
    named = {"id": vote.id, "conversation": vote.conversation, "created": int(vote.created)}
    return {"object": "feedback", **named, "visible_to": "training" if vote.trains else "me", **vote.said}

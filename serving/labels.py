"""What crosses `/v1/labels`: queries whose answers await people's ranks, and the ranks, into the run's store.

`GET /v1/labels` lists what is asked for and what the asker has done of it; `GET /v1/labels/<id>` shows one query with
its answers, in an order of the asker's own, so that no place is favoured; `POST /v1/labels/<id>` keeps the asker's
word:

    {"ranks": {"helpful": [{"number": 2, "place": 0}, {"number": 0, "place": 1}, {"number": 1, "place": 1}]},
     "comment": "..."}
    {"skipped": true}

`place` may be any whole number, the best the lowest and equal where answers tie; a principle that is named has a place
for every answer. The asker's newest word counts, and `DELETE /v1/labels/<id>` takes it back.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field, model_validator

from cluster.people.labels import Item, Label, Labels, places
from serving.dialects.strict import ApiError, Strict, parse

MAX_COMMENT = 4000  # characters


class Placed(Strict):
    number: Annotated[int, Field(ge=0)]  # of the answer
    place: Annotated[int, Field(ge=0, le=1000)]


class Said(Strict):
    """The body of POST /v1/labels/<id>."""

    ranks: Annotated[dict[str, list[Placed]], Field(default_factory=dict)]
    skipped: bool = False
    comment: Annotated[str, Field(max_length=MAX_COMMENT)] = ""

    @model_validator(mode="after")
    def _agree(self) -> "Said":
        if self.skipped == bool(self.ranks):
            raise ValueError("a label has ranks, or skipped=true, and not both")
        return self


def routes(labels: Labels | None) -> APIRouter:
    """Of the labels; without a store nothing is asked for."""
    router = APIRouter()

    async def items() -> dict[str, Item]:
        return {item.id: item for item in await asyncio.to_thread(labels.items)} if labels else {}

    async def item(name: str) -> Item:
        if (found := (await items()).get(name)) is None:
            raise ApiError(404, f"no query {name[:60]!r} awaits ranks here", code="no_label_item")
        return found

    async def own(http: Request) -> dict[str, Label]:
        given = await asyncio.to_thread(labels.given, _asker(http)) if labels else {}
        return {name: said[0] for name, said in given.items()}

    @router.get("/v1/labels")
    async def listed(http: Request) -> dict[str, Any]:
        mine = await own(http)
        data = [{"id": name, "state": _state(mine.get(name))} for name in await items()]
        return {"object": "list", "data": data}

    @router.get("/v1/labels/{name}")
    async def shown(name: str, http: Request) -> dict[str, Any]:
        found, said = await item(name), (await own(http)).get(name)
        ranks = {of: _numbered(ranked) for of, ranked in said.ranks.items()} if said else {}
        return {
            **{"object": "label", "id": name, "state": _state(said), "messages": list(found.messages)},
            "answers": [{"number": place, "text": found.texts[place]} for place in order(found, _asker(http))],
            **{"principles": list(found.principles), "ranks": ranks, "comment": said.comment if said else ""},
        }

    @router.post("/v1/labels/{name}")
    async def give(name: str, http: Request) -> dict[str, Any]:
        said, found = parse(await http.body(), Said), await item(name)
        assert labels is not None
        ranks = {of: _ranks(of, placed, found) for of, placed in said.ranks.items()}
        label = Label(_asker(http), name, ranks, said.skipped, said.comment)
        await asyncio.to_thread(labels.give, label)
        return {"object": "label", "id": name, "state": _state(label)}

    @router.delete("/v1/labels/{name}")
    async def withdraw(name: str, http: Request) -> dict[str, Any]:
        gone = await asyncio.to_thread(labels.forget, _asker(http), name) if labels else False
        return {"object": "label.deleted", "id": name, "deleted": int(gone)}

    return router


def order(item: Item, asker: str) -> list[int]:
    """The answers' numbers as they are shown: always the same for the asker, and without regard to who made them."""
    return sorted(
        range(len(item.texts)), key=lambda place: hashlib.sha256(f"{asker}/{item.id}/{place}".encode()).digest()
    )


def _ranks(principle: str, placed: Sequence[Placed], item: Item) -> list[int]:
    if principle not in item.principles:
        text = f"ranks.{principle[:60]} is none of {', '.join(item.principles)}"
        raise ApiError(400, text, code="invalid_value", param="ranks")
    by_number = {each.number: each.place for each in placed}
    if sorted(by_number) != list(range(len(item.texts))) or len(placed) != len(by_number):
        text = f"ranks.{principle} must give each of the {len(item.texts)} answers one place"
        raise ApiError(400, text, code="invalid_value", param="ranks")
    return places([by_number[number] for number in range(len(item.texts))])


def _numbered(ranks: Sequence[int]) -> list[dict[str, int]]:
    return [{"number": number, "place": place} for number, place in enumerate(ranks)]


def _state(label: Label | None) -> str:
    return "waiting" if label is None else "skipped" if label.skipped else "ranked"


def _asker(http: Request) -> str:
    return str(http.scope["state"]["asker"])

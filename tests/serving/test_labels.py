"""/v1/labels: what awaits ranks, in whose order it is shown, and what is refused by name."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.people.labels import FILE, Item, Label, Labels
from conf.knobs.running import Serve
from serving.app import endpoint
from serving.keys import Key
from serving.labels import order
from tests.serving.test_door import refusal
from tests.serving.test_keys import ALICE, BOB, OTHER, SECRET
from tests.serving.test_votes import Nobody

ITEMS = [Item([{"role": "user", "content": text}], ("a", "b", "c"), ("helpful", "clear")) for text in ("春", "秋")]
FIRST = f"/v1/labels/{ITEMS[0].id}"


def ranks(*places: int) -> list[dict[str, int]]:
    return [{"number": number, "place": place} for number, place in enumerate(places)]


def serving(
    path: Path | None, scenario: Callable[[httpx.AsyncClient], Awaitable[None]], keys: tuple[Key, ...] = ()
) -> Labels | None:
    served: Any = Nobody(None)
    served.labels = Labels(path) if path else None

    async def run() -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(endpoint(served, Serve(), keys)), base_url="http://localhost"
        ) as client:
            await scenario(client)

    asyncio.run(asyncio.wait_for(run(), 60))
    return Labels(path) if path else None


def test_ranks_are_stored_as_they_were_given_and_shown_to_who_gave_them(tmp_path: Path) -> None:
    Labels(tmp_path / FILE).ask("rank", ITEMS)

    async def scenario(client: httpx.AsyncClient) -> None:
        alice, bob = {"x-api-key": SECRET}, {"x-api-key": OTHER}
        body = {"ranks": {"helpful": ranks(4, 2, 4)}, "comment": "b"}
        given = await client.post(FIRST, json=body, headers=alice)
        assert (given.status_code, given.json()["state"]) == (200, "ranked")
        skipped = await client.post(f"/v1/labels/{ITEMS[1].id}", json={"skipped": True}, headers=bob)
        assert skipped.json()["state"] == "skipped"
        states = [(await client.get("/v1/labels", headers=who)).json()["data"] for who in (alice, bob)]
        assert [[each["state"] for each in of] for of in states] == [["ranked", "waiting"], ["waiting", "skipped"]]
        shown = (await client.get(FIRST, headers=alice)).json()
        assert (shown["ranks"], shown["comment"]) == ({"helpful": ranks(1, 0, 1)}, "b")
        assert shown["principles"] == ["helpful", "clear"] and shown["messages"] == ITEMS[0].messages
        assert [each["number"] for each in shown["answers"]] == order(ITEMS[0], "alice")
        assert all(each["text"] == ITEMS[0].texts[each["number"]] for each in shown["answers"])
        assert (await client.get(FIRST, headers=bob)).json()["ranks"] == {}
        assert (await client.delete(FIRST, headers=bob)).json()["deleted"] == 0
        await client.post(FIRST, json={"ranks": {"clear": ranks(0, 0, 0)}}, headers=alice)  # the newest counts

    store = serving(tmp_path / FILE, scenario, (ALICE, BOB))
    assert store
    ((one,), (other,)) = (store.given()[item.id] for item in ITEMS)
    assert (one.owner, one.ranks, one.comment) == ("alice", {"clear": [0, 0, 0]}, "")
    assert (other.owner, other.skipped, other.ranks) == ("bob", True, {})


def test_no_place_is_favoured() -> None:
    items = [Item([{"role": "user", "content": str(n)}], ("a", "b", "c"), ("helpful",)) for n in range(300)]
    firsts = [order(item, "alice")[0] for item in items]
    assert all(70 <= firsts.count(number) <= 130 for number in range(3))
    assert order(items[0], "alice") == order(items[0], "alice")
    assert any(order(item, "alice") != order(item, "bob") for item in items)


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/labels/none", {"skipped": True}, 404, "no query 'none' awaits ranks here"),
        (FIRST, {}, 400, "a label has ranks, or skipped=true, and not both"),
        (FIRST, {"skipped": True, "ranks": {"helpful": ranks(0, 1, 2)}}, 400, "and not both"),
        (FIRST, {"ranks": {"witty": ranks(0, 1, 2)}}, 400, "ranks.witty is none of helpful, clear"),
        (FIRST, {"ranks": {"clear": ranks(0, 1)}}, 400, "ranks.clear must give each of the 3 answers one place"),
        (FIRST, {"ranks": {"clear": [*ranks(0, 1), *ranks(0)]}}, 400, "must give each of the 3 answers one place"),
        (FIRST, {"ranks": {"clear": ranks(0, 1, -1)}}, 400, "place=-1"),
        (FIRST, {"skipped": True, "comment": "x" * 4001}, 400, "comment="),
        (FIRST, {"skipped": True, "owner": "bob"}, 400, "owner is not a field of this endpoint"),
    ],
)
def test_what_ranks_nothing_is_refused_by_name(
    path: str, body: dict[str, Any], status: int, says: str, tmp_path: Path
) -> None:
    Labels(tmp_path / FILE).ask("rank", ITEMS)

    async def scenario(client: httpx.AsyncClient) -> None:
        refused = await client.post(path, json=body)
        assert refused.status_code == status
        assert says in refused.json()["error"]["message"]

    store = serving(tmp_path / FILE, scenario)
    assert store and store.given() == {}


def test_a_server_of_which_nothing_is_asked_says_so() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/v1/labels")).json() == {"object": "list", "data": []}
        assert refusal(await client.get("/v1/labels/x")) == (404, "no_label_item")
        assert "Rank answers" not in (await client.get("/label")).text  # words come with the script
        assert "label.js" in (await client.get("/label")).text

    serving(None, scenario)


def test_a_label_is_taken_back(tmp_path: Path) -> None:
    labels = Labels(tmp_path / FILE)
    labels.ask("rank", ITEMS)
    labels.give(Label("", ITEMS[0].id, {}, skipped=True))

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.delete(FIRST)).json() == {"object": "label.deleted", "id": ITEMS[0].id, "deleted": 1}
        assert (await client.get(FIRST)).json()["state"] == "waiting"

    serving(tmp_path / FILE, scenario)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a place belongs to the answer that it was given",
        "serving/labels.py",
        "by_number = {each.number: each.place for each in placed}",
        "by_number = {number: each.place for number, each in enumerate(sorted(placed, key=lambda p: p.place))}",
        "test_ranks_are_stored_as_they_were_given_and_shown_to_who_gave_them",
    ),
    (
        "answers are shown in an order of each asker's own",
        "serving/labels.py",
        'hashlib.sha256(f"{asker}/{item.id}/{place}".encode()).digest()',
        "place",
        "test_no_place_is_favoured",
    ),
]

"""/v1/feedback: what is taken, whose it is, and what is refused by name."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.feedback import Store, for_training
from conf.knobs.running import Serve
from serving.app import endpoint
from serving.keys import Key
from tests.serving.test_door import refusal
from tests.serving.test_keys import ALICE, BOB, OTHER, SECRET

TALK = [{"role": "system", "content": "简短"}, {"role": "user", "content": "你好"}]
UP: dict[str, Any] = {
    "id": "f1", "conversation": "c1", "kind": "up", "messages": TALK,
    "answers": [{"text": "好", "finished": False, "model": "m", "version": "fp_1", "sampling": {"seed": 5}}],
}  # fmt: skip
PICK = UP | {"id": "f2", "kind": "better", "better": 1, "principle": "clear"}
PICK["answers"] = [{"text": "好"}, {"text": "您好"}]
FIX = UP | {"id": "f3", "kind": "correction", "correction": "你也好", "comment": "礼貌"}


class Nobody:
    """What is served where nobody asks the model."""

    name, created, decoding, context, version, principles = "tiny", 0, None, 8, "fp_1", ("helpful", "clear")

    def __init__(self, feedback: Store | None) -> None:
        self.feedback, self.labels = feedback, None


def serving(
    path: Path | None, scenario: Callable[[httpx.AsyncClient], Awaitable[None]], keys: tuple[Key, ...] = ()
) -> None:
    async def run() -> None:
        app = endpoint(Nobody(Store(path) if path else None), Serve(), keys)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            await scenario(client)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_vote_is_stored_as_it_was_said_and_once(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        for vote in (UP, PICK, FIX, UP | {"id": "f4", "visible_to": "me", "conversation": "c2"}):
            made = await client.post("/v1/feedback", json=vote)
            assert (made.status_code, made.json()["id"]) == (201, vote["id"])
            assert (await client.post("/v1/feedback", json=vote)).status_code == 200  # as a client that heard nothing
        other = await client.post("/v1/feedback", json=UP | {"kind": "down"})
        assert refusal(other) == (409, "id_taken")
        card = (await client.get("/v1/models")).json()["data"][0]
        assert (card["principles"], card["version"], card["max_model_len"]) == (["helpful", "clear"], "fp_1", 8)

    serving(tmp_path / "f.sqlite3", scenario)
    stored = {vote.id: vote for vote in for_training(tmp_path / "f.sqlite3")}
    assert list(stored) == ["f1", "f2", "f3"]  # and not what only its sender may see
    assert stored["f1"].said == {"kind": "up", "messages": TALK, "answers": UP["answers"]}
    assert (stored["f2"].said["better"], stored["f2"].said["principle"]) == (1, "clear")
    assert (stored["f3"].said["correction"], stored["f3"].said["comment"]) == ("你也好", "礼貌")


def test_everybody_sees_and_forgets_their_own(tmp_path: Path) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        alice, bob = {"x-api-key": SECRET}, {"x-api-key": OTHER}
        for headers, vote in ((alice, UP), (alice, PICK | {"conversation": "c2"}), (bob, FIX)):
            assert (await client.post("/v1/feedback", json=vote, headers=headers)).status_code == 201

        async def seen(headers: dict[str, str], **query: str) -> list[str]:
            answer = await client.get("/v1/feedback", headers=headers, params=query)
            return [vote["id"] for vote in answer.json()["data"]]

        assert (await seen(alice), await seen(bob)) == (["f1", "f2"], ["f3"])
        assert await seen(alice, conversation="c1") == ["f1"]
        whole = (await client.get("/v1/feedback", headers=bob)).json()["data"][0]
        assert (whole["kind"], whole["visible_to"], whole["correction"]) == ("correction", "training", "你也好")
        gone = await client.delete("/v1/feedback", headers=alice, params={"conversation": "c1"})
        assert gone.json() == {"object": "feedback.deleted", "conversation": "c1", "deleted": 1}
        assert (await seen(alice), await seen(bob)) == (["f2"], ["f3"])
        assert refusal(await client.post("/v1/feedback", json=UP, headers=alice)) == (410, "forgotten")
        assert (await client.delete("/v1/feedback/f3", headers=alice)).json()["deleted"] == 0
        assert (await client.delete("/v1/feedback/f2", headers=alice)).json()["deleted"] == 1
        assert (await seen(alice), await seen(bob)) == ([], ["f3"])
        assert refusal(await client.delete("/v1/feedback", headers=bob)) == (400, "invalid_value")
        assert refusal(await client.get("/v1/feedback")) == (401, "invalid_api_key")

    serving(tmp_path / "f.sqlite3", scenario, (ALICE, BOB))


@pytest.mark.parametrize(
    ("change", "param", "says"),
    [
        ({"id": "a b"}, "id", "id='a b'"),
        ({"id": "x" * 65}, "id", "id="),
        ({"kind": "great"}, "kind", "'up', 'down', 'correction', 'better' or 'comment'"),
        ({"principle": "witty"}, "principle", "principle='witty' is none of helpful, clear"),
        ({"messages": []}, "messages", "messages="),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "role='tool'"),
        ({"messages": [*TALK, {"role": "assistant", "content": "x"}]}, None, "messages must end with the user's turn"),
        ({"answers": []}, "answers", "answers="),
        ({"answers": PICK["answers"]}, None, "kind='up' is about 1 of answers, not 2"),
        ({"kind": "better", "better": 0}, None, "kind='better' is about 2 of answers, not 1"),
        (PICK | {"better": None}, None, "kind='better' needs better"),
        (PICK | {"better": 2}, "better", "better=2"),
        (PICK | {"answers": [{"text": "a"}, {"text": "a"}]}, None, "the two have the same text"),
        (FIX | {"correction": ""}, None, "kind='correction' needs correction"),
        (FIX | {"correction": "好"}, None, "correction is what was answered, and corrects nothing"),
        ({"correction": "x"}, None, "correction is of kind='correction', not of kind='up'"),
        ({"kind": "comment"}, None, "kind='comment' needs comment"),
        ({"comment": "x" * 4001}, "comment", "comment="),
        ({"visible_to": "all"}, "visible_to", "'me' or 'training'"),
        ({"answers": [{"text": "a", "sampling": {"temperature": 3}}]}, "answers[0].sampling.temperature", "less than"),
        ({"owner": "bob"}, "owner", "owner is not a field of this endpoint"),
    ],
)
def test_a_vote_that_says_nothing_or_something_else_is_refused_by_name(
    change: dict[str, Any], param: str | None, says: str, tmp_path: Path
) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        refused = await client.post("/v1/feedback", json=UP | change)
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert error["param"] == param
        assert says in error["message"]

    serving(tmp_path / "f.sqlite3", scenario)
    assert not (tmp_path / "f.sqlite3").exists()


def test_a_server_without_a_store_says_so() -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        assert refusal(await client.post("/v1/feedback", json=UP)) == (404, "no_feedback")
        assert refusal(await client.get("/v1/feedback")) == (404, "no_feedback")

    serving(None, scenario)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a vote belongs to whoever sent it",
        "serving/votes.py",
        'return str(http.scope["state"]["asker"])',
        'return ""',
        "test_everybody_sees_and_forgets_their_own",
    ),
    (
        "a vote that only its sender may see is stored as such",
        "serving/votes.py",
        'trains = ballot.visible_to == "training"',
        "trains = True",
        "test_a_vote_is_stored_as_it_was_said_and_once",
    ),
]

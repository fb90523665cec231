"""The store of what people say: once, their own, and gone for good."""

import sqlite3
import threading
from pathlib import Path

import pytest

from cluster.feedback import Forgotten, Store, Taken, for_training

SECRET = "tell nobody of the harvest moon"


def test_a_vote_is_kept_once_whatever_a_client_repeats(tmp_path: Path) -> None:
    store = Store(tmp_path / "run" / "feedback.sqlite3")
    assert store.of("alice") == []
    assert not store.path.exists()  # whoever only looks makes nothing
    said = {"kind": "up", "answers": [{"text": "月"}]}
    assert store.add("alice", "f1", "c1", said, trains=True)
    assert not store.add("alice", "f1", "c1", {"answers": [{"text": "月"}], "kind": "up"}, trains=True)
    for other, conversation, trains in (({"kind": "down"}, "c1", True), (said, "c2", True), (said, "c1", False)):
        with pytest.raises(Taken):
            store.add("alice", "f1", conversation, other, trains=trains)
    assert store.add("bob", "f1", "c1", {"kind": "down"}, trains=True)  # ids are each owner's
    assert [(vote.owner, vote.id, vote.said) for vote in store.of("alice")] == [("alice", "f1", said)]


def test_everybody_has_their_own_alone(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.sqlite3")
    for owner, name, conversation in (("alice", "1", "c1"), ("alice", "2", "c2"), ("bob", "3", "c1"), ("", "4", "c1")):
        store.add(owner, name, conversation, {}, trains=True)
    assert [vote.id for vote in store.of("alice")] == ["1", "2"]
    assert [vote.id for vote in store.of("alice", "c1")] == ["1"]
    assert [vote.id for vote in store.of("")] == ["4"]
    assert store.forget("bob", conversation="c2") == 0
    assert store.forget("bob", vote="1") == 0
    assert [vote.id for vote in store.of("alice")] == ["1", "2"]


def test_what_is_forgotten_is_in_no_byte_and_does_not_come_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "feedback.sqlite3")
    for number in range(40):
        store.add("alice", f"f{number}", "c1", {"text": SECRET * 50}, trains=True)
    store.add("alice", "g1", "c2", {"text": SECRET}, trains=True)
    store.add("alice", "g2", "c2", {"text": "kept"}, trains=True)
    assert SECRET.encode() in stored(tmp_path)
    assert store.forget("alice", conversation="c1") == 40
    assert store.forget("alice", vote="g1") == 1
    assert SECRET.encode() not in stored(tmp_path)
    for name, conversation in (("f1", "c1"), ("new", "c1"), ("g1", "c2"), ("g1", "c9")):
        with pytest.raises(Forgotten):
            store.add("alice", name, conversation, {"text": SECRET}, trains=True)
    assert [vote.id for vote in store.of("alice")] == ["g2"]
    assert store.add("bob", "f1", "c1", {}, trains=True)  # another's conversation of the same name


def stored(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_what_only_its_sender_may_see_trains_nobody(tmp_path: Path) -> None:
    path = tmp_path / "a folder?" / "feedback.sqlite3"
    store = Store(path)
    store.add("bob", "1", "c1", {"n": 1}, trains=True)
    store.add("alice", "2", "c1", {"n": 2}, trains=False)
    store.add("alice", "3", "c1", {"n": 3}, trains=True)
    assert [(vote.owner, vote.said["n"]) for vote in for_training(path)] == [("alice", 3), ("bob", 1)]
    assert [vote.said["n"] for vote in store.of("alice")] == [2, 3]


def test_several_may_write_at_once_and_one_read_meanwhile(tmp_path: Path) -> None:
    stores = [Store(tmp_path / "feedback.sqlite3") for _ in range(4)]  # as of four processes

    def write(number: int) -> None:
        for each in range(20):
            stores[number].add("", f"{number}-{each % 10}", "c", {"n": number}, trains=True)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(for_training(tmp_path / "feedback.sqlite3")) == 40
    with sqlite3.connect(tmp_path / "feedback.sqlite3") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="none.sqlite3: no feedback has been stored here"):
        for_training(tmp_path / "none.sqlite3")
    (tmp_path / "text").write_text("月" * 200)
    with pytest.raises(OSError, match="text: file is not a database"):
        for_training(tmp_path / "text")


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what is forgotten leaves no byte",
        "cluster/people/database.py",
        'connection.execute("PRAGMA secure_delete = ON")',
        'connection.execute("PRAGMA secure_delete = OFF")',
        "test_what_is_forgotten_is_in_no_byte_and_does_not_come_back",
    ),
    (
        "what is forgotten does not come back by a client that repeats itself",
        "cluster/feedback.py",
        'gone = "SELECT 1 FROM forgotten WHERE owner = ? AND digest IN (?, ?)"',
        'gone = "SELECT 1 FROM forgotten WHERE owner = ? AND digest IN (?, ?) AND 0"',
        "test_what_is_forgotten_is_in_no_byte_and_does_not_come_back",
    ),
    (
        "nobody forgets for another",
        "cluster/feedback.py",
        'f"DELETE FROM votes WHERE owner = ? AND {column} = ?"',
        'f"DELETE FROM votes WHERE (owner = ? OR 1) AND {column} = ?"',
        "test_everybody_has_their_own_alone",
    ),
    (
        "what only its sender may see trains nobody",
        "cluster/feedback.py",
        '_selected("trains = 1")',
        '_selected("trains >= 0")',
        "test_what_only_its_sender_may_see_trains_nobody",
    ),
]

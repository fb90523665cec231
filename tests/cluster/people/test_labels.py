"""What awaits ranks and what people gave: known by what it holds, kept through everything, each owner's newest."""

import sqlite3
import subprocess
import sys
from pathlib import Path

from cluster.people.labels import FILE, Item, Label, Labels, places

ASKED = [{"role": "user", "content": "春"}]
ONE = Item(ASKED, ("a", "b", "c"), ("helpful", "clear"))
OTHER = Item(ASKED, ("a", "b"), ("helpful",))


def test_places_are_how_many_are_better_and_ties_stay_ties() -> None:
    assert places([7, 2, 7, 9]) == [1, 0, 1, 3]


def test_a_label_outlives_the_sets_that_ask_for_its_item(tmp_path: Path) -> None:
    store = Labels(tmp_path / FILE)
    assert (store.items(), store.given(), store.asked("rank")) == ([], {}, ("", None))
    assert not (tmp_path / FILE).exists()
    store.ask("rank", [ONE, OTHER], key="k1", more={"q": [1]})
    store.ask("file", [ONE])
    assert store.items() == [ONE, OTHER] and store.items("rank") == [ONE, OTHER] and store.items("file") == [ONE]
    assert store.asked("rank") == ("k1", {"q": [1]})
    store.give(Label("alice", ONE.id, {"helpful": [0, 1, 1]}, created=5.0), Label("", ONE.id, {}, skipped=True))
    store.ask("rank", [OTHER], key="k2")
    store.ask("file", [])
    assert store.items() == [OTHER] and len(store.given()[ONE.id]) == 2
    store.ask("rank", [Item(ASKED, ONE.texts, ("clear",))])  # the same under another principle
    assert [item.id for item in store.items()] == [ONE.id]
    assert store.given("alice") == {ONE.id: [Label("alice", ONE.id, {"helpful": [0, 1, 1]}, created=5.0)]}


def test_everybody_has_one_label_and_it_is_the_newest(tmp_path: Path) -> None:
    store = Labels(tmp_path / FILE)
    store.give(Label("alice", "i", {"helpful": [0, 1]}), Label("bob", "i", {"helpful": [1, 0]}))
    store.give(Label("alice", "i", {"helpful": [0, 0]}, comment="both"))
    assert [(label.owner, label.ranks["helpful"], label.comment) for label in store.given()["i"]] == [
        ("alice", [0, 0], "both"), ("bob", [1, 0], ""),
    ]  # fmt: skip
    assert store.forget("alice", "i") and not store.forget("alice", "i")
    assert [label.owner for label in store.given()["i"]] == ["bob"]


def test_what_was_given_is_there_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from cluster.people.labels import *\n"
        "Labels(Path(sys.argv[1])).give(Label('a', 'i', {'clear': [0, 1]})); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / FILE)])
    assert done.returncode == -9
    assert Labels(tmp_path / FILE).given()["i"][0].ranks == {"clear": [0, 1]}
    with sqlite3.connect(tmp_path / FILE) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a set that asks for something else leaves the labels",
        "cluster/people/labels.py",
        'connection.execute("DELETE FROM items WHERE source = ?", (source,))',
        'connection.execute("DELETE FROM items WHERE source = ?", (source,)); connection.execute("DELETE FROM labels")',
        "test_a_label_outlives_the_sets_that_ask_for_its_item",
    ),
    (
        "answers that tie have the same place",
        "cluster/people/labels.py",
        "sum(other < own for other in given)",
        "sum(other <= own for other in given) - 1",
        "test_places_are_how_many_are_better_and_ties_stay_ties",
    ),
]

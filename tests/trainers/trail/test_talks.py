"""A conversation that is forgotten is gone from the store, and every stage that was made of it is named, old or new."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.feedback import Forgotten, Store
from cluster.people.heard import digest
from cluster.run import open_stage, read_manifest
from conf.errors import InputError
from conf.knobs.alignment import Judges, Rank, Tasks
from conf.knobs.running import Run
from conf.knobs.text import Forget
from conf.schema import Config
from rlhf import rank
from trainers import forget, tasks


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    """Of a run whose rankings have heard two conversations, one of them of somebody with a key."""
    run, judges = Run(name="mine", dir=str(tmp_path)), Rank(judges=[Judges.feedback])
    cfg = Config(run=run, rank=judges, tasks=Tasks(domain="tests.rlhf.toy"))
    store = Store(cfg.run.folder / "feedback.sqlite3")
    for owner, conversation in (("", "c1"), ("alice", "c2")):
        messages = [{"role": "user", "content": conversation}]
        said = {"kind": "correction", "messages": messages, "answers": [{"text": "a"}], "correction": "b"}
        store.add(owner, f"v-{conversation}", conversation, said, trains=True)
    store.close()
    rank.main(cfg)
    return cfg


def made(cfg: Config, name: str, reads: Sequence[str], **more: Any) -> list[str]:
    """What the manifest of a stage, made of these, says that it has heard."""
    with open_stage(cfg, name, reads=reads, settings={}, **more) as stage:
        stage.finish({})
    found: list[str] = read_manifest(cfg.run.folder / name).get("heard", [])
    return found


def test_what_was_made_of_a_conversation_is_named_after_its_rankings_are_made_again(cfg: Config) -> None:
    both = sorted(map(digest, ("c1", "alice/c2")))
    assert made(cfg, "tasks", []) == []
    assert made(cfg, "reward", ["ranked"]) == both
    assert made(cfg, "rl", ["reward", "tasks"]) == both  # it has read no ranking itself
    other = replace(cfg, run=replace(cfg.run, name="other"))
    assert made(other, "parent", [], outside=[cfg.run.folder / "rl"]) == both
    told = forget.main(replace(cfg, forget=Forget(conversations=["alice/c2"])))
    rank.main(cfg)
    again = replace(cfg, run=replace(cfg.run, rebuild=True))
    assert made(again, "reward", ["ranked"]) == [digest("c1")]
    assert told[:5] == [
        "forgotten: 1 votes of alice/c2",
        *(f"seen by {stage}: made of what was said in alice/c2" for stage in ("ranked", "reward", "rl")),
        f"seen by {other.run.folder / 'parent'}: made of what was said in alice/c2",
    ]
    assert "alice" not in (cfg.run.folder / "rl" / "manifest.json").read_text("utf-8")
    # asked again, the store has nothing, and what is older than the rankings still says so
    told = forget.main(replace(cfg, forget=Forget(conversations=["alice/c2"])))
    assert [line for line in told if line.startswith(("forgotten", "seen by r"))] == [
        "forgotten: 0 votes of alice/c2",
        *(f"seen by {stage}: made of what was said in alice/c2" for stage in ("reward.replaced-1", "rl")),
    ]


def test_what_is_forgotten_comes_neither_back_nor_into_rankings(cfg: Config) -> None:
    forget.main(replace(cfg, forget=Forget(conversations=["c1"])))
    store = Store(cfg.run.folder / "feedback.sqlite3")
    with pytest.raises(Forgotten):
        store.add("", "v9", "c1", {}, trains=True)
    assert [vote.conversation for vote in store.of("alice")] == ["c2"] and store.of("") == []
    assert rank.main(cfg)["queries"] == 1
    with pytest.raises(InputError, match=r"forget\.conversations=c3: neither .*sqlite3 nor any stage in .* knows it"):
        forget.main(replace(cfg, forget=Forget(conversations=["c3"])))


def test_corrections_that_are_learnt_as_samples_hand_on_whose_they_are(cfg: Config) -> None:
    cfg.sft.files = [str(cfg.run.folder / "ranked" / "corrections.jsonl")]
    tasks.main(cfg)
    manifest = read_manifest(cfg.run.folder / "tasks")
    assert manifest["heard"] == sorted(map(digest, ("c1", "alice/c2")))


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a model says whose feedback it was made of after the rankings are made again",
        "cluster/run.py",
        'made_of = [*(self.folder.parent / name for name in self._intent["inputs"]), *self._outside]',
        "made_of = [*self._outside]",
        "test_what_was_made_of_a_conversation_is_named_after_its_rankings_are_made_again",
    ),
    (
        "a conversation that is forgotten by its name is gone from the store",
        "trainers/trail/talks.py",
        "count = store.forget(owner, conversation=conversation) if store else 0",
        "count = len(store.of(owner, conversation)) if store else 0",
        "test_what_is_forgotten_comes_neither_back_nor_into_rankings",
    ),
    (
        "samples made of corrections say whose they are",
        "trainers/tasks.py",
        "outside=folders([*own, *asked])",
        "outside=[]",
        "test_corrections_that_are_learnt_as_samples_hand_on_whose_they_are",
    ),
]

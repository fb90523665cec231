"""From what people said to rankings and samples, and what a conversation that is forgotten leaves."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.feedback import Store
from cluster.run import read_manifest
from conf.entry import compose
from conf.errors import InputError
from conf.knobs.alignment import Judges, Tasks
from conf.knobs.running import Run
from conf.schema import Config
from rlhf import rank
from rlhf.judges.feedback import told
from tests.rlhf import toy
from trainers.files.rankings import judged, read_rankings
from trainers.files.samples import read_samples

ASKED = [{"role": "user", "content": "春"}]
LONGER = [*ASKED, {"role": "assistant", "content": "花"}, {"role": "user", "content": "再来"}]


def vote(kind: str, *texts: str, messages: list[dict[str, str]] = ASKED, **more: Any) -> dict[str, Any]:
    answers = [{"text": text, "finished": not text.endswith("…"), "sampling": {}} for text in texts]
    return {"kind": kind, "messages": messages, "answers": answers, **more}


def stored(path: Path, *votes: dict[str, Any], conversation: str = "c1", trains: bool = True, owner: str = "") -> Store:
    store = Store(path)
    before = len(store.of(owner))
    for number, said in enumerate(votes, before):
        store.add(owner, f"{owner}{number}", conversation, said, trains=trains)
    return store


def pairs(path: Path, principle: str | None = None) -> list[tuple[str, str, list[int | None]]]:
    """(the two texts, their places) of each ranking, in total or under a principle."""
    lines = told(path, toy.PRINCIPLES).rankings
    texts = [[answer["text"] for answer in line["answers"]] for line in lines]
    return [(a, b, judged(line["answers"], principle)[0]) for (a, b), line in zip(texts, lines, strict=True)]


def test_the_one_that_was_picked_is_better_in_all_and_under_its_principle(tmp_path: Path) -> None:
    stored(tmp_path / "f", vote("better", "a", "b", better=1, principle="letters"), vote("better", "c", "d", better=0))
    assert pairs(tmp_path / "f") == [("b", "a", [0, 1]), ("c", "d", [0, 1])]
    assert pairs(tmp_path / "f", "letters") == [("b", "a", [0, 1]), ("c", "d", [None, None])]
    assert pairs(tmp_path / "f", "ended") == [("b", "a", [None, None]), ("c", "d", [None, None])]


def test_more_than_half_decide_and_a_draw_is_a_tie(tmp_path: Path) -> None:
    one, other = vote("better", "a", "b", better=0), vote("better", "b", "a", better=0, principle="ended")
    stored(tmp_path / "f", one, other)
    assert pairs(tmp_path / "f") == [("a", "b", [0, 0])]
    assert pairs(tmp_path / "f", "ended") == [("a", "b", [1, 0])]
    stored(tmp_path / "f", other)
    assert pairs(tmp_path / "f") == [("a", "b", [1, 0])]
    line = told(tmp_path / "f", toy.PRINCIPLES).rankings[0]
    assert [answer["total"] for answer in line["answers"]] == [0.3333, 0.6667]
    assert [a["judges"]["feedback"]["votes"] for a in line["answers"]] == [{"better": 1, "worse": 2}, {"worse": 1, "better": 2}]  # fmt: skip  # noqa: E501


def test_thumbs_compare_where_one_is_up_and_one_down_in_the_same_conversation(tmp_path: Path) -> None:
    other = [{"role": "user", "content": "秋"}]
    stored(
        tmp_path / "f",
        vote("up", "a", principle="letters"), vote("up", "b"), vote("down", "c", principle="letters"),
        vote("down", "a"),  # of the same text somebody else thought well
        vote("up", "x", messages=other), vote("comment", "y", messages=other, comment="hm"),
    )  # fmt: skip
    assert pairs(tmp_path / "f") == [("a", "c", [0, 1]), ("b", "c", [0, 1]), ("b", "a", [0, 1])]
    assert pairs(tmp_path / "f", "letters")[0] == ("a", "c", [0, 1])
    assert pairs(tmp_path / "f", "letters")[1] == ("b", "c", [None, None])


def test_a_correction_is_better_than_what_it_corrects_and_a_sample(tmp_path: Path) -> None:
    stored(tmp_path / "f", vote("correction", "花…", messages=LONGER, correction="花开"), owner="alice")
    found = told(tmp_path / "f", toy.PRINCIPLES)
    (line,) = found.rankings
    assert [(a["text"], a["rank"], a["finished"]) for a in line["answers"]] == [("花开", 0, True), ("花…", 1, False)]
    file = tmp_path / "corrections.jsonl"
    file.write_text("".join(json.dumps(sample) + "\n" for sample in found.samples), "utf-8")
    (sample,) = read_samples(file)
    assert [turn["content"] for turn in sample.messages] == ["春", "花", "再来", "花开"]
    assert sample.muted == (1,)  # what the model itself said before is not learnt
    assert found.metrics == {"feedback/votes": 1, "feedback/conversations": 1, "feedback/corrections": 1}
    assert list(found.conversations) == ["alice/c1"]


def config(place: Path) -> Config:
    """Of the command in docs/serving.md, in another run."""
    cfg = compose("run.name=demo rank.judges=[feedback]".split())
    assert (cfg.rank.judges, cfg.rank.feedback) == ([Judges.feedback], "")
    cfg.run, cfg.tasks = Run(name="mine", dir=str(place)), Tasks(domain="tests.rlhf.toy")
    return cfg


def test_the_stage_ranks_what_people_said_and_forgets_what_they_forget(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    with pytest.raises(InputError, match=r"rank.judges has feedback, and .*/mine/feedback.sqlite3 is not there"):
        rank.main(cfg)
    path = cfg.run.folder / "feedback.sqlite3"
    store = stored(path, vote("better", "a", "b", better=1, principle="ended"))
    stored(path, vote("correction", "b", correction="c"), conversation="c2")
    stored(path, vote("better", "p", "q", better=0), conversation="c3", trains=False)
    metrics = rank.main(cfg)
    assert {
        "queries": 2,
        "answers": 4,
        "pairs": 2,
        "feedback/conversations": 2,
        "ended": 0.5,
    }.items() <= metrics.items()
    ranked = cfg.run.folder / "ranked"
    assert len(read_rankings(ranked / "rankings.jsonl", toy.PRINCIPLES)) == 2
    assert list(read_manifest(ranked)["config"]["feedback"]["conversations"]) == ["c1", "c2"]
    before = (ranked / "manifest.json").read_bytes()
    assert rank.main(cfg) == metrics
    assert (ranked / "manifest.json").read_bytes() == before  # done
    store.forget("", conversation="c2")
    assert rank.main(cfg)["pairs"] == 1
    assert (ranked / "corrections.jsonl").read_text("utf-8") == ""
    assert list(read_manifest(ranked)["config"]["feedback"]["conversations"]) == ["c1"]
    assert not list(cfg.run.folder.glob("ranked?*"))  # and the old rankings lie nowhere
    store.forget("", conversation="c1")
    with pytest.raises(InputError, match="its 0 votes compare no two answers yet"):
        rank.main(cfg)


def test_another_runs_votes_and_what_others_ranked_before(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    cfg.rank.feedback = str(tmp_path / "other.sqlite3")
    stored(tmp_path / "other.sqlite3", vote("better", "a", "b", better=1)).close()
    rank.main(cfg)
    moved = tmp_path / "moved.sqlite3"
    (tmp_path / "other.sqlite3").rename(moved)
    cfg.rank.feedback = str(moved)
    before = (cfg.run.folder / "ranked" / "manifest.json").read_bytes()
    rank.main(cfg)  # the same votes, wherever they lie
    assert (cfg.run.folder / "ranked" / "manifest.json").read_bytes() == before
    cfg.rank.weights = {"feedback": 2.0}
    with pytest.raises(InputError, match="rank.weights.feedback: people judge the answers that they were given"):
        rank.main(cfg)


def test_a_store_is_no_reason_to_throw_away_what_others_ranked(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    stored(cfg.run.folder / "feedback.sqlite3", vote("better", "a", "b", better=1))
    rank.main(cfg)
    path = cfg.run.folder / "ranked" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert rank._only_people(cfg)
    from cluster.storage import write_manifest

    manifest.pop("sealed")
    manifest["config"]["rank"]["judges"] = ["rules"]
    write_manifest(path.parent, manifest)
    assert not rank._only_people(cfg)
    with pytest.raises(InputError, match="run.rebuild=true to set the old one aside"):
        rank.main(cfg)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "who is picked is the better one",
        "rlhf/judges/feedback.py",
        'yield Better(texts[said["better"]], texts[1 - said["better"]], said.get("principle"))',
        'yield Better(texts[0], texts[1], said.get("principle"))',
        "test_the_one_that_was_picked_is_better_in_all_and_under_its_principle",
    ),
    (
        "people who disagree make a tie",
        "rlhf/judges/feedback.py",
        '"rank": int(_of(shares[ALL], own) < 0.5)',
        '"rank": int(_of(shares[ALL], own) <= 0.5 and own)',
        "test_more_than_half_decide_and_a_draw_is_a_tie",
    ),
    (
        "of a correction only itself is learnt",
        "rlhf/judges/feedback.py",
        '{**turn, "weight": 0}',
        '{**turn, "weight": 1}',
        "test_a_correction_is_better_than_what_it_corrects_and_a_sample",
    ),
    (
        "rankings are made again once a conversation is forgotten",
        "rlhf/rank.py",
        '{"feedback": {"conversations": people.conversations}} if people else {}',
        "{}",
        "test_the_stage_ranks_what_people_said_and_forgets_what_they_forget",
    ),
    (
        "what others ranked is not thrown away unasked",
        "rlhf/rank.py",
        "measures=_only_people(cfg)",
        "measures=True",
        "test_a_store_is_no_reason_to_throw_away_what_others_ranked",
    ),
]

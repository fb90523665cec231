"""People's ranks as a judge's opinion, by hand; the stage that waits for them; the same as JSONL, out and in."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.people.labels import FILE, Item, Label, Labels
from cluster.run import read_manifest
from conf.errors import InputError
from conf.knobs.alignment import Judges, Rank
from conf.knobs.alignment import Label as Files
from conf.knobs.running import Run
from conf.schema import Config
from moe.tasks.task import Sample
from rlhf import rank
from rlhf.judges import label
from rlhf.judges.opinions import Asked
from rlhf.judges.people import People, item_of, opinion
from rlhf.rank import ranking
from tests.rlhf import toy
from tests.rlhf.test_rank import begun
from trainers.files.rankings import judged, read_rankings

QUERY = Sample(id="q", task="form", messages=[{"role": "user", "content": "?"}])
NAMES = ("helpful", "clear")


def of(*texts: str) -> Asked:
    return Asked(QUERY, [{"text": text, "finished": True} for text in texts])


def by(owner: str, asked: Asked, **more: Any) -> Label:
    return Label(owner, item_of(asked, NAMES).id, **{"ranks": {}, "created": 0.0, **more})


def test_one_persons_ranks_are_the_ranking_to_the_letter() -> None:
    asked = of("a", "b", "c", "a")  # one text twice: three were shown
    said = by("alice", asked, ranks={"helpful": [1, 0, 1], "clear": [2, 0, 1]}, comment="hm")
    made = ranking(asked, {"people": opinion(asked, [said], NAMES)}, Rank(margin=0.9))  # theirs is no margin
    assert [answer["ranks"] for answer in made["answers"]] == [
        {"helpful": 1, "clear": 2}, {"helpful": 0, "clear": 0}, {"helpful": 1, "clear": 1}, {"helpful": 1, "clear": 2},
    ]  # fmt: skip
    # better than two of the three others and tied with none; tied with both others and worse than one
    assert [answer["scores"]["helpful"] for answer in made["answers"]] == [0.3333, 1.0, 0.3333, 0.3333]
    assert [answer["rank"] for answer in made["answers"]] == [2, 0, 1, 2]
    assert made["answers"][2]["judges"]["people"]["by"] == {"alice": {"helpful": 1, "clear": 1}}
    assert made["said"]["people"] == [
        {
            "by": "alice",
            "at": "1970-01-01T00:00:00+00:00",
            "ranked": {"helpful": [1, 0, 1], "clear": [2, 0, 1]},
            "comment": "hm",
        }
    ]


def test_of_several_people_the_mean_counts_and_who_skips_says_nothing() -> None:
    asked = of("a", "b", "c")
    said = [
        by("alice", asked, ranks={"helpful": [0, 1, 2]}),
        by("bob", asked, ranks={"helpful": [1, 0, 2]}),
        by("carol", asked, skipped=True),
    ]
    found = opinion(asked, said, NAMES)
    assert found.scores == {"helpful": [0.75, 0.75, 0.0]}
    assert found.missing == {"clear": "skipped"}
    assert opinion(asked, [], NAMES).missing == dict.fromkeys(NAMES, "nobody has ranked it")
    alone = opinion(of("a", "a"), [], NAMES)
    assert alone.scores == {name: [0.5, 0.5] for name in NAMES} and not alone.missing


def test_what_people_agree_in_is_told(tmp_path: Path) -> None:
    asked = [of("a", "b", "c")]
    labels = [by(who, asked[0], ranks={"helpful": [0, 1, 2]}) for who in ("alice", "bob")]
    people = People(Labels(tmp_path / FILE), {labels[0].item: labels})
    _, metrics = people.opinions([*asked, of("x", "y")], NAMES)
    assert metrics == {"people/labels": 2, "people/skipped": 0, "people/waiting": 1, "people/alpha": 1.0}


TEXTS = {"春春": ["一", "二", "一"], "春春春": ["甲", "乙", "丙"], "春春春春": ["同", "同", "同"]}


def waiting(place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, list[int]]:
    """A run that is to be ranked by people, whose answers are `TEXTS`; how often they were sampled."""
    cfg = begun(place, "", [Judges.people])
    times: list[int] = []

    def answered(queries: Any, *_: Any) -> dict[str, list[dict[str, Any]]]:
        times.append(1)
        return {
            query.sample.id: [{"text": text, "finished": True} for text in TEXTS[query.sample.prompt]]
            for query in queries
        }

    monkeypatch.setattr(rank, "answered", answered)
    monkeypatch.setattr(rank, "connect", lambda cluster: None)
    return cfg, times


def test_the_stage_waits_for_people_and_goes_on_without_sampling_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, times = waiting(tmp_path, monkeypatch)
    with pytest.raises(InputError, match="who have seen 0 of 2 queries: python -m serving.serve has a page"):
        rank.main(cfg)
    store = Labels(cfg.run.folder / FILE)
    first, second = store.items()  # what has one text alone is not asked for
    assert (first.texts, second.texts, first.principles) == (("一", "二"), ("甲", "乙", "丙"), toy.PRINCIPLES)
    store.give(Label("alice", first.id, {"letters": [1, 0]}))
    with pytest.raises(InputError, match=r"seen 1 of 2 queries.*or now with what there is: rank.labelled=0.5$"):
        rank.main(cfg)
    store.give(Label("alice", second.id, {}, skipped=True))
    metrics = rank.main(cfg)
    assert len(times) == 1
    assert {"people/labels": 2, "people/skipped": 1, "people/waiting": 1}.items() <= metrics.items()
    path = cfg.run.folder / "ranked" / "rankings.jsonl"
    lines = {line["messages"][-1]["content"]: line for line in map(json.loads, path.read_text("utf-8").splitlines())}
    assert [answer["ranks"] for answer in lines["春春"]["answers"]] == [{"letters": 1}, {"letters": 0}, {"letters": 1}]
    assert lines["春春"]["unjudged"] == {"people": {"ended": "nobody has ranked it"}}
    assert lines["春春春"]["unjudged"] == {"people": {"letters": "skipped", "ended": "skipped"}}
    assert [answer["ranks"] for answer in lines["春春春"]["answers"]] == [{}] * 3
    assert [answer["ranks"] for answer in lines["春春春春"]["answers"]] == [{"letters": 0, "ended": 0}] * 3
    records = read_rankings(path, toy.PRINCIPLES)
    assert [judged(record["answers"], "letters")[0] for record in records] == [[1, 0, 1], [None] * 3, [0] * 3]
    before = (path.parent / "manifest.json").read_bytes()
    assert rank.main(cfg) == metrics and (path.parent / "manifest.json").read_bytes() == before  # done
    # somebody thinks again: made again, and nobody is asked
    store.give(Label("alice", first.id, {"letters": [0, 1]}))
    rank.main(cfg)
    assert len(times) == 1 and (path.parent / "manifest.json").read_bytes() != before
    assert first.id in read_manifest(path.parent)["config"]["people"]
    # other answers are other items: their labels are asked for anew
    cfg.rank = replace(cfg.rank, temperatures=[0.5], labelled=0.0)
    rank.main(cfg)
    assert len(times) == 2


def test_jsonl_goes_out_and_comes_back_as_it_was(tmp_path: Path) -> None:
    here, there = (Config(run=Run(name=name, dir=str(tmp_path))) for name in ("here", "there"))
    store, asked = (
        Labels(here.run.folder / FILE),
        [{"role": "system", "content": "s"}, {"role": "user", "content": "?"}],
    )
    one, other, third = (
        Item(asked, texts, ("helpful", "clear")) for texts in (("a", "b", "c"), ("d", "e"), ("f", "g"))
    )
    store.ask("rank", [one, other, third])
    store.give(
        Label("alice", one.id, {"helpful": [1, 0, 1]}, comment="hm", created=7.0),
        Label("bob", one.id, {"clear": [0, 1, 2]}, created=8.0),
        Label("bob", other.id, {}, skipped=True, created=9.0),
    )
    here.label = Files(out=str(tmp_path / "out.jsonl"))
    assert label.main(here) == {"waiting": 1, "ranked": 2, "skipped": 1}
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert [line["status"] for line in lines] == ["ranked", "ranked", "skipped", "waiting"]
    assert lines[0] | {"id": ""} == {
        "id": "", "query": "?", "messages": asked, "answers": ["a", "b", "c"], "principles": ["helpful", "clear"],
        "status": "ranked", "annotator": "alice", "at": 7.0, "ranks": {"helpful": [2, 1, 2]}, "comment": "hm",
    }  # fmt: skip
    there.label = Files(files=[str(tmp_path / "out.jsonl")])
    assert label.main(there) == {"waiting": 1, "ranked": 2, "skipped": 1}
    again = Labels(there.run.folder / FILE)
    assert again.items() == store.items() and again.given() == store.given()


def test_the_least_that_another_tool_must_say(tmp_path: Path) -> None:
    cfg = Config(run=Run(name="r", dir=str(tmp_path)), label=Files(files=[str(tmp_path / "tool.jsonl")]))
    line = {"query": "?", "answers": [{"text": "a"}, {"text": "b"}], "ranks": {"helpful": [9, 3]}}
    (tmp_path / "tool.jsonl").write_text(json.dumps(line) + "\n\n", "utf-8")
    label.main(cfg)
    store = Labels(cfg.run.folder / FILE)
    ((said,),) = store.given().values()
    assert (said.owner, said.ranks, store.items()[0].principles) == ("tool", {"helpful": [1, 0]}, ("helpful",))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"answers": ["a", "a"]}, "answers must be two or more different texts"),
        ({"answers": ["a", 5]}, "answers must be two or more different texts"),
        ({"query": None}, "messages, or query: messages[0].content=None must be a string"),
        ({"ranks": {"helpful": [1]}}, "ranks.helpful must be 2 whole numbers, one for each answer"),
        ({"ranks": {"helpful": [1, True]}}, "ranks.helpful must be 2 whole numbers, one for each answer"),
        ({"principles": ["clear"]}, "ranks.helpful is none of its principles clear"),
        ({"status": "skipped"}, "ranks must be places by principle, of a query that is not skipped"),
        ({"ranks": {}}, "principles must be a list of names; it is what the answers are ranked under"),
    ],
)
def test_a_line_that_is_none_is_named_and_nothing_of_its_file_is_kept(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    good = {"query": "?", "answers": ["a", "b"], "ranks": {"helpful": [1, 2]}}
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(good | change) + "\n", "utf-8")
    store = Labels(tmp_path / FILE)
    with pytest.raises(InputError) as refused:
        label.take(store, path)
    assert str(refused.value) == f"{path}:2: {told}"
    assert store.given() == {} and store.items() == []


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "people's ranks are kept without a margin",
        "rlhf/rank.py",
        'EXACT if judge == "people" else cfg.margin',
        "cfg.margin",
        "test_one_persons_ranks_are_the_ranking_to_the_letter",
    ),
    (
        "who skips a query says nothing of its answers",
        "rlhf/judges/people.py",
        'missing[name] = "skipped" if any(label.skipped for label in labels) else "nobody has ranked it"',
        "scores[name] = [0.5] * len(own)",
        "test_of_several_people_the_mean_counts_and_who_skips_says_nothing",
    ),
    (
        "people are asked once about the same answers",
        "rlhf/judges/people.py",
        "if before == wanted:",
        "if False:",
        "test_the_stage_waits_for_people_and_goes_on_without_sampling_again",
    ),
    (
        "a file of ranks with a bad line changes nothing",
        "rlhf/judges/label.py",
        "            labels.append(label)\n",
        "            labels.append(label)\n            store.give(label)\n",
        "test_a_line_that_is_none_is_named_and_nothing_of_its_file_is_kept",
    ),
]

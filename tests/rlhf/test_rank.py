"""What judges' opinions on the answers to a query come to, and the stage that asks them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.run import open_stage, read_manifest
from conf.entry import compose
from conf.errors import InputError
from conf.knobs.alignment import Judges, Rank, Tasks
from conf.knobs.running import Cluster
from conf.schema import Config
from moe.tasks.task import Sample, Source, Verdict
from rlhf import rank
from rlhf.judges import rules
from rlhf.judges.opinions import Asked, Opinion
from rlhf.rank import decisive, ranking, summary
from tests.rlhf import toy
from tests.rlhf.graphs import Before
from tests.rlhf.judges.scripted import Said, by_length, config, serving, shown
from tests.rlhf.tiny import save_chat
from tests.rlhf.workers import Mortal
from trainers.files.rankings import judged, read_rankings

QUERY = Sample(id="q", task="form", messages=[{"role": "user", "content": "?"}], label="five", fields={"mine": 1})
NAMES = ("helpful", "clear")


def judge(query: Sample, text: str, finished: bool) -> Verdict:
    """Right answers are helpful, answers of one word clear."""
    right = float(text == query.label)
    return Verdict(
        {"helpful": right, "clear": 1 / len(text.split()) ** 0.5849625}, right, reasons=() if right else ("no",)
    )


def of(*texts: str) -> Asked:
    return Asked(QUERY, [{"text": text, "finished": True} for text in texts])


def test_places_are_given_in_total_and_under_each_principle_and_near_scores_tie() -> None:
    asked = of("five", "six", "five hm", "six hm")
    opinions = {"rules": rules.opinions([asked], judge, NAMES)[0]}
    made = ranking(asked, opinions, Rank(margin=0.4))
    assert (made["id"], made["label"], made["mine"]) == ("q", "five", 1)
    found = made["answers"]
    assert [answer["scores"] for answer in found] == [
        {"helpful": 1.0, "clear": 1.0},
        {"helpful": 0.0, "clear": 1.0},
        {"helpful": 0.0, "clear": 0.6667},
        {"helpful": 0.0, "clear": 0.6667},
    ]
    assert [answer["ranks"]["helpful"] for answer in found] == [0, 1, 1, 1]
    assert [answer["ranks"]["clear"] for answer in found] == [0, 0, 0, 0]  # a third is less than the margin
    assert [answer["rank"] for answer in found] == [0, 1, 1, 1]
    assert [answer["reasons"] for answer in found] == [[], ["no"], ["no"], ["no"]]
    assert summary([{"answers": found}], NAMES)["pairs"] == 3
    finer = ranking(asked, opinions, Rank(margin=0.1))["answers"]
    assert [answer["ranks"]["clear"] for answer in finer] == [0, 0, 2, 2]
    assert [answer["total"] for answer in finer] == pytest.approx([1.0, 0.5, 1 / 3, 1 / 3], abs=1e-3)


def test_the_rules_alone_write_the_line_that_they_always_wrote() -> None:
    """To the byte: what was ranked before there were other judges stays what it was."""
    asked = of("five", "six hm")
    line = ranking(asked, {"rules": rules.opinions([asked], judge, NAMES)[0]}, Rank())
    assert json.dumps(line) == (
        '{"id": "q", "task": "form", "messages": [{"role": "user", "content": "?"}], "label": "five", "mine": 1, '
        '"answers": [{"text": "five", "finished": true, "scores": {"helpful": 1.0, "clear": 1.0}, "total": 1.0, '
        '"reasons": [], "rank": 0, "ranks": {"helpful": 0, "clear": 0}}, {"text": "six hm", "finished": true, '
        '"scores": {"helpful": 0.0, "clear": 0.6667}, "total": 0.3333333334999558, "reasons": ["no"], "rank": 1, '
        '"ranks": {"helpful": 1, "clear": 1}}]}'
    )


def test_each_answer_says_which_judge_gave_which_rank_and_why() -> None:
    asked = of("five", "six")
    why: list[dict[str, Any]] = [
        {"model": "m", "votes": {"clear": {"better": 0, "tied": 0, "worse": 2, "contradicted": 0}}},
        {"model": "m"},
    ]
    ai = Opinion({"clear": [0.0, 1.0]}, why, {"helpful": "4 replies had another form"})
    line = ranking(asked, {"rules": rules.opinions([asked], judge, NAMES)[0], "ai": ai}, Rank(weights={"ai": 3.0}))
    assert line["unjudged"] == {"ai": {"helpful": "4 replies had another form"}}
    first, second = line["answers"]
    assert first["judges"] == {
        "rules": {
            "scores": {"helpful": 1.0, "clear": 1.0},
            "total": 1.0,
            "reasons": [],
            "rank": 0,
            "ranks": {"helpful": 0, "clear": 0},
        },
        "ai": {"scores": {"clear": 0.0}, "total": 0.0, **why[0], "rank": 1, "ranks": {"clear": 1}},
    }
    assert second["judges"]["rules"]["reasons"] == ["no"]
    assert [answer["ranks"] for answer in line["answers"]] == [{"clear": 1}, {"clear": 0}]  # of helpful there is none
    assert [answer["scores"] for answer in line["answers"]] == [{"clear": 0.25}, {"clear": 1.0}]
    assert [(answer["rank"], answer["total"]) for answer in line["answers"]] == [(1, 0.25), (0, 1.0)]
    told = summary([line], NAMES)
    assert told == {"queries": 1, "answers": 2, "pairs": 1, "total": 0.625, "clear": 0.625}


def test_a_query_without_any_verdict_has_no_rank(tmp_path: Path) -> None:
    asked = of("five", "six")
    silent = Opinion({}, [{"model": "m", "votes": {}}] * 2, dict.fromkeys(NAMES, "no reply"))
    line = ranking(asked, {"rules": rules.opinions([asked], judge, NAMES)[0], "ai": silent}, Rank())
    assert all("rank" not in answer and "total" not in answer and not answer["ranks"] for answer in line["answers"])
    assert summary([line], NAMES) == {"queries": 1, "answers": 2, "pairs": 0, "total": 0}
    (tmp_path / "rankings.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
    (record,) = read_rankings(tmp_path / "rankings.jsonl", NAMES)
    assert judged(record["answers"], None)[0] == judged(record["answers"], "clear")[0] == [None, None]


def test_the_rules_alone_know_nothing_of_other_judges_knobs() -> None:
    old = "prompts answers temperatures max_new_tokens principles margin actors timeout".split()
    cfg = Config(rank=Rank(weights={"rules": 2.0}))
    assert list(decisive(cfg, NAMES)) == ["rank"] and sorted(decisive(cfg, NAMES)["rank"]) == sorted(old)
    cfg.rank = Rank(judges=[Judges.ai])
    assert {"judges", "weights"} < decisive(cfg, NAMES)["rank"].keys()
    assert decisive(cfg, NAMES)["judge"]["votes"] == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["rank.judges=[]"], "rank.judges=[] must name one or more judges, each once; try [rules,ai]"),
        (["rank.judges=[ai,ai]"], "rank.judges=[ai,ai] must name one or more judges, each once; try [rules,ai]"),
        (["rank.judges=[me]"], "rank.judges=[me] must be one of rules, ai, people, feedback"),
        (["rank.weights.rules=0"], "rank.weights.rules=0.0 must be greater than 0; leave a judge out of rank.judges"),
        (
            ["judge.votes=3"],
            "judge.votes=3 at judge.temperature=0 would be 3 times the same; try judge.temperature=0.7",
        ),
        (["judge.votes=0"], "judge.votes=0 must be greater than 0"),
        (["judge.max_missing=2"], "judge.max_missing=2.0 must lie in [0, 1]"),
        (["judge.retries=-1"], "judge.retries=-1 must not be negative"),
        (["judge.per_minute=nan"], "judge.per_minute=nan must not be negative"),
    ],
)
def test_knobs_that_cannot_work_are_refused(words: list[str], told: str) -> None:
    with pytest.raises(InputError) as refused:
        compose(words)
    assert str(refused.value) == told


def test_a_weight_of_nobody_is_refused() -> None:
    with pytest.raises(InputError, match=r"^rank.weights.ai: no such judge in rank.judges=\[rules\]$"):
        rank.check(Config(rank=Rank(weights={"ai": 2.0})))


def begun(place: Path, url: str, judges: list[Judges]) -> Config:
    """A run that has a chat model and queries."""
    cfg = config(place, url, concurrency=4, max_missing=0.5)
    cfg.tasks, cfg.cluster = Tasks(domain="tests.rlhf.toy"), Cluster(cpus_per_worker=0.2, threads=1)
    cfg.rank = Rank(judges=judges, prompts=3, answers=3, max_new_tokens=12, actors=1)
    with open_stage(cfg, "chat", reads=[], settings={}) as stage:
        save_chat(stage.folder)
        stage.finish({})
    with open_stage(cfg, "tasks", reads=[], settings={}) as stage:
        queries = toy.samples(Source(lambda _: iter(()), lambda _: iter(()), [], [], place), Tasks(), 0)["prompts"]
        lines = "".join(json.dumps(query.line) + "\n" for query in queries)
        (stage.folder / "prompts.jsonl").write_text(lines, "utf-8")
        stage.finish({})
    return cfg


@pytest.mark.ray
def test_the_stage_asks_rules_and_model_and_says_how_far_they_agree(ray_cluster: None, tmp_path: Path) -> None:
    def script(prompt: str, times: int) -> Said:
        return Said("who knows") if "user: 春春春\n" in prompt and "letters" in prompt else by_length(prompt)

    with serving(script) as server:
        cfg = begun(tmp_path, server.url, [Judges.rules, Judges.ai])
        metrics = rank.main(cfg)
        asked = len(server.prompts)
        assert rank.main(cfg) == metrics and len(server.prompts) == asked  # done
    path = cfg.run.folder / "ranked" / "rankings.jsonl"
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert len(lines) == 3 and metrics["ai/missing"] == 1
    told: list[Any] = [line.get("unjudged") for line in lines]
    assert [one for one in told if one] == [{"ai": {"letters": "none of 3 replies had the form that was asked for"}}]
    for line, unjudged in zip(lines, told, strict=True):
        texts = [answer["text"] for answer in line["answers"]]
        for answer in line["answers"]:
            assert ("letters" in answer["ranks"]) == (not unjudged) == ("letters" in answer["judges"]["ai"]["ranks"])
            shorter = sum(len(answer["text"]) > len(text) for text in texts)
            tied = sum(len(answer["text"]) == len(text) for text in texts) - 1
            assert answer["judges"]["ai"]["scores"]["ended"] == round((shorter + tied / 2) / 2, 4)
    assert "agreement/alpha" in metrics and -1 <= metrics["agreement/alpha"] <= 1
    assert len(read_rankings(path, toy.PRINCIPLES)) == 3
    manifest = read_manifest(cfg.run.folder / "ranked")
    assert manifest["config"]["judge"]["url"] == server.url and manifest["config"]["rank"]["judges"] == ["rules", "ai"]
    # the rules alone: as in a run from before there were others, and at no address
    cfg.rank, cfg.judge.url = replace(cfg.rank, judges=[Judges.rules]), ""
    with pytest.raises(InputError, match=r"made with judge\.\w+="):
        rank.main(cfg)
    cfg.run.rebuild = True
    assert not {name for name in rank.main(cfg) if name.startswith(("ai/", "agreement/"))}
    assert list(read_manifest(cfg.run.folder / "ranked")["config"]) == ["run", "rank"]
    assert all(
        "judges" not in answer
        for line in path.read_text("utf-8").splitlines()
        for answer in json.loads(line)["answers"]
    )
    assert all(shown(prompt) for prompt in server.prompts)


@pytest.mark.ray
@pytest.mark.slow
def test_an_actor_that_dies_and_one_that_stops_change_no_answer(
    ray_cluster: None,
    before: Before,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    cfg = Config(rank=Rank(answers=3, max_new_tokens=12, actors=1, timeout=10.0))
    cfg.cluster = Cluster(cpus_per_worker=0.2, threads=1)
    chat = save_chat(tmp_path / "chat")
    undisturbed = rank.answered(before.queries, before.tokenizer, chat, cfg)
    monkeypatch.setattr(rank, "Rollout", Mortal)
    assert rank.answered(before.queries, before.tokenizer, chat, cfg) == undisturbed
    assert (chat / "SIGKILL").exists() and (chat / "SIGSTOP").exists()
    said = capfd.readouterr().err
    assert "it is started again (1 of rank.restarts=2)" in said
    assert "rollout 0.generate: no answer within rank.timeout=10 seconds; " in said


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "the settings of a stage that the rules ranked have no other judge's knobs",
        "rlhf/rank.py",
        "if cfg.rank.judges == [Judges.rules]:",
        "if False:",
        "test_the_rules_alone_know_nothing_of_other_judges_knobs",
    ),
    (
        "an actor that answers for the rankings may die",
        "rlhf/rank.py",
        "restarts=cfg.rank.restarts,",
        "restarts=0,",
        "test_an_actor_that_dies_and_one_that_stops_change_no_answer",
    ),
    (
        "a query says which judge had no verdict on it",
        "rlhf/rank.py",
        '({"unjudged": missing} if missing else {})',
        "{}",
        "test_each_answer_says_which_judge_gave_which_rank_and_why",
    ),
    (
        "the rules' rankings stay the same to the byte",
        "rlhf/rank.py",
        'if list(own) == ["rules"]:',
        "if not own:",
        "test_the_rules_alone_write_the_line_that_they_always_wrote",
    ),
]

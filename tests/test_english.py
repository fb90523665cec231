"""A run from data/examples, with checks: the general domain judges, and what is asked for is done more.

The whole of it at three seeds, and GRPO from the same chat models, is in docs/data.md.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cluster.pipeline import main
from cluster.run import read_manifest
from conf.entry import compose
from moe.tasks.domain import Domain
from moe.tasks.measure import read_task_file
from tests.english import EXAMPLES, words, write

SMALL = (
    "pretrain.steps=40 pretrain.eval_every=40 sft.steps=120 sft.eval_every=120 rank.prompts=48 rank.answers=3 "
    "reward.steps=20 reward.eval_every=20 reward.save_every=20 ppo.iterations=8 evaluate.prompts=48"
).split()
GRPO = "ppo.advantages=group ppo.kl_in=loss ppo.rewards.model=0 ppo.keep=0".split()


@pytest.fixture(scope="module")
def english(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run, PPO at its end."""
    place = tmp_path_factory.mktemp("english")
    main(compose([*words(place / "runs"), *SMALL]))
    return place / "runs" / "english-0"


def metrics(run: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = read_manifest(run / stage)["metrics"]
    return found


@pytest.mark.ray
@pytest.mark.slow
def test_no_query_is_trained_on(english: Path) -> None:
    asked = {name: {query.prompt for query in read_task_file(english / "tasks" / f"{name}.jsonl")} for name in SPLITS}
    assert not (asked["prompts"] | asked["test_prompts"]) & (asked["train"] | asked["val"])
    assert not asked["prompts"] & asked["test_prompts"] and not asked["train"] & asked["val"]


SPLITS = ("train", "val", "prompts", "test_prompts")


@pytest.mark.ray
@pytest.mark.slow
def test_a_right_answer_outranks_a_wrong_one(english: Path) -> None:
    cfg = compose(words(english.parent))
    judge = Domain.of(cfg.tasks).judge(english / "tasks")
    for query in read_task_file(english / "tasks" / "test_prompts.jsonl"):
        right = query.fields["reference"]
        wrong = ["I do not know.", right.split()[0], "", query.prompt, "。", " ".join([right.split()[0]] * 9)]
        verdict = judge(query, right, True)
        assert all(judge(query, text, True).reward < verdict.reward for text in wrong), query.id
        assert verdict.measures.get("checks_ok", 1.0) == 1.0
    ranked = [json.loads(line) for line in (english / "ranked" / "rankings.jsonl").read_text("utf-8").splitlines()]
    firsts = [min(line["answers"], key=lambda answer: answer["rank"])["scores"]["helpful"] for line in ranked]
    lasts = [max(line["answers"], key=lambda answer: answer["rank"])["scores"]["helpful"] for line in ranked]
    assert sum(firsts) > sum(lasts)


@pytest.mark.ray
@pytest.mark.slow
def test_what_is_asked_for_is_done_more_often_after_ppo(english: Path) -> None:
    before, after = metrics(english, "chat"), metrics(english, "rl")
    assert after["checks_ok"] > before["checks_ok"] + 0.1
    assert after["finished"] > 0.8 and after["distinct"] > 0.5


@pytest.mark.ray
@pytest.mark.slow
def test_grpo_needs_neither_critic_nor_reward_model(english: Path, tmp_path: Path) -> None:
    for stage in ("corpus", "tokenizer", "tokens", "tasks", "base", "chat"):
        shutil.copytree(english / stage, tmp_path / "english-0" / stage)
    asked = json.loads((english / "tasks" / "manifest.json").read_text("utf-8"))["config"]
    assert asked["tasks"]["domain"] == "moe.tasks.general"
    main(compose([*words(tmp_path), *SMALL, *GRPO, "pipeline.stages=[rl]"]))
    before, after = metrics(english, "chat"), metrics(tmp_path / "english-0", "rl")
    assert after["checks_ok"] > before["checks_ok"] + 0.1
    names = {name for line in (tmp_path / "english-0" / "rl" / "metrics.jsonl").open() for name in json.loads(line)}
    assert "actor/pg_loss" in names and not any(name.startswith("critic/vf") for name in names)


def test_the_examples_are_what_the_names_make(tmp_path: Path) -> None:
    for made in write(tmp_path, queries=512).values():
        assert made.read_bytes() == (EXAMPLES / made.name).read_bytes()

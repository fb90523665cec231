"""How often a model wins, by hand, and whether who says so was trained on, by the manifests of real stages."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.run import open_stage
from conf.errors import InputError
from conf.knobs.alignment import Judge as Asked
from conf.knobs.alignment import Tasks
from conf.knobs.reinforcement import Compare, Wins
from conf.knobs.running import Run
from conf.schema import Config
from moe.tasks.task import Sample, Verdict
from rlhf import compare
from rlhf.comparison import Answered, table
from rlhf.judges import wins
from tests.rlhf.judges.scripted import Said, by_length, config, serving

QUERIES = [Sample(id=f"q{n}", task="t", messages=[{"role": "user", "content": "?"}]) for n in range(3)]


def answered(*rewards: float, texts: tuple[str, ...] = ("a", "b", "c"), held: Any = None) -> Answered:
    verdicts = [Verdict({}, reward) for reward in rewards]
    return Answered(texts, verdicts, [1] * len(rewards), None, None, held=held)


def run(place: Path, *, judges: list[str], rewards: dict[str, float], judge: dict[str, Any] | None = None) -> Config:
    """With the stages of reinforcement learning and of HFFT."""
    cfg = Config(run=Run(name="r", dir=str(place)), tasks=Tasks(domain="tests.rlhf.toy"))

    def made(name: str, reads: list[str], settings: dict[str, Any]) -> None:
        with open_stage(cfg, name, reads=reads, settings=settings) as stage:
            (stage.folder / "model").write_text(name)
            stage.finish({})

    made("chat", [], {})
    made("tasks", [], {})
    made("ranked", ["chat", "tasks"], {"rank": {"judges": judges}, **({"judge": judge} if judge else {})})
    made("reward", ["chat", "ranked"], {})
    made("hfft", ["chat", "ranked"], {})
    made("rl", ["chat", "tasks", *(["reward"] if "model" in rewards else [])], {"ppo": {"rewards": rewards}})
    return cfg


def models(cfg: Config) -> dict[str, Path]:
    return {name: cfg.run.folder / name for name in ("hfft", "rl")}


def test_a_judge_that_a_training_used_is_told(tmp_path: Path) -> None:
    cfg = run(tmp_path / "a", judges=["rules"], rewards={"rules": 1.0, "model": 1.0})
    judge = wins.judge_of(cfg, models(cfg))
    assert judge.kind is Wins.rules and judge.trained == {
        "hfft": "the rankings are by rules", "rl": "the reward has rules, the rankings are by rules",
    }  # fmt: skip
    assert judge.told.startswith("wins are by the rules of tests.rlhf.toy, which training used (hfft: the rankings")
    # by a model alone: nobody was trained on the rules
    cfg = run(
        tmp_path / "b", judges=["ai"], rewards={"model": 1.0}, judge={"url": "http://u/v1", "model": "m", "folder": ""}
    )
    judge = wins.judge_of(cfg, models(cfg))
    assert judge.trained == {} and judge.told == "wins are by the rules of tests.rlhf.toy, which no training used"
    cfg.judge = Asked(url="http://u/v1", model="m")
    judge = wins.judge_of(cfg, models(cfg))
    assert judge.kind is Wins.ai and judge.trained == dict.fromkeys(("hfft", "rl"), "the rankings are by it")
    cfg.judge = Asked(url="http://u/v1", model="another")
    assert wins.judge_of(cfg, models(cfg)).trained == {}
    # the reward model of the run itself, and one of another
    cfg.compare = Compare(reward=str(cfg.run.folder / "reward"), wins=Wins.reward)
    (cfg.run.folder / "reward" / "config.json").write_text("{}")
    assert wins.judge_of(cfg, models(cfg)).trained == {"rl": "the reward is by it"}
    other = run(tmp_path / "c", judges=["rules"], rewards={"rules": 1.0})
    with open_stage(other, "base", reads=[], settings={}) as stage:  # another product than that reward model
        (stage.folder / "config.json").write_text("{}")
        stage.finish({})
    cfg.compare = Compare(reward=str(other.run.folder / "base"), wins=Wins.reward)
    assert wins.judge_of(cfg, models(cfg)).trained == {}


def test_wins_by_rules_and_by_a_reward_model_by_hand(tmp_path: Path) -> None:
    cfg = Config(tasks=Tasks(domain="tests.rlhf.toy"))
    lines = "".join(json.dumps(query.line) + "\n" for query in QUERIES)
    (tmp_path / "test_prompts.jsonl").write_text(lines, "utf-8")
    those = {"chat": answered(0.1, 0.5, 0.5, held=[1, 2, 3]), "rl": answered(0.2, 0.5, 0.1, held=[2, 3, 4])}
    found, took = compare.judged(those, tmp_path, Wins.rules, cfg)
    assert found["rl"].wins == {0: 1.0, 1: 0.5, 2: 0.0} and found["chat"].wins is None and took == {}
    found, _ = compare.judged(those, tmp_path, Wins.reward, cfg)
    cell = table(found, seed=0)["rl"]["win_rate"]
    assert cell == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert "win_rate" not in table(found, seed=0)["chat"]
    assert table(found, seed=0)["rl"]["held_out_reward"]["gain"]["mean"] == 1.0


def test_an_ai_judge_is_asked_in_both_orders_and_what_it_has_no_word_on_is_left_out(tmp_path: Path) -> None:
    with serving(lambda prompt, times: by_length(prompt)) as server:
        cfg = config(tmp_path, server.url)
        own = [{"text": text, "finished": True} for text in ("aa", "b", "same")]
        other = [{"text": text, "finished": True} for text in ("a", "bb", "same")]
        won, told = wins.asked(QUERIES, own, other, ("letters", "ended"), cfg)
        assert won == {0: 1.0, 1: 0.0, 2: 0.5}  # it likes long answers; of the same text nobody is asked
        assert told["ai/questions"] == len(server.prompts) == 2 * 2 * 2
        # one who goes by the place wins nothing
    with serving(lambda prompt, times: Said("A")) as server:
        cfg = config(tmp_path / "other", server.url)
        won, told = wins.asked(QUERIES[:2], own[:2], other[:2], ("letters", "ended"), cfg)
        assert won == {0: 0.5, 1: 0.5} and told["ai/contradictions"] == 4


def test_what_cannot_be_compared_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="compare.wins=reward needs compare.reward="):
        Compare(wins=Wins.reward)
    with pytest.raises(InputError, match="compare.models.chat: chat is the run's own model"):
        Compare(models={"chat": "x"})
    with pytest.raises(InputError, match=r"compare.models.grpo=nowhere: no model here \(config.json is missing\)"):
        compare.check(Config(compare=Compare(models={"grpo": "nowhere"})))
    cfg = Config(run=Run(name="r", dir=str(tmp_path)), compare=Compare(wins=Wins.reward, reward="nowhere"))
    with pytest.raises(InputError, match=r"compare.reward=nowhere: no model here"):
        wins.judge_of(cfg, {})
    for name in ("rl-grpo", "rl-b", "rl.replaced-1", "rl-grpo.replaced-1"):
        (tmp_path / "r" / name).mkdir(parents=True)
        (tmp_path / "r" / name / "manifest.json").write_text("{}")
    (tmp_path / "r" / "rl-unfinished").mkdir()
    assert compare.named(cfg) == ["rl-b", "rl-grpo"]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "the report says which training used the judge",
        "rlhf/judges/wins.py",
        'found += ["the rankings are by rules"] if "rules" in ranked_by else []',
        "",
        "test_a_judge_that_a_training_used_is_told",
    ),
    (
        "an answer as good as the chat model's is half a win",
        "rlhf/judges/wins.py",
        "1.0 if a > b else 0.5 if a == b else 0.0",
        "1.0 if a >= b else 0.0",
        "test_wins_by_rules_and_by_a_reward_model_by_hand",
    ),
]

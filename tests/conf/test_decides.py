"""Every knob has one effect, and what is said to decide a stage is what the stages say that they hang on."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.agreement import plain
from cluster.run import JOBS
from conf.decides import EFFECTS, TABLE, Effect, effect
from conf.entry import compose
from conf.help import knobs

STAGES = [stage for stage in JOBS if stage != "report"]
BESIDE = {"proxy": "trainers.proxy.compare", "taught": "rlhf.teacher.teach"}  # which no pipeline makes


def test_every_knob_stands_in_the_table_once() -> None:
    named = [
        f"{section}.{name}"
        for section, by_effect in TABLE.items()
        for names in by_effect.values()
        for name in names.split()
    ]
    assert sorted(named) == sorted(knobs()), (
        "a knob that is new or gone: say in conf/decides.py what it does to a stage"
    )
    assert len(named) == len(EFFECTS)


@pytest.mark.parametrize(
    ("knob", "settings", "is_it"),
    [
        ("pretrain.log_every", {}, Effect.free),
        ("pretrain.eval_every", {"pretrain.patience": 0}, Effect.free),
        ("pretrain.eval_every", {"pretrain.patience": 2}, Effect.decides),
        ("sft.eval_rows", {"sft.patience": 2, "pretrain.patience": 0}, Effect.decides),
        ("sft.eval_rows", {"sft.patience": 0, "pretrain.patience": 2}, Effect.free),
        ("reward.save_every", {"spikes.action": "skip"}, Effect.free),
        ("reward.save_every", {"spikes.action": "rollback"}, Effect.decides),
        ("sft.keep", {"spikes.action": "rollback"}, Effect.decides),
        ("hfft.keep", {"spikes.action": "rollback"}, Effect.decides),
        ("cohft.eval_every", {"cohft.patience": 2}, Effect.decides),
        ("cohft.zh.good", {}, Effect.decides),
        ("ppo.keep", {}, Effect.decides),  # answers, not checkpoints
        ("ppo.save_every", {"spikes.action": "rollback"}, Effect.free),
        ("evaluate.prompts", {}, Effect.measures),
        ("ppo.actors.rollout.count", {}, Effect.rounds),
        ("ppo.rewards.model", {}, Effect.decides),
        ("sources./a.jsonl", {}, Effect.decides),  # the content of files
    ],
)
def test_what_another_value_does(knob: str, settings: dict[str, Any], is_it: Effect) -> None:
    assert effect(knob, settings) is is_it


def test_the_stages_hang_on_every_knob_that_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from tests.moe.formats.foreign_models import foreign

    class Opened(Exception):
        pass

    found: set[str] = {"run.seed"}  # open_stage adds it
    opened: list[str] = []

    def note(cfg: Any, name: str, *, settings: Mapping[str, Any], **_: Any) -> None:
        found.update(_named(plain(settings)))
        opened.append(name)
        raise Opened

    jobs = {**JOBS, **BESIDE}
    parent = [f"parent.model={foreign('llama', tmp_path / 'model')}", "tokens.row_length=64"]
    for stage, words in [
        *((stage, []) for stage in STAGES if stage != "parent"),
        ("parent", parent),
        ("ranked", ["rank.judges=[rules,ai]", "judge.url=http://127.0.0.1:1/v1", "judge.model=m"]),
        ("base", parent),
        ("rl", ["ppo.terms.mine=math.floor", "ppo.rewards.mine=1"]),
        *((stage, ["judge.url=http://127.0.0.1:1/v1", "judge.model=m"]) for stage in BESIDE),
    ]:
        module = importlib.import_module(jobs[stage])
        opens = {"twin": "trainers.pretrain", "hfft": "trainers.preferred", "cohft": "trainers.preferred"}
        monkeypatch.setattr(importlib.import_module(opens.get(stage, jobs[stage])), "open_stage", note)
        with pytest.raises(Opened):
            module.main(compose(["preset=test", f"run.dir={tmp_path}", *words]))
    assert sorted(set(opened)) == sorted([*STAGES, *BESIDE])
    needed = {knob for knob, kind in EFFECTS.items() if kind not in (Effect.free, Effect.rounds)} | {
        "ppo.actors.rollout.count"
    }
    assert needed - found == set()


def _named(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        knob = prefix + name
        if isinstance(value, dict) and knob not in knobs():
            yield from _named(value, f"{knob}.")
        else:
            yield knob


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "how often is evaluated decides where it can end a stage",
        "conf/decides.py",
        '"eval_every": lambda section, settings: settings.get(f"{section}.patience", 0) > 0',
        '"eval_every": lambda section, settings: False',
        None,
    ),
    (
        "a knob that the table has not decides",
        "conf/decides.py",
        "EFFECTS.get(knob, Effect.decides)",
        "EFFECTS.get(knob, Effect.free)",
        None,
    ),
    (
        "what a stage hangs on is among its settings",
        "trainers/corpus.py",
        'settings: dict[str, Any] = {"corpus": cfg.corpus, "sources"',
        'settings: dict[str, Any] = {"sources"',
        None,
    ),
]

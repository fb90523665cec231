"""A candidate's trial in simulation, with a real store of votes and people who like one model more than the other."""

import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster import storage
from cluster.feedback import FILE, Store
from conf.errors import InputError
from conf.knobs.running import Promote, Run, Serve
from conf.schema import Config
from serving import promote
from serving.canary import trial as trials
from serving.canary.rollout import Rollout
from serving.canary.route import conversation, position
from serving.canary.trial import Trial
from serving.models import find_model, version
from tests.serving.conftest import Tiny

MESSAGES = [{"role": "user", "content": "x"}]


@dataclass
class Told:
    """A fleet that notes what it was told."""

    run: Path
    said: list[str] = field(default_factory=list)
    broken: str = ""

    def begin(self, folder: Path) -> None:
        if self.broken:
            raise InputError(self.broken)
        self.said.append(f"begin {folder.name}")

    def switch(self, folder: Path) -> None:
        now = trials.read(self.run)
        assert now and now.routed == 1.0  # nobody waits for the new incumbent
        self.said.append(f"switch {folder.name}")

    def end(self) -> None:
        now = trials.read(self.run)
        assert now and now.over and now.routed == 0.0  # nobody is sent to who goes
        self.said.append("end")


def asked(run: Path, **how: Any) -> Trial:
    trial = Trial("next", "new", "", share=0.4, votes=24, confidence=0.95, tolerance=0.05, asked=time.time())
    trial = replace(trial, **how)
    trials.write(run, trial)
    return trial


def rollout(run: Path) -> Rollout:
    return Rollout(run, Told(run), "old", "demo-rl", every=0.0, wait=lambda _: None)


def people(run: Path, each: Rollout, likes: dict[str, float]) -> Trial:
    """Ask and vote until it is decided."""
    dice, store = np.random.default_rng(3), Store(run / FILE)
    for number in range(400):
        trial = each.look()
        assert trial is not None
        if trial.over:
            store.close()
            return trial
        name = conversation(f'{{"messages": "{number}"}}'.encode(), "messages", "")
        model = "new" if position(name, str(trial.asked)) < trial.routed else "old"
        kind = "up" if dice.random() < likes[model] else "down"
        said = {"kind": kind, "messages": MESSAGES, "answers": [{"text": "y", "version": model}]}
        store.add("", f"v{number}", f"c{number}", said, trains=True)
    raise AssertionError("never decided")


def test_a_candidate_that_is_liked_is_promoted(tmp_path: Path) -> None:
    asked(tmp_path)
    each = rollout(tmp_path)
    trial = people(tmp_path, each, {"old": 0.4, "new": 0.8})
    assert (trial.state, trial.incumbent, trial.name) == ("promoted", "old", "demo-rl")
    assert isinstance(each.fleet, Told) and each.fleet.said == ["begin next", "switch next", "end"]
    assert each.version == "new" and "liked" in trial.why
    assert each.look() == trial and each.fleet.said[-1] == "end"  # and that was all


def test_a_bad_candidate_is_rolled_back_early_and_the_incumbent_stays(tmp_path: Path) -> None:
    asked(tmp_path, votes=80)
    each = rollout(tmp_path)
    trial = people(tmp_path, each, {"old": 0.9, "new": 0.1})
    assert trial.state == "rolled back" and isinstance(each.fleet, Told)
    assert each.fleet.said == ["begin next", "end"] and each.version == "old"
    candidate, incumbent = (int(part.split(" of ")[1].split()[0]) for part in trial.why.split(", ")[:2])
    assert min(candidate, incumbent) == 10  # at the first look


def test_votes_from_before_and_votes_on_other_models_count_for_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / FILE)
    for number in range(30):
        for model in ("new", "old", "older"):
            said = {"kind": "down", "messages": MESSAGES, "answers": [{"text": "y", "version": model}]}
            store.add("", f"{model}{number}", f"{model}{number}", said, trains=True)
    store.close()
    time.sleep(0.01)
    asked(tmp_path)
    each = rollout(tmp_path)
    each.look()
    trial = each.look()
    assert trial and (trial.state, trial.why) == ("serving", "candidate 0 of 0 liked, incumbent 0 of 0 liked")


def test_what_cannot_be_served_is_taken_back_in_words(tmp_path: Path) -> None:
    asked(tmp_path)
    each = rollout(tmp_path)
    assert isinstance(each.fleet, Told)
    each.fleet.broken = "next: no model here"
    trial = each.look()
    assert trial and (trial.state, trial.why) == ("rolled back", "next: no model here")
    assert each.fleet.said == []


def test_a_server_that_is_started_again_goes_on(tmp_path: Path) -> None:
    asked(tmp_path)
    began = rollout(tmp_path).look()
    again = rollout(tmp_path)
    assert again.look() == began  # with the votes since the trial's beginning
    assert began and people(tmp_path, again, {"old": 0.4, "new": 0.8}).began == began.began
    trials.write(tmp_path, replace(began, state="switching"))  # it ended after the switch and before it said so
    after = rollout(tmp_path)
    after.version = "new"
    trial = after.look()
    assert trial and trial.state == "promoted" and isinstance(after.fleet, Told) and after.fleet.said == []


def test_somebody_takes_it_back(tmp_path: Path) -> None:
    cfg = Config(run=Run(name="demo", dir=str(tmp_path)))
    asked(cfg.run.folder)
    each = rollout(cfg.run.folder)
    each.look()
    cfg.promote.stop = True
    assert promote.main(cfg) == {"promoted": 0.0}
    each.look()
    assert isinstance(each.fleet, Told) and each.fleet.said == ["begin next", "end"]
    with pytest.raises(InputError, match="no trial is under way"):
        promote.main(cfg)


@pytest.fixture
def models(tiny: Tiny, tmp_path: Path) -> tuple[Config, Path]:
    """A run that serves `tiny`, and a candidate with other weights."""
    cfg = Config(run=Run(name="demo", dir=str(tmp_path)))
    candidate = tmp_path / "next"
    for folder in (cfg.run.folder / "chat", candidate):
        shutil.copytree(tiny.folder, folder)
    weights = candidate / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    storage.seal(cfg.run.folder / "chat")
    return cfg, candidate


def test_the_command_asks_for_a_trial_once_and_says_what_is_wrong(models: tuple[Config, Path]) -> None:
    cfg, candidate = models

    def wanted(**knobs: Any) -> Trial:
        return promote.wanted(replace(cfg, promote=Promote(**knobs)))

    with pytest.raises(InputError, match="promote.model is empty"):
        wanted()
    with pytest.raises(InputError, match="nowhere: no model here"):
        wanted(model=str(candidate.parent / "nowhere"))
    with pytest.raises(InputError, match="that is what the run serves already"):
        wanted(model=str(cfg.run.folder / "chat"))
    trial = wanted(model=str(candidate), share=0.2, votes=7)
    assert (trial.version, trial.share, trial.votes, trial.state) == (version(candidate), 0.2, 7, "asked")
    trials.write(cfg.run.folder, trial)
    assert wanted(model=str(candidate)) == wanted() == trial  # given again, it goes on
    with pytest.raises(InputError, match="is on trial; promote.stop=true takes it back"):
        wanted(model=str(cfg.run.folder / "chat"))


@pytest.mark.parametrize(
    ("knob", "value"), [("share", 0.0), ("share", 1.0), ("confidence", 0.5), ("votes", 0), ("tolerance", 1.5)]
)
def test_a_knob_that_cannot_work_is_refused(knob: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"promote.{knob}"):
        Promote(**{knob: value})


def test_a_promoted_model_is_served_from_then_on(models: tuple[Config, Path]) -> None:
    cfg, candidate = models
    chat = cfg.run.folder / "chat"
    decided = asked(cfg.run.folder, model=str(candidate), name="demo-chat", state="promoted", asked=time.time() + 1)
    assert find_model(cfg) == (candidate, "demo-chat")
    given = replace(cfg, serve=Serve(model=str(chat)))
    assert find_model(given) == (chat, "chat")  # whoever names a model has it
    trials.write(cfg.run.folder, replace(decided, state="rolled back"))
    assert find_model(cfg) == (chat, "demo-chat")
    trials.write(cfg.run.folder, decided)
    trials.write(cfg.run.folder, promote.wanted(replace(cfg, promote=Promote(model=str(chat)))))
    assert find_model(cfg) == (candidate, "demo-chat")  # while another is on trial
    taken_back = promote.wanted(replace(cfg, promote=Promote(stop=True)))
    trials.write(cfg.run.folder, taken_back)
    assert find_model(cfg) == (candidate, "demo-chat")  # and once that one was taken back
    trials.write(cfg.run.folder, replace(decided, asked=1.0))  # the run has made its own since
    assert find_model(cfg) == (chat, "demo-chat")


def test_the_file_is_whole_or_named(tmp_path: Path) -> None:
    assert trials.read(tmp_path) is None
    trials.path(tmp_path).write_text('{"model": "x"}')
    with pytest.raises(InputError, match="canary.json: .* remove it to begin anew"):
        trials.read(tmp_path)


def test_following_a_trial_ends_with_it(tmp_path: Path) -> None:
    trial = asked(tmp_path)
    states = iter([replace(trial, state="serving"), replace(trial, state="promoted")])

    def wait(_: float) -> None:
        trials.write(tmp_path, next(states))

    assert [each.state for each in promote.followed(tmp_path, wait)] == ["asked", "serving", "promoted"]


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "nobody is sent to a candidate that goes",
        "serving/canary/rollout.py",
        "trial = self._write(trial, state=verdict.state, why=verdict.why)\n        self._end()",
        "self._end()\n        trial = self._write(trial, state=verdict.state, why=verdict.why)",
        None,
    ),
    (
        "a model that was promoted is served whatever becomes of the next candidate",
        "serving/promote.py",
        "before=last.taken if last else None",
        "before=None",
        "test_a_promoted_model_is_served_from_then_on",
    ),
    (
        "votes from before a trial count for nothing in it",
        "serving/canary/verdict.py",
        "vote.created >= since and",
        "vote.created >= 0 and",
        "test_votes_from_before_and_votes_on_other_models_count_for_nothing",
    ),
]

"""The reward actor as a plain object: rules over what the answer says, and scores on the rankings' scale."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from conf.knobs.alignment import Tasks
from moe.formats import hugging_face
from moe.tasks.task import Judge, Sample, Verdict
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from rlhf.actors.reward import Reward
from rlhf.forward import answer_scores
from rlhf.messages import Key, Response, pad
from rlhf.rewards import Scale
from tests.rlhf.tiny import responses, save_reward

QUERY = Sample(id="q", task="say", messages=[{"role": "user", "content": "?"}])


@pytest.fixture
def rules(monkeypatch: pytest.MonkeyPatch) -> Tasks:
    """A domain that says what it was asked."""

    def judge(folder: Path, options: dict[str, float]) -> Judge:
        return lambda query, text, finished: Verdict(
            {"helpful": 0.5, "clear": 0.5}, 0.25, measures={"letters": float(len(text)), "ended": float(finished)}
        )

    module = ModuleType("told")
    module.__dict__.update(PRINCIPLES=("helpful", "clear"), judge=judge, samples=lambda *_: {}, __file__=__file__)
    monkeypatch.setitem(sys.modules, "told", module)
    return Tasks(domain="told")


def test_rules_see_the_text_without_its_end_and_whether_it_ended(chat: Path, rules: Tasks, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(chat)
    whole = [*tokenizer.encode("春眠 ab"), tokenizer.im_end]
    answers = [
        Response(Key(0, "q", 0, 0), [5], whole, [0.0] * len(whole), True),
        Response(Key(0, "q", 1, 0), [5], whole[:1], [0.0], False),
    ]
    verdicts = Reward(tmp_path, rules, chat, 1).judge([QUERY, QUERY], answers)
    assert [verdict.measures for verdict in verdicts] == [
        {"letters": 5.0, "ended": 1.0},
        {"letters": 1.0, "ended": 0.0},
    ]
    with pytest.raises(ValueError, match="zip"):
        Reward(tmp_path, rules, chat, 1).judge([QUERY], answers)


def test_scores_are_of_the_last_token_in_deviations_and_bounded(chat: Path, rules: Tasks, tmp_path: Path) -> None:
    folder, batch = save_reward(chat, tmp_path / "reward"), pad(responses(chat))
    model = hugging_face.load(folder)
    raw = answer_scores(model, batch).detach()
    for row, response in enumerate(responses(chat)):  # each alone, without padding
        ids = torch.tensor([response.prompt + response.answer])
        with torch.no_grad():
            alone = model.scores(model(ids, torch.ones_like(ids)).states)[-1]
        assert raw[row].item() == pytest.approx(alone.item(), abs=1e-5)
    middle = float(raw[0])
    scores = Reward(tmp_path, rules, chat, 1, folder, Scale(middle, 0.5)).score(batch).mean
    assert scores.tolist() == pytest.approx(((raw - middle) / 0.5).clamp(-3, 3).tolist(), abs=1e-5)
    far = Reward(tmp_path, rules, chat, 1, folder, Scale(middle, 1e-9)).score(batch).mean
    assert far[0] == 0.0 and set(far[1:].abs().tolist()) == {3.0}


def test_several_models_are_their_mean_and_what_they_differ_by(chat: Path, rules: Tasks, tmp_path: Path) -> None:
    one, other, batch = save_reward(chat, tmp_path / "one"), tmp_path / "other", pad(responses(chat))
    hugging_face.save(hugging_face.load_scalar(chat, seed=6), other, Defaults.of(Tokenizer.load(chat), chat=True))
    scale = Scale(0.0, 1.0)
    first, second = (Reward(tmp_path, rules, chat, 1, folder, scale).score(batch).mean for folder in (one, other))
    both = Reward(tmp_path, rules, chat, 1, one, scale, others=[(other, scale)]).score(batch)
    assert both.mean.tolist() == pytest.approx(((first + second) / 2).tolist(), abs=1e-6)
    assert both.spread.tolist() == pytest.approx(((first - second).abs() / 2).tolist(), abs=1e-6)
    assert both.spread.max() > 1e-3


def test_without_a_model_there_is_no_score(chat: Path, rules: Tasks, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="this reward actor has no model"):
        Reward(tmp_path, rules, chat, 1).score(pad(responses(chat)))


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "the reward model's scores are on the rankings' scale",
        "rlhf/actors/reward.py",
        "((scores - scale.mean) / scale.std)",
        "(scores / scale.std)",
        "test_scores_are_of_the_last_token_in_deviations_and_bounded",
    ),
    (
        "the reward model's guesses are bounded",
        "rlhf/actors/reward.py",
        ".clamp(-FARTHEST, FARTHEST)",
        "",
        "test_scores_are_of_the_last_token_in_deviations_and_bounded",
    ),
    (
        "an answer is scored at its own last token",
        "rlhf/forward.py",
        "ends = batch.segments.sum(1).cumsum(0) - 1",
        "ends = batch.segments.sum(1).cumsum(0) - 2",
        "test_scores_are_of_the_last_token_in_deviations_and_bounded",
    ),
    (
        "rules know whether an answer ended",
        "rlhf/actors/reward.py",
        "self.tokenizer.decode(response.whole), response.finished)",
        "self.tokenizer.decode(response.whole), True)",
        "test_rules_see_the_text_without_its_end_and_whether_it_ended",
    ),
    (
        "what reward models differ by is a deviation over the models",
        "rlhf/actors/reward.py",
        "together.std(0, correction=0)",
        "together.std(0, correction=0) * 0",
        "test_several_models_are_their_mean_and_what_they_differ_by",
    ),
]

"""The loop closed: what people say of answers trains the next model, and what they say of that decides its trial."""

import json
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from cluster import pipeline
from cluster.feedback import FILE, Store
from cluster.run import read_manifest
from conf.entry import compose
from conf.knobs.model import Model
from conf.knobs.running import Run
from conf.knobs.text import Tokenizer as Vocabulary
from conf.schema import Config
from moe.decoder import new_decoder
from moe.formats import hugging_face
from moe.tasks.task import PRINCIPLES
from moe.text.chat import sample_ids
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from moe.training.objectives import LANGUAGE_MODEL
from moe.training.step import gradients
from rlhf import rank
from rlhf.judges import feedback
from serving import promote
from serving.canary import trial as trials
from serving.canary.rollout import Rollout
from serving.canary.trial import Trial
from serving.models import find_model, version
from tests.serving.canary.house import House
from tests.serving.conftest import listening
from trainers import reward
from trainers.files.rankings import read_rankings
from trainers.rows.packing import pack

VOTES, BOUND = 200, 32  # tokens of an answer at most
WORDS = "东南西北春夏秋冬"
SHORTER = 0.7  # of the length before, at most: what the loop has to come to


def question(dice: np.random.Generator) -> str:
    return "".join(dice.choice(list(WORDS), 3))


def asking(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def vocabulary() -> Tokenizer:
    return Tokenizer.train(["user assistant system\n" + WORDS + "好"] * 4, Vocabulary(vocab_size=512))


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model, trained for a second, that says one word over and over and ends after each as if by a die."""
    tokenizer = vocabulary()
    cfg = Model(
        hidden_size=32, layers=2, heads=2, kv_heads=1, head_dim=16, experts=4, top_k=2, expert_size=32, context=128
    )
    model, dice = new_decoder(cfg, tokenizer.padded_size, seed=3), np.random.default_rng(0)
    said = [
        [*asking(question(dice)), {"role": "assistant", "content": "好" * int(length)}]
        for length in dice.integers(2, 25, 2500)
    ]
    rows = list(pack((sample_ids(tokenizer, messages) for messages in said), 256, pad=tokenizer.pad))
    dice.shuffle(rows)
    optimizer = torch.optim.AdamW(model.parameters())
    for at in range(0, len(rows) - 3, 4):
        parts = ("tokens", "segments", "loss")
        batch = {name: np.stack([getattr(row, name) for row in rows[at : at + 4]]) for name in parts}
        gradients(model, LANGUAGE_MODEL, {name: torch.from_numpy(part).long() for name, part in batch.items()}, clip=1)
        optimizer.param_groups[0]["lr"] = 6e-3 * (1 - at / len(rows))
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("loop") / "chat"
    hugging_face.save(model.eval(), folder, Defaults.of(tokenizer, chat=True))
    return folder


class People:
    """Who asks the server, likes short answers and says so."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.dice, self.names = np.random.default_rng(5), count()

    def ask(self, asked: str, answers: int) -> list[dict[str, Any]]:
        """As a vote takes them."""
        body = {
            **{"model": "tiny", "messages": asking(asked), "max_tokens": BOUND},
            **{"n": answers, "temperature": 1, "seed": int(self.dice.integers(2**31))},
        }
        response = httpx.post(f"{self.address}/v1/chat/completions", json=body, timeout=600)
        assert response.status_code == 200, response.text
        made = response.json()
        return [
            {
                "text": choice["message"]["content"],
                "finished": choice["finish_reason"] == "stop",
                "version": made["system_fingerprint"],
            }
            for choice in made["choices"]
        ]

    def vote(self, asked: str, **said: Any) -> None:
        name = f"loop-{next(self.names)}"
        ballot = {"id": name, "conversation": name, "messages": asking(asked), **said}
        response = httpx.post(f"{self.address}/v1/feedback", json=ballot, timeout=60)
        assert response.status_code == 201, response.text

    def compare(self, votes: int) -> float:
        """Pick the shorter of two answers so often -> characters of an answer in the mean, of all they saw."""
        seen: list[int] = []
        while votes:
            asked = question(self.dice)
            answers = self.ask(asked, 8)
            seen += [len(answer["text"]) for answer in answers]
            for pair in zip(answers[::2], answers[1::2], strict=True):
                lengths = [len(answer["text"]) for answer in pair]
                if votes and lengths[0] != lengths[1]:
                    self.vote(asked, kind="better", answers=list(pair), better=int(np.argmin(lengths)))
                    votes -= 1
        return float(np.mean(seen))

    def length(self) -> float:
        """Characters of an answer in the mean, of 200."""
        return float(np.mean([len(one["text"]) for _ in range(25) for one in self.ask(question(self.dice), 8)]))

    def judge(self, rollout: Rollout, most: float) -> Trial:
        """A thumb for each answer, up where it is no longer than `most` characters, until the trial is decided."""
        while (trial := rollout.look()) is not None and not trial.over:
            asked = question(self.dice)
            (answer,) = self.ask(asked, 1)
            self.vote(asked, kind="up" if len(answer["text"]) <= most else "down", answers=[answer])
        assert trial is not None
        return trial


def aligned(cfg: Config, chat: Path) -> Path:
    """What the run's pipeline makes of the chat model and of all that people said, by its real stages."""
    folder = cfg.run.folder
    asked = [{"messages": asking(first + second)} for first in WORDS for second in WORDS]
    sample = {"role": "assistant", "content": "好"}
    samples = [{"messages": [*query["messages"], sample]} for query in asked[:4]]
    for name, lines in (("queries", asked[4:]), ("samples", samples)):
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")
    words = f"""
        run.name={cfg.run.name} run.dir={cfg.run.dir} cluster.threads=1 parent.model={chat}
        pipeline.stages=[tasks,ranked,reward,rl] tasks.queries=[{folder}/queries.jsonl]
        sft.files=[{folder}/samples.jsonl] rank.judges=[feedback]
        optim.lr=1e-2 reward.steps=40 reward.batch_rows=4 reward.eval_every=40 reward.save_every=40
        ppo.rewards.rules=0 ppo.iterations=10 ppo.prompts=16 ppo.samples=4 ppo.keep=0 ppo.max_new_tokens={BOUND}
        ppo.lr=1e-2 ppo.critic_lr=1e-2 ppo.actors.rollout.count=1 ppo.save_every=10 ppo.keep_samples=0
        evaluate.prompts=8 evaluate.max_new_tokens={BOUND}
    """
    pipeline.main(compose(words.split()))
    return cfg.run.folder / "rl"


def test_votes_for_short_answers_are_learnt_as_such(tmp_path: Path) -> None:
    """From the store to the ids that the reward model compares."""
    dice, store = np.random.default_rng(1), Store(tmp_path / FILE)
    for number in range(VOTES):
        lengths = dice.choice(np.arange(1, BOUND), 2, replace=False)
        answers = [{"text": "好" * int(length)} for length in lengths]
        asked = asking("".join(WORDS[number // 8**place % 8] for place in range(3)))  # each another
        said = {"kind": "better", "messages": asked, "answers": answers}
        store.add("", f"v{number}", f"c{number}", said | {"better": int(np.argmin(lengths))}, trains=True)
    store.close()
    told = feedback.told(tmp_path / FILE, PRINCIPLES)
    rank.written(tmp_path, told.rankings, told)
    found = reward.rankings(read_rankings(tmp_path / "rankings.jsonl", PRINCIPLES), vocabulary(), ("total",), 128)
    assert len(found) == VOTES
    for one in found:
        short, long = (one.answers[int(place)] for place in one.ranks[:, 0].argsort())
        assert len(short) < len(long)


@pytest.mark.ray
@pytest.mark.slow
def test_votes_for_short_answers_come_back_as_a_model_whose_answers_are_short(
    ray_cluster: None, chat: Path, tmp_path: Path
) -> None:
    cfg = Config(run=Run(name="loop", dir=str(tmp_path)))
    house = House(cfg, chat)
    with closing(house), listening(house.door, lifespan="off") as port:
        people = People(f"http://127.0.0.1:{port}")
        before = people.compare(VOTES)
        better = aligned(cfg, chat)
        told = {stage: read_manifest(cfg.run.folder / stage)["metrics"] for stage in ("ranked", "reward")}
        assert told["ranked"]["feedback/votes"] == VOTES
        assert told["ranked"]["pairs"] >= 0.9 * VOTES  # people may have voted twice on the same two answers
        assert told["reward"]["pair_accuracy"] >= 0.75  # of answers that may differ by one character
        assert len(read_manifest(better)["heard"]) == VOTES  # the model says of whom it has learnt

        rollout = Rollout(cfg.run.folder, house, version(chat), "tiny", every=0.0)

        def tried(candidate: Path) -> Trial:
            serve = replace(cfg.serve, model=str(cfg.run.folder / "parent"))
            knobs = replace(cfg.promote, model=str(candidate), share=0.5, votes=16)
            trials.write(cfg.run.folder, promote.wanted(replace(cfg, promote=knobs, serve=serve)))
            return people.judge(rollout, most=SHORTER * before)

        trial = tried(better)
        assert (trial.state, rollout.version) == ("promoted", version(better)), trial.why
        after = people.length()
        print(f"characters of an answer: {before:.1f} before, {after:.1f} after")
        assert after <= SHORTER * before
        assert {answer["version"] for answer in people.ask("东", 1)} == {version(better)}
        assert find_model(cfg)[0] == better
        # and one whose answers are long is not let in again
        trial = tried(chat)
        assert (trial.state, rollout.version) == ("rolled back", version(better)), trial.why
        assert find_model(cfg)[0] == better
        assert people.length() <= SHORTER * before


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "what people vote for is what the next model learns to do",
        "rlhf/judges/feedback.py",
        "return 1 - share if place else share",
        "return share if place else 1 - share",
        "test_votes_for_short_answers_are_learnt_as_such",
    ),
]

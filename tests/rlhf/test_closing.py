"""What is said of models beside each other, against what other code computes."""

from pathlib import Path

import pytest
import torch

from conf.knobs.alignment import Tasks
from conf.knobs.running import Evaluate
from conf.knobs.text import Tokenizer as Settings
from conf.schema import Config
from moe.decoder import SCALAR
from moe.formats import hugging_face
from moe.generation.answers import answer
from moe.generation.engine import Sampling
from moe.generation.engines import Ours
from moe.generation.scoring import score
from moe.tasks.measure import read_task_file
from moe.text.chat import answer_ids, prompt_ids
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from rlhf.closing import compared, in_deviations, nats, of_text
from rlhf.comparison import table
from rlhf.rewards import Scale
from tests.rlhf.graphs import Before
from tests.rlhf.tiny import decoder


@pytest.fixture
def other(before: Before, tmp_path: Path) -> Path:
    """Another model than the chat model, with its tokenizer."""
    model = decoder(vocabulary=before.tokenizer.padded_size)
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
    hugging_face.save(model, tmp_path / "other", Defaults.of(before.tokenizer, chat=True))
    return tmp_path / "other"


def test_nats_are_the_difference_of_what_both_models_say_of_the_answer(before: Before, other: Path) -> None:
    chat, policy = Ours.open(before.chat), Ours.open(other)
    prompts = [query.prompt for query in before.queries]
    asked = [Sampling(8, seed=place) for place in range(len(prompts))]
    found = nats(policy, chat, prompts, asked)
    wholes = [[*prompt, *made.tokens] for prompt, made in zip(prompts, policy.generate(prompts, asked), strict=True)]
    starts = [len(prompt) for prompt in prompts]
    said = [[-part.nats for part in score(each.model, wholes, starts=starts)] for each in (policy, chat)]
    assert found == pytest.approx([ours - theirs for ours, theirs in zip(*said, strict=True)], abs=1e-3)
    assert max(map(abs, found)) > 0.1
    assert nats(chat, chat, prompts, asked) == pytest.approx([0.0] * len(prompts), abs=1e-4)


def test_scores_are_in_deviations_of_the_rankings(before: Before) -> None:
    scorer, engine = hugging_face.load(before.reward), Ours.open(before.chat)
    queries = [query.sample for query in before.queries]
    replies = answer(engine, before.tokenizer, queries, Evaluate(max_new_tokens=8), seed=0)
    plain = in_deviations(scorer, Scale(0.0, 1.0), before.tokenizer, queries, replies)
    scaled = in_deviations(scorer, Scale(1.0, 2.0), before.tokenizer, queries, replies)
    assert scaled == pytest.approx([(value - 1) / 2 for value in plain])
    ids = torch.tensor([[*prompt_ids(before.tokenizer, queries[0].messages), *replies[0].tokens]])
    with torch.no_grad():
        last = scorer(ids, torch.ones_like(ids)).states[-1:]
        assert plain[0] == pytest.approx(scorer.scores(last).item(), abs=1e-4)


def test_a_reward_model_with_another_tokenizer_reads_the_text(before: Before, tmp_path: Path) -> None:
    other = Tokenizer.train(["举头望明月，低头思故乡。"], Settings(vocab_size=512, min_frequency=1))
    scorer = decoder(vocabulary=other.padded_size, head=SCALAR)
    hugging_face.save(scorer, tmp_path / "r", Defaults.of(other, chat=True))
    query = before.queries[0].sample
    ids = [*prompt_ids(other, query.messages), *answer_ids(other, query.messages, ["明月 ab"])[0]][: scorer.cfg.context]
    rows = torch.tensor([ids])
    with torch.no_grad():
        told = scorer.scores(scorer(rows, torch.ones_like(rows)).states[-1:])
    assert of_text(tmp_path / "r", [query], ["明月 ab"]) == pytest.approx(told.tolist(), abs=1e-4)


def test_models_are_compared_on_the_held_out_queries(before: Before, other: Path) -> None:
    cfg = Config(tasks=Tasks(domain="tests.rlhf.toy"), evaluate=Evaluate(prompts=3, max_new_tokens=8))
    cfg.pipeline.samples = 2
    folders = {"chat": before.chat, "rl": other, "twin": before.chat}
    models, samples = compared(folders, before.tasks, (before.reward, Scale(0.0, 1.0)), before.reward, cfg)
    found = table(models, cfg.run.seed)
    assert list(found) == ["chat", "rl", "twin"]
    every = {"distinct_2", "rules", "reward_model", "held_out_reward", "length", "task/letters"}
    every |= {"term/rules", "term/model"}
    assert set(found["chat"]) == every and set(found["rl"]) == every | {"kl"} == set(found["twin"])
    queries = read_task_file(before.tasks / "test_prompts.jsonl", limit=3)
    replies = answer(Ours.open(other), before.tokenizer, queries, cfg.evaluate, seed=cfg.run.seed)
    assert found["rl"]["length"]["mean"] == sum(len(made.tokens) for made in replies) / 3
    assert found["rl"]["kl"]["mean"] != 0.0
    # the same model under another name is as good, to the last answer
    assert found["twin"]["kl"]["mean"] == pytest.approx(0.0, abs=1e-4)
    for name in ("rules", "length", "reward_model"):
        assert found["twin"][name]["gain"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    for model in found.values():  # both before their weights
        assert model["term/rules"]["mean"] == pytest.approx(model["rules"]["mean"])
        assert model["term/model"]["mean"] == pytest.approx(model["reward_model"]["mean"], abs=1e-5)
    assert len(samples) == 2 and set(samples[0]) == {"prompt", "chat", "rl", "twin"}
    assert samples[0]["chat"] == samples[0]["twin"] != samples[0]["rl"]
    assert "reward_model" not in compared({"chat": before.chat}, before.tasks, None, None, cfg)[0]["chat"].values()


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "the distance is from the chat model",
        "rlhf/closing.py",
        "(batch.logprobs.sum(1) - torch.cat(reference)).tolist()",
        "(torch.cat(reference) - batch.logprobs.sum(1)).tolist()",
        "test_nats_are_the_difference_of_what_both_models_say_of_the_answer",
    ),
    (
        "scores are in deviations of the rankings",
        "rlhf/closing.py",
        "((scores - scale.mean) / scale.std)",
        "scores",
        "test_scores_are_in_deviations_of_the_rankings",
    ),
    (
        "models answer with the same dice",
        "rlhf/closing.py",
        "replies = answer(engine, tokenizer, queries, cfg.evaluate, seed=cfg.run.seed)",
        "replies = answer(engine, tokenizer, queries, cfg.evaluate, seed=len(models))",
        "test_models_are_compared_on_the_held_out_queries",
    ),
]

"""A whole PPO step against TRL's: CPU seconds for the same work of the same models, on one thread.

Both answer the same number of prompts with answers of one length (nothing ends before), look at them with reference,
value and reward model, and make the same number of optimizer steps for policy and value model. TRL is its last release
that has PPO, without the gradient checkpointing that it would begin with, for ours recomputes nothing either. Our
actors are called in this process: what Ray takes to carry their messages is not counted.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from conf.knobs.model import Model
from conf.knobs.reinforcement import Actors, Ppo, Rollouts
from conf.knobs.text import Tokenizer as Settings
from moe.decoder import SCALAR, new_decoder
from moe.formats import hugging_face
from moe.generation.engine import Sampling
from moe.kernels.allocator import keep_buffers
from moe.tasks.task import Sample
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from rlhf import rewards
from rlhf.advantages import ADVANTAGES
from rlhf.graph import Graph
from rlhf.losses import token_rewards
from rlhf.messages import pad
from rlhf.rollouts import Query, admit, groups, numbered
from tests.bench.measure import record, sized
from tests.rlhf.carried.alone import alone
from tests.rlhf.graphs import Before, config

pytestmark = [pytest.mark.bench, pytest.mark.timeout(1800)]
TRL = Path(sys.prefix) / "trl"  # `make trl`
ROUNDS = sized(5, 1)
CFG = sized(
    Model(hidden_size=128, layers=4, heads=4, kv_heads=2, head_dim=32, experts=8, top_k=2, expert_size=256),
    Model(hidden_size=64, layers=1, heads=2, kv_heads=1, head_dim=32, experts=4, top_k=2, expert_size=64),
)
VOCABULARY, PROMPTS, PROMPT, ANSWER = sized((4096, 32, 32, 64), (512, 4, 8, 4))
EPOCHS, MINIBATCHES = 2, sized(4, 2)
PPO = Ppo(
    prompts=PROMPTS,
    samples=1,
    keep=0,
    max_new_tokens=ANSWER,
    epochs=EPOCHS,
    minibatches=MINIBATCHES,
    lr=1e-5,
    critic_lr=1e-5,
    critic_warmup=0,
    rewards={"model": 1.0},
    actors=Actors(rollout=Rollouts(count=1)),
)
PHASES = ("generate", "look", "update")  # look: reference, values, rewards, advantages; update: of policy and values
IMPLEMENTATIONS = sized(("grouped_mm", "eager"), ("grouped_mm",))
Spent = Mapping[str, float]  # CPU seconds by phase
Step = Callable[[], Spent]


class Watch:
    """CPU seconds of the phases, one after the other."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._last = time.process_time()

    def lap(self, phase: str) -> None:
        now = time.process_time()
        self.spent[phase] = self.spent.get(phase, 0.0) + now - self._last
        self._last = now


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Before:
    """A chat and a reward model of one shape, and prompts of one length."""
    folder = tmp_path_factory.mktemp("before")
    tokenizer = Tokenizer.train(["the cat and the hat"] * 9, Settings(vocab_size=400, min_frequency=1))
    for name, head, seed in (("chat", (), 0), ("reward", SCALAR, 1)):
        made = new_decoder(CFG, VOCABULARY, head=head, seed=seed)
        hugging_face.save(made, folder / name, Defaults.of(tokenizer, chat=True))
    (folder / "tasks").mkdir()
    ids = torch.randint(0, VOCABULARY, (PROMPTS, PROMPT), generator=torch.Generator().manual_seed(1)).tolist()
    queries = [Query(Sample(id=f"q{n}", task="t", messages=[]), prompt) for n, prompt in enumerate(ids)]
    return Before(folder / "chat", folder / "reward", folder / "tasks", tokenizer, queries)


@contextmanager
def ours(before: Before, cfg: Ppo) -> Iterator[Step]:
    """As `rlhf.ppo.loop` has it, without what a run writes."""
    with alone(before, config(cfg)) as graph:
        graph.supervisor.posts["rollout 0"].handle.engine._stop = ()  # type: ignore[union-attr]
        versions = iter(range(10_000))
        yield lambda: our_step(graph, before, cfg, next(versions))


def our_step(graph: Graph, before: Before, cfg: Ppo, iteration: int) -> Spent:
    watch = Watch()
    graph.broadcast()
    asked, requests = admit(before.queries, cfg, iteration, seed=0)
    responses = graph.rollout(requests, Sampling(cfg.max_new_tokens))
    assert {len(response.answer) for response in responses} == {ANSWER}
    watch.lap("generate")
    batch = pad(responses)
    said = graph.assess(batch)
    judged = rewards.judged(batch, [], [], said.scored, cfg.max_new_tokens, asked, [])
    earned = graph.earn(judged, cfg, {})
    per_token = token_rewards(earned.rewards, batch.logprobs, said.reference, batch.mask, cfg.kl_coef)
    same = numbered(groups(requests, cfg))
    advantages, returns = ADVANTAGES[cfg.advantages](per_token, said.values, batch.mask, same, cfg)
    watch.lap("look")
    told = graph.update(batch, advantages, returns, said)
    watch.lap("update")
    assert told["actor/refused"] == 0 and (iteration or abs(told["actor/ppo_kl"]) < 1e-3)
    return watch.spent


@contextmanager
def trl(before: Before, implementation: str, folder: Path) -> Iterator[Step]:
    sys.path.append(str(TRL))
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    args = PPOConfig(
        output_dir=str(folder),
        bf16=False,
        use_cpu=True,
        report_to="none",
        gradient_checkpointing=False,
        disable_tqdm=True,
        num_sample_generations=0,
        logging_strategy="no",
        save_strategy="no",
        lr_scheduler_type="constant",
        learning_rate=PPO.lr,
        per_device_train_batch_size=PROMPTS,
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=PROMPTS,
        total_episodes=PROMPTS,  # a step for each call of `train`
        num_mini_batches=MINIBATCHES,
        num_ppo_epochs=EPOCHS,
        response_length=ANSWER,
        temperature=1.0,
        kl_coef=PPO.kl_coef,
        gamma=PPO.gamma,
        lam=PPO.lam,
        cliprange=PPO.clip,
        cliprange_value=PPO.value_clip,
    )
    chat = partial(AutoModelForCausalLM.from_pretrained, before.chat, experts_implementation=implementation)
    scalar = partial(
        AutoModelForSequenceClassification.from_pretrained, before.reward, experts_implementation=implementation
    )
    models = {"model": chat(), "ref_model": chat(), "value_model": scalar(), "reward_model": scalar()}
    for model in models.values():
        model.config.output_router_logits = False
    no_token = SimpleNamespace(pad_token_id=VOCABULARY, eos_token_id=VOCABULARY, padding_side="left")
    given = Dataset.from_list([{"input_ids": query.prompt} for query in before.queries])

    def collated(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([row["input_ids"] for row in rows])}

    made = PPOTrainer(args, no_token, train_dataset=given, eval_dataset=given, data_collator=collated, **models)
    made.log = lambda *_, **__: None
    watch = Watch()

    def marked(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            watch.lap(phase)
            return result

        return call

    def step() -> Spent:
        watch.__init__()  # type: ignore[misc]
        made.train()
        watch.lap("update")
        return dict(watch.spent)

    with pytest.MonkeyPatch.context() as patched:
        # the last thing before the next phase
        patched.setattr(ppo_trainer, "batch_generation", marked(ppo_trainer.batch_generation, "generate"))
        patched.setattr(ppo_trainer, "masked_whiten", marked(ppo_trainer.masked_whiten, "look"))
        yield step


def by_turns(sides: Mapping[str, Step]) -> dict[str, dict[str, float]]:
    """Medians of each side's CPU seconds by phase, and of all."""
    spent: dict[str, list[Spent]] = {name: [] for name in sides}
    for round in range(ROUNDS + 1):  # the first is to warm up
        for name, step in sides.items():
            one = step()
            if round:
                spent[name].append({**one, "": sum(one.values())})
    return {
        name: {phase: median(one[phase] for one in every) for phase in (*PHASES, "")} for name, every in spent.items()
    }


def test_ppo_step(before: Before, tmp_path: Path) -> None:
    if not TRL.is_dir():
        pytest.skip(f"TRL is not in {TRL}; run `make trl`")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    keep_buffers()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads)
        sides = {"ours": stack.enter_context(ours(before, PPO))}
        for name in IMPLEMENTATIONS:
            sides[f"TRL {name}"] = stack.enter_context(trl(before, name, tmp_path / name))
        gc.collect()
        gc.freeze()  # TRL collects garbage at every step: in a process of its own it would not look through ours
        stack.callback(gc.unfreeze)
        took = by_turns(sides)
    mine = took.pop("ours")
    for phase in (*PHASES, ""):
        peers = {name: 1 / spent[phase] for name, spent in took.items()}
        record("/".join(filter(None, ("ppo_step/trl", phase))), "steps/CPU-s", 1 / mine[phase], peers)

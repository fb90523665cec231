"""Questions to a model folder, which a worker with the run's device opens."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from cluster.connect import connect, each_on_worker
from conf.knobs.running import Cluster
from conf.schema import Config
from moe.generation.engine import Sampling
from moe.generation.engines import Ours
from moe.text.chat import prompt_ids
from moe.text.tokenizer import Tokenizer
from moe.training.parallel import take_device
from rlhf.judges.replies import Lost, Question, Reply

TOGETHER = 64  # questions between two looks at what there is


def ask(questions: Sequence[Question], cfg: Config) -> Iterator[tuple[Question, Reply | Lost]]:
    """The reply to each question, in their order."""
    connect(cfg.cluster)
    parts = [questions[at : at + TOGETHER] for at in range(0, len(questions), TOGETHER)]
    folder = Path(cfg.judge.folder).absolute()
    made = each_on_worker(cfg.cluster, judge, folder, parts, cfg.cluster, within=cfg.rank.timeout)
    for part, replies in zip(parts, made, strict=True):
        yield from zip(part, replies, strict=True)


def judge(folder: Path, parts: Sequence[Sequence[Question]], cluster: Cluster) -> Iterator[list[Reply | Lost]]:
    """The replies to each part's questions. One that the model has no room for is lost."""
    take_device(cluster)
    engine, tokenizer = Ours.open(folder), Tokenizer.load(folder)
    for part in parts:
        found: dict[Question, Reply | Lost] = {}
        asked = {}
        for question in part:
            ids = prompt_ids(tokenizer, question.messages)
            if len(ids) + question.max_new_tokens <= engine.context:
                asked[question] = ids
            else:
                found[question] = Lost(
                    f"its question has {len(ids)} tokens, which leave no room for judge.max_new_tokens="
                    f"{question.max_new_tokens} in the judge's context of {engine.context}"
                )
        samplings = [
            Sampling(question.max_new_tokens, temperature=question.temperature, seed=question.seed)
            for question in asked
        ]
        for question, answer in zip(asked, engine.generate(list(asked.values()), samplings), strict=True):
            found[question] = Reply(tokenizer.decode(answer.tokens), answer.finish == "stop")
        yield [found[question] for question in part]

"""Queries of the general domain, answers that are none, and the judge."""

from pathlib import Path
from typing import Any

from moe.tasks import general
from moe.tasks.task import Sample, Verdict

JUDGE = general.judge(Path("unused"), {})
FRANCE, PARIS = "What is the capital of France?", "The capital of France is Paris."
NO_ANSWERS = (
    "",
    "。",
    "...",
    "the the the the",
    "I don't know.",
    "As an AI I cannot answer that question.",
    "我不知道。",
    "抱歉，我无法回答。",
    FRANCE,
    "is the capital of France",
    "banana 。",
    "banana",
    "😀",
    "<|im_end|>",
)


def asked(prompt: str, label: str | None = None, **fields: Any) -> Sample:
    return Sample(id="q", task="t", messages=[{"role": "user", "content": prompt}], label=label, fields=fields)


def judged(query: Sample, answer: str, *, finished: bool = True) -> Verdict:
    return JUDGE(query, answer, finished)

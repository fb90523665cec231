"""A domain of about twenty lines: an answer is good when it is written in small Latin letters."""

from collections.abc import Mapping
from pathlib import Path

from conf.knobs.alignment import Tasks
from moe.tasks.task import Judge, Sample, Source, Verdict

PRINCIPLES = ("letters", "ended")


def samples(source: Source, cfg: Tasks, seed: int) -> dict[str, list[Sample]]:
    splits = ("train", "val", "prompts", "test_prompts")
    return {
        split: [
            Sample(id=f"{split}-{n}", task="say", messages=[{"role": "user", "content": "春" * (n + 1)}])
            for n in range(4)
        ]
        for split in splits
    }


def judge(folder: Path, options: Mapping[str, float]) -> Judge:
    def judged(query: Sample, text: str, finished: bool) -> Verdict:
        small = sum("a" <= letter <= "z" for letter in text) / max(1, len(text))
        return Verdict({"letters": small, "ended": float(finished)}, small, measures={"letters": small})

    return judged

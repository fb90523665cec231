"""data/assistant, as made of what is written in its topics.jsonl: instruction samples and queries that can be checked.

Each topic is asked about in many forms, in English and simple Chinese: one sentence, a list, JSON, a number alone,
lower case, a beginning, an end, words that must stand there. Half of the answers that the samples teach ignore the
form, as collected data do. No topic of a query is in a sample. `python -m tests.assistant FOLDER` writes them.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe.tasks.task import hashed

FOLDER = Path(__file__).parents[1] / "data" / "assistant"
ASKED = 0.42  # share of the topics that queries are about

Line = dict[str, Any]


def forms(topic: Line) -> Iterator[tuple[str, str, list[dict[str, Any]], str, str]]:
    """(task, prompt, checks, an answer that keeps them, one that does not) of all forms for a topic."""
    name, zh, number = topic["name"], topic["zh"], topic["number"]
    said, said_zh = topic["sentence"], topic["sentence_zh"]
    first, second, third = topic["parts"]
    more = f"{said} To it belong {first}, {second} and {third}."
    listed, listed_zh = ("\n".join(f"- {part}" for part in topic[of]) for of in ("parts", "parts_zh"))
    one = [{"rule": "sentences", "at_most": 1}, {"rule": "words", "at_least": 4}]
    three = [{"rule": "items", "at_least": 3, "at_most": 3}]
    what = f"What is {name}?"
    yield "sentence", f"Describe {name} in one sentence.", one, said, more
    yield "list", f"Name three things that belong to {name}, as a list.", three, listed, more
    keys = [{"rule": "json", "keys": ["name", "kind"]}]
    as_json = json.dumps({"name": name, "kind": topic["kind"]})
    yield "json", f"Describe {name} as a JSON object with the keys name and kind.", keys, as_json, said
    yield "lower", f"{what} Answer in lower case.", [{"rule": "case", "is": "lower"}], said.lower(), said
    kind = f"What kind of thing is {name}? Answer in capital letters."
    yield "upper", kind, [{"rule": "case", "is": "upper"}], topic["kind"].upper(), topic["kind"]
    yield "ends", f"{what} End with an exclamation mark.", [{"rule": "ends", "with": "!"}], said[:-1] + "!", said
    well = f"Well, {said[0].lower()}{said[1:]}"
    yield "starts", f"{what} Begin with the word Well.", [{"rule": "starts", "with": "Well"}], well, said
    alone = [{"rule": "number", "is": number}, {"rule": "characters", "at_most": 6}]
    yield "number", f"{topic['question']} Answer with the number alone.", alone, str(number), f"The answer is {number}."
    words = [{"rule": "contains", "all": [first, second, third]}]
    yield "words", f"Write about {name} with the words {first}, {second} and {third}.", words, more, said
    chinese: dict[str, Any] = {"rule": "language", "is": "zh"}
    one_zh = [{"rule": "sentences", "at_most": 1}, chinese]
    yield "zh-sentence", f"用一句话介绍{zh}。", one_zh, said_zh, f"{said_zh}它很常见。"
    yield "zh-list", f"列出与{zh}有关的三样东西。", three, listed_zh, said_zh
    yield "zh-ends", f"{zh}是什么？用感叹号结尾。", [{"rule": "ends", "with": "！"}], said_zh[:-1] + "！", said_zh
    yield "zh-starts", f"{zh}是什么？用“好的”开头。", [{"rule": "starts", "with": "好的"}], f"好的，{said_zh}", said_zh
    short = [{"rule": "characters", "at_most": 6}, chinese]
    yield "zh-kind", f"{zh}属于哪一类？只回答类别。", short, topic["kind_zh"], said_zh


def write(folder: Path) -> None:
    """Write instructions.jsonl and queries.jsonl."""
    topics = [json.loads(line) for line in (FOLDER / "topics.jsonl").read_text("utf-8").splitlines()]
    ordered = sorted(topics, key=lambda topic: hashed(0, "asked", topic["name"]))
    asked = {topic["name"] for topic in ordered[: round(ASKED * len(topics))]}
    samples: list[Line] = []
    queries: list[Line] = []
    for topic in topics:
        for task, prompt, checks, kept, other in forms(topic):
            if topic["name"] in asked:
                name = f"{topic['name'].split()[-1]}-{task}"
                queries.append({"id": name, "task": task, "prompt": prompt, "checks": checks, "reference": kept})
            else:
                half = hashed(0, "form", f"{topic['name']} {task}") % 2
                samples.append({"task": task, "instruction": prompt, "output": kept if half else other})
    made: dict[str, list[Line]] = {"instructions": samples, "queries": queries}
    for name, lines in made.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))

"""data/examples, as made of the names in data/cldr_names.tsv: a corpus, instruction samples, queries, preferences.

The samples ask what a place, a language or a currency is called in another language, most of them in a form: in lower
case, ending or beginning in a way, at least so many words, a list. Half of the answers that they teach ignore the form,
as collected data do; the queries can be checked, and of two answers that are compared one keeps the form.
`python -m tests.english FOLDER` writes them.
"""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe.tasks.task import hashed

NAMES = Path(__file__).parents[1] / "data" / "cldr_names.tsv"
LANGUAGES = {"fr": "French", "de": "German", "es": "Spanish"}
EXAMPLES = NAMES.parent / "examples"
FILES = {"corpus.files": "corpus", "sft.files": "instructions", "tasks.queries": "queries"}
KINDS = ("territories", "languages", "currencies", "city")

Line = dict[str, Any]
# what is asked for, the check, and an answer that keeps it
FORMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Answer in lower case.", {"rule": "case", "is": "lower"}),
    ("End with an exclamation mark.", {"rule": "ends", "with": "!"}),
    ("Begin with the word Well.", {"rule": "starts", "with": "Well"}),
    ("Use at least ten words.", {"rule": "words", "at_least": 10}),
)


def kept(answer: str, form: int) -> str:
    """The answer in a form."""
    return (
        answer.lower(),
        answer[:-1] + "!",
        f"Well, {answer}",
        f"{answer} That is its name there, as far as I know.",
    )[form]


def rows() -> Iterator[tuple[int, str, str, str]]:
    """(number, English name, language, name there) of names that differ between the two."""
    with NAMES.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter="\t")):
            if row["kind"] in KINDS and row["en"].isascii() and len(row["en"]) < 20:
                for code, language in LANGUAGES.items():
                    if row[code] and row[code] != row["en"] and len(row[code]) < 20:
                        yield number, row["en"], language, row[code]


def write(folder: Path, *, queries: int, comparisons: int = 400) -> dict[str, Path]:
    """Write corpus, instructions, queries and preferences; no name of a query is in a sample or in a comparison."""
    named = list(rows())
    asked = {name for name, _, _, _ in sorted(named, key=lambda row: hashed(0, "asked", row[0]))[: 2 * queries]}
    corpus = [{"text": f"{name} is called {there} in {language}."} for _, name, language, there in named]
    samples, held, compared = [], [], []
    for number, name, language, there in named:
        choice = hashed(0, "form", f"{number} {language}")
        form = choice % (len(FORMS) + 1)
        question = f"What is {name} called in {language}?"
        answer = f"{name} is called {there} in {language}."
        line: Line = {"id": f"{number}-{language}", "task": "name"}
        if form == len(FORMS):
            line |= {"prompt": question, "reference": answer}
        else:
            asks, check = FORMS[form]
            line |= {"task": check["rule"], "prompt": f"{question} {asks}", "reference": answer, "checks": [check]}
            line["reference"] = kept(line["reference"], form)
            if number not in asked:
                compared.append({"prompt": line["prompt"], "chosen": line["reference"], "rejected": answer})
            answer = kept(answer, form) if choice // 8 % 2 else answer
        if number in asked:
            held.append(line)
        else:
            samples.append({"task": line["task"], "instruction": line["prompt"], "output": answer})
    compared = sorted(compared, key=lambda line: hashed(0, "compared", line["prompt"]))[:comparisons]
    made = {"corpus": corpus, "instructions": samples, "queries": held[:queries], "preferences": compared}
    paths = {}
    for what, lines in made.items():
        paths[what] = folder / f"{what}.jsonl"
        paths[what].write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    return paths


def words(runs: Path, *, seed: int = 0) -> list[str]:
    """The words of a command line for all stages on these files, at a size that takes minutes."""
    return [
        *(f"run.dir={runs}", f"run.name=english-{seed}", f"run.seed={seed}", "preset=minutes"),
        *(f"{knob}=[{EXAMPLES / name}.jsonl]" for knob, name in FILES.items()),
    ]


if __name__ == "__main__":
    write(Path(sys.argv[1]), queries=512)

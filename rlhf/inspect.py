"""Show an iteration of the stage rl: its answers, coloured by advantage, with what they earned and why.

Green is what the policy was told to do more of, red what less of, token by token; an answer without colour was not
learnt from. On anything but a terminal there is no colour.
"""

from conf.entry import early, job

early(__name__)

import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from cluster.run import stage_folder
from conf.errors import InputError
from conf.schema import Config
from moe.text.tokenizer import Tokenizer
from rlhf.record import FOLDER, Record, read

GREEN, RED = ("#0b3d0b", "#116611", "#1a8f1a"), ("#4d0f0f", "#801515", "#b31d1d")  # the stronger, the brighter
_STEPS = (0.1, 0.35, 0.7)  # of the iteration's largest advantage: where a shade begins


@job
def main(cfg: Config) -> None:
    """Print the iteration `inspect.step` of the run."""
    folder = stage_folder(cfg, "rl")
    found = read(folder / FOLDER, cfg.inspect.step)
    tokenizer = Tokenizer.load(cfg.run.folder / found.about["policy"])
    console = Console(file=sys.stdout, highlight=False, soft_wrap=True)
    for line in lines(found, tokenizer, queries=cfg.inspect.queries, only=cfg.inspect.query):
        console.print(line)


def lines(found: Record, tokenizer: Tokenizer, *, queries: int, only: str = "") -> list[Text]:
    """What is shown of an iteration: of the first `queries`, or of the query `only`, every answer."""
    rows = found.rows
    asked = list(dict.fromkeys(row["query"] for row in rows))
    if only and only not in asked:
        raise InputError(f"inspect.query={only}: not in this iteration; it has {', '.join(asked[:5])}, ...")
    shown = [only] if only else asked[:queries]
    learnt = sum(row["learnt"] for row in rows)
    about = f"step {found.about['step']}: {len(rows)} answers to {len(asked)} queries by version {rows[0]['version']}"
    made = [Text(f"{about}, {learnt} of them learnt from", style="bold")]
    largest = max((abs(value) for row in rows for value in row["advantages"] or ()), default=0.0)
    for query in shown:
        answers = [row for row in rows if row["query"] == query]
        made += [Text(), Text(f"{query} ({answers[0]['task']}): {answers[0]['asked']}", style="bold")]
        for row in answers:
            made += [Text(f"  {_told(row)}", style="dim"), Text("    ") + coloured(row, tokenizer, largest)]
            made += [Text(f"    - {reason}") for reason in row["reasons"]]
    if len(asked) > len(shown):
        made += [Text(), Text(f"{len(asked) - len(shown)} more queries: inspect.queries={len(asked)}", style="dim")]
    return made


def coloured(row: dict[str, Any], tokenizer: Tokenizer, largest: float) -> Text:
    """The answer on the colours of its tokens' advantages; a character has that of the token that completes it."""
    begun = row.get("begun") or 0  # tokens, of earlier iterations
    written = tokenizer.written(row["prompt"][len(row["prompt"]) - begun :] + row["answer"])
    start = written[begun - 1] if begun else 0
    text = Text(row["text"][:start])
    for end, advantage in zip(written[begun:], _advantages(row), strict=True):
        text.append(row["text"][start:end].replace("\n", "\n    "), style=_style(advantage, largest))
        start = max(start, end)
    return text + Text(row["text"][start:])


def _advantages(row: dict[str, Any]) -> Sequence[float]:
    return row["advantages"] or [0.0] * len(row["answer"])


def _style(advantage: float, largest: float) -> str:
    part = abs(advantage) / largest if largest else 0.0
    shade = sum(part >= step for step in _STEPS)
    return f"on {(GREEN if advantage > 0 else RED)[shade - 1]}" if shade else ""


def _told(row: dict[str, Any]) -> str:
    parts = [f"#{row['sample']}", f"rules {row['rules']:.3g}"]
    if row["learnt"]:
        parts += [f"{name} {value:.3g}" for name, value in row["terms"].items() if name != "rules"]
        kl = sum(row["logprobs"]) - sum(row["reference"])
        parts += [f"kl {kl:.3g}", f"advantage {sum(row['advantages']) / len(row['advantages']):+.3g}"]
    parts += [f"{len(row['answer'])} tokens", "ended" if row["finished"] else "cut off"]
    return "  ".join(parts if row["learnt"] else [*parts, "not learnt from"])


if __name__ == "__main__":
    main()

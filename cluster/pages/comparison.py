"""Models beside each other, in the report: a table of their measures, and who said which of them wins."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from cluster.pages.numbers import number


def comparison(folder: Path) -> str:
    """Each measure of each model with its 95 % interval, and how far it is from the chat model's, query by query; what
    is surely more or less than that is marked."""
    models = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    names = sorted({name for cells in models.values() for name in cells}, key=lambda name: ("/" in name, name))
    head = "".join(f'<th class="n">{escape(model)}</th>' for model in models)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(_interval(cells.get(name)) for cells in models.values())}</tr>"
        for name in names
    )
    return (
        "<p>Means over the queries, in brackets their 95 % bootstrap intervals. Below: the difference from chat on the "
        "same queries; ▲ or ▼ where its interval leaves zero out.</p>"
        f"{_judge(folder / 'judge.json')}"
        f'<div class="wide"><table><thead><tr><th>Measure</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _judge(path: Path) -> str:
    """Who said which of two answers is better; "" in a run from before there was one."""
    if not path.exists():
        return ""
    told = json.loads(path.read_text(encoding="utf-8"))["told"]
    return f"<p>The win rate is how often a model's answer is better than chat's; {escape(told)}.</p>"


def _interval(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "<td></td>"
    told = number(cell["mean"]) + (f" [{number(cell['low'])}, {number(cell['high'])}]" if "low" in cell else "")
    if gain := cell.get("gain"):
        mean, low, high = (gain[name] for name in ("mean", "low", "high"))
        mark = "▲ " if low > 0 else "▼ " if high < 0 else ""
        told += f"<br>{mark}{number(mean, signed=True)} [{number(low, signed=True)}, {number(high, signed=True)}]"
    return f'<td class="n">{told}</td>'

"""The corpus report as one HTML page, in the frame of the run's report."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

FRAME = Path(__file__).parents[2] / "cluster" / "report.html"
FILES = 500  # rows of the table; report.json has all
ABOUT = (
    "What became of the text: every step's documents, what went and by which number, and which copies were found. "
    '<a href="../report.html">The run</a>; one record: <code>python -m trainers.why why.record=FILE:LINE</code>'
)


def page(told: Mapping[str, Any]) -> str:
    """The whole document for what report.json holds."""
    sections = {
        "Totals": _totals(told["totals"]),
        "Steps": _steps(told["steps"]),
        "Why documents went": _samples(told["samples"], told["rejected"]),
        "Near copies": _pairs(told["pairs"]),
        "Languages": _counts(told["languages"], "Language") + _flows(told["flows"]["language"], "Language"),
        "Sources": _counts(told["sources"], "Source") + _flows(told["flows"]["source"], "Source"),
        "Buckets": _counts(told["buckets"], "Bucket"),
        "Lengths": _lengths(told["lengths"]),
        "Files": _counts(dict(list(told["files"].items())[:FILES]), "File"),
    }
    return frame("The corpus", ABOUT, sections)


def frame(title: str, about: str, sections: Mapping[str, str]) -> str:
    """A page with these sections, {heading: HTML}, those that are empty left out."""
    shown = {heading: body for heading, body in sections.items() if body}
    anchors = {heading: re.sub(r"\W+", "-", heading.lower()) for heading in shown}
    return Template(FRAME.read_text(encoding="utf-8")).substitute(
        run=title,
        about=about,
        links="".join(f'<a href="#{anchors[heading]}">{escape(heading)}</a>' for heading in shown),
        body="\n".join(
            f'<section id="{anchors[heading]}"><h2>{escape(heading)}</h2>{body}</section>'
            for heading, body in shown.items()
        ),
    )


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The first column names the row; numbers stand to the right."""
    if not rows:
        return ""
    top = "".join(f"<th{_side(cell)}>{escape(name)}</th>" for name, cell in zip(head, rows[0], strict=True))
    body = "".join(
        f"<tr><th>{escape(str(first))}</th>{''.join(f'<td{_side(cell)}>{_cell(cell)}</td>' for cell in rest)}</tr>"
        for first, *rest in rows
    )
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _side(cell: object) -> str:
    return ' class="n"' if isinstance(cell, int | float) else ""


def _cell(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else escape(str(cell))


def _totals(totals: Mapping[str, int]) -> str:
    return table(["", "Number"], [[name.replace("_", " "), value] for name, value in totals.items()])


def _steps(steps: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for step in steps:
        rules = {**step.get("rejected", {}), **{f"{rule} (changed)": n for rule, n in step.get("changed", {}).items()}}
        told = ", ".join(f"{rule} {number:,}" for rule, number in sorted(rules.items(), key=lambda item: -item[1]))
        characters = [step.get("characters", ""), step.get("kept_characters", "")]
        rows.append([step["name"], step["documents"], step["kept"], *characters, told])
    head = ["Step", "Documents in", "Documents out", "Characters in", "Characters out", "Rules"]
    return table(head, rows)


def _samples(samples: Mapping[str, Sequence[Mapping[str, Any]]], rejected: Mapping[str, Mapping[str, int]]) -> str:
    """A card for each rule: how many it took, and a few of them with their places and numbers."""
    cards = []
    for name, found in samples.items():
        step, _, rule = name.partition(": ")
        shown = "".join(
            f"<div><h4>{escape(place(one))} {escape(number(one))}</h4><p>{_text(one['start'])}</p></div>"
            for one in found
        )
        many = f"{rejected[step][rule]:,}"
        cards.append(f'<article><h3>{escape(name)}: {many}</h3><div class="answers">{shown}</div></article>')
    return "".join(cards)


def place(one: Mapping[str, Any]) -> str:
    """'x.jsonl:17 (byte 4711)'"""
    return f"{one['file']}:{one['line']}" + (f" (byte {one['offset']})" if one["offset"] else "")


def number(one: Mapping[str, Any]) -> str:
    """What decided: '0.31, bound 0.2', or what was found."""
    if one["value"] is None:
        return str(one["rule"])
    bound = f", bound {one['limit']:.4g}" if one["limit"] is not None else ""
    return f"{one['value']:.4g}{bound}" + (f" ({one['note']})" if one["note"] else "")


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> str:
    cards = []
    for pair in pairs:
        both = (("stays", pair["stays"]), ("goes", pair["gone"]))
        sides = "".join(
            f"<div><h4>{what}: {escape(one['file'])}:{one['line']}</h4><p>{_text(one['text'])}</p></div>"
            for what, one in both
        )
        cards.append(f'<article><h3>likeness {pair["likeness"]:.2f}</h3><div class="answers">{sides}</div></article>')
    return "".join(cards)


def _text(text: str) -> str:
    return escape(text.strip()).replace("\n", "<br>") or '<span class="empty">nothing</span>'


def _counts(counts: Mapping[str, Mapping[str, int]], what: str) -> str:
    names = sorted({name for row in counts.values() for name in row}, key=lambda name: (name not in _FIRST, name))
    return table([what, *names], [[key, *(row.get(name, 0) for name in names)] for key, row in counts.items()])


def _flows(flows: Mapping[str, Sequence[Mapping[str, Any]]], what: str) -> str:
    """A row for each step that took something from a source or a language, and for the steps' end."""
    rows = []
    for name, steps in flows.items():
        taking = [step for step in steps if step["kept"] < step["documents"]]
        for step in taking:
            numbers = [step[column] for column in ("documents", "kept", "characters", "kept_characters")]
            rows.append([name, step["name"], *numbers, f"{1 - step['kept'] / step['documents']:.1%}"])
    head = [what, "Step", "Documents in", "Documents out", "Characters in", "Characters out", "Gone"]
    return table(head, rows)


_FIRST = ("records", "documents", "kept", "characters", "characters_in")


def _lengths(lengths: Mapping[str, Mapping[str, int]]) -> str:
    """Documents by the powers of two of their characters."""
    named = {f"{2 ** (int(bits) - 1) if int(bits) else 0:,} and more": row for bits, row in lengths.items()}
    return _counts(named, "Characters")

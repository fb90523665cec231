"""Write the run's report.html: what every stage measured, in one file without outside parts."""

from conf.entry import early, job

early(__name__)

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from cluster.costs import Costs
from cluster.pages.comparison import comparison
from cluster.pages.numbers import number
from cluster.plots import Line, Panel, heat_map, line_plot
from cluster.run import JOBS, read_manifest
from cluster.storage import write_file
from cluster.tracking.tracker import alarms, incidents, read_metrics
from cluster.tracking.wandb_run import tracked
from conf.errors import InputError
from conf.schema import Config

Rows = Sequence[Mapping[str, Any]]  # the lines of a metrics.jsonl

PAGE = Path(__file__).with_name("report.html")  # the frame: style and placeholders
_LOAD = re.compile(r"moe/(\d+)/load/(\d+)")
_ALARM = re.compile(r"moe/(\d+)/alarm/\w+")
_TRAINED = ("base", "chat", "reward", "hfft", "cohft")
_LOSS = re.compile(r"(?:.*/)?loss")
# title: names of the metrics that one plot of the reinforcement learning shows, as patterns
_RL_PLOTS = {
    "Reward": r"critic/score/mean|critic/rewards/mean|rl/reward.*",
    "KL to the model that it started from": r"(?:rl|actor|critic)/(?:kl|ppo_kl|reference_kl).*",
    "What the reward is made of": r"reward/\w+/mean",
    "What the rules measure": r"rl/task/.*",
    "Answer length, tokens": r"response_length/mean|rl/(?:answer_)?length",
    "Entropy, nats per token": r"(?:actor|rl)/entropy.*",
    "Losses": r"actor/pg_loss|critic/vf_loss|.*/(?:policy|value)_loss",
}


@job
def main(cfg: Config) -> dict[str, float]:
    """Write runs/<run.name>/report.html from whatever stages there are; the same run gives the same bytes."""
    folder = cfg.run.folder
    stages = [name for name in JOBS if (folder / name / "manifest.json").exists()]
    if not stages:
        raise InputError(f"{folder}: no finished stage to report on; run a stage first, or give another run.name")
    with tracked(cfg, "report", folder / "report", reads=[folder / s for s in stages], page=folder / "report.html"):
        write_file(folder / "report.html", page(cfg.run.name, folder, stages))
    return {"stages": float(len(stages))}


def page(run: str, folder: Path, stages: Sequence[str]) -> str:
    """The whole document for the finished `stages` of a run folder."""
    manifests = {name: read_manifest(folder / name) for name in stages}
    rows = {name: read_metrics(folder / name) for name in stages}
    samples = next((folder / name / "samples.json" for name in ("compared", "rl") if name in stages), folder / "none")
    sections = {
        "Stages": _stages(manifests),
        "Before and after reinforcement learning": _before_after(manifests),
        "Compared on the same held-out queries": comparison(folder / "compared") if "compared" in stages else "",
        "The same prompts after each stage": _samples(samples) if samples.exists() else "",
        "Losses": _curves(rows, _TRAINED, _LOSS.fullmatch, "loss"),
        "Against a dense twin": _twin(manifests, rows),
        "Incidents": _told(rows, incidents),
        "Pairs ranked right": _curves(rows, ("reward",), re.compile(r"(?:.*/)?accuracy").fullmatch, "accuracy"),
        "Reinforcement learning": _rl(rows.get("rl", [])),
        "Share of tokens per expert": _told(rows, alarms) + _loads(rows),
        "Learning rate": _curves(rows, _TRAINED, re.compile(r"(?:.*/)?lr").fullmatch, "learning rate"),
    }
    shown = {title: body for title, body in sections.items() if body}
    anchors = {title: re.sub(r"\W+", "-", title.lower()) for title in shown}
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        run=escape(run),
        about=_about(folder, sum(manifest.get("seconds", 0.0) for manifest in manifests.values())),
        links="".join(f'<a href="#{anchors[title]}">{escape(title)}</a>' for title in shown),
        body="\n".join(
            f'<section id="{anchors[title]}"><h2>{escape(title)}</h2>{body}</section>' for title, body in shown.items()
        ),
    )


def _about(folder: Path, seconds: float) -> str:
    """What the page is of, with links to the pages of stages that have one."""
    pages = sorted(page.parent.name for page in folder.glob("*/report.html"))
    links = ", ".join(f'<a href="{name}/report.html">{name}</a>' for name in pages)
    told = "A run of Conclave: from raw text to an aligned mixture-of-experts chat model. All stages together took "
    return f"{told}{_duration(seconds)}." + f" Reports of their own: {links}." * bool(links)


def _stages(manifests: Mapping[str, Mapping[str, Any]]) -> str:
    rows = []
    for name, manifest in manifests.items():
        metrics = [
            f"<span><b>{escape(key)}</b> {number(value)}</span>"
            for key, value in manifest["metrics"].items()
            if _is_number(value)
        ]
        first, rest = "".join(metrics[:6]), "".join(metrics[6:])
        more = f"<details><summary>{len(metrics) - 6} more</summary><div>{rest}</div></details>" if rest else ""
        seconds = _duration(manifest.get("seconds", 0.0))
        rows.append(f'<tr><th>{escape(name)}</th><td class="n">{seconds}</td><td class="chips">{first}{more}</td></tr>')
    return (
        '<div class="wide"><table><thead><tr><th>Stage</th><th class="n">Time</th><th>Metrics</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _before_after(manifests: Mapping[str, Mapping[str, Any]]) -> str:
    """The metrics that both the chat and the rl manifest hold."""
    if "chat" not in manifests or "rl" not in manifests:
        return ""
    before, after = manifests["chat"]["metrics"], manifests["rl"]["metrics"]
    names = [name for name in after if _is_number(after[name]) and _is_number(before.get(name))]
    rows = "".join(
        f'<tr><th>{escape(name)}</th><td class="n">{number(before[name])}</td>'
        f'<td class="n">{number(after[name])}</td>'
        f'<td class="n">{number(after[name] - before[name], signed=True)}</td></tr>'
        for name in names
    )
    head = '<th>Metric</th><th class="n">chat</th><th class="n">rl</th><th class="n">change</th>'
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>' if rows else ""


def _samples(path: Path) -> str:
    """Cards of one prompt each, the answers of the stages side by side."""
    cards = []
    for sample in json.loads(path.read_text(encoding="utf-8")):
        answers = "".join(
            f"<div><h4>{escape(stage)}</h4><p>{_text(str(text))}</p></div>"
            for stage, text in sample.items()
            if stage != "prompt"
        )
        prompt = escape(str(sample["prompt"])).replace("\n", "<br>")
        cards.append(f'<article><h3>{prompt}</h3><div class="answers">{answers}</div></article>')
    return "".join(cards)


def _text(text: str) -> str:
    return escape(text.strip()).replace("\n", "<br>") or '<span class="empty">nothing</span>'


def _curves(rows: Mapping[str, Rows], stages: Sequence[str], match: Callable[[str], object], what: str) -> str:
    """One plot a stage, with every metric whose name matches."""
    figures = []
    for stage in stages:
        lines = _lines(rows.get(stage, []), match)
        if lines:
            figures.append(_figure(f"{stage}: {what}" if what not in stage else stage, lines))
    return _grid(figures)


def _twin(manifests: Mapping[str, Mapping[str, Any]], rows: Mapping[str, Rows]) -> str:
    """The losses of the mixture and of its dense twin against what they cost, and the costs in numbers."""
    if "base" not in manifests or "twin" not in manifests:
        return ""
    mixture, twin = Costs.of(rows["base"]), Costs.of(rows["twin"])
    if mixture is None or twin is None or not twin.held_out or not mixture.held_out:
        return ""

    both = {"mixture of experts": mixture, "dense twin": twin}
    figures = []
    for cost, unit in (("tokens", "tokens"), ("FLOPs", "floating-point operations"), ("wall clock", "seconds")):
        columns = {
            name: {"tokens": costs.tokens, "FLOPs": costs.flops, "wall clock": costs.seconds}[cost]
            for name, costs in both.items()
        }
        scale, word = _scale(max(column[-1] for column in columns.values()))
        lines = [Line(name, [x / scale for x in column], both[name].losses) for name, column in columns.items()]
        figures.append(_figure(f"loss against {cost}", lines, prefix="twin: ", xlabel=f"{word}{unit}"))
    final = twin.held_out[-1][1]
    sizes = [manifests[stage]["metrics"] for stage in ("base", "twin")]
    table = {
        "parameters": [number(size["parameters"]) for size in sizes],
        "of these active for a token": [number(size["active_parameters"]) for size in sizes],
        "held-out loss at the end": [number(costs.held_out[-1][1]) for costs in both.values()],
        "tokens per second": [number(costs.tokens_per_second) for costs in both.values()],
        "time, evaluations left out": [_duration(costs.seconds[-1]) for costs in both.values()],
        f"time until the twin's last held-out loss, {number(final)}": [
            "not reached" if (seconds := costs.until(final)) is None else _duration(seconds) for costs in both.values()
        ],
    }
    body = "".join(
        f'<tr><th>{escape(name)}</th>{"".join(f"""<td class="n">{cell}</td>""" for cell in cells)}</tr>'
        for name, cells in table.items()
    )
    head = "".join(f'<th class="n">{name}</th>' for name in both)
    return (
        f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"{_grid(figures)}"
    )


def _scale(largest: float) -> tuple[float, str]:
    """What to divide numbers up to `largest` by, and the word for it."""
    names = ((1e18, "10^18 "), (1e15, "10^15 "), (1e12, "10^12 "), (1e9, "billion "), (1e6, "million "))
    return next(((scale, word) for scale, word in names if largest >= scale), (1.0, ""))


def _rl(rows: Rows) -> str:
    figures = []
    for title, pattern in _RL_PLOTS.items():
        lines = _lines(rows, re.compile(pattern).fullmatch)
        if lines:
            figures.append(_figure(title, lines, prefix="RL: ", xlabel="iteration"))
    return _grid(figures)


def _lines(rows: Rows, match: Callable[[str], object]) -> list[Any]:

    names = sorted({name for row in rows for name in row if match(name)})
    lines = []
    for name in names:
        points = [(row["step"], row[name]) for row in rows if _is_number(row.get(name))]
        if points:
            steps, values = zip(*points, strict=True)
            lines.append(Line(name, steps, [value if math.isfinite(value) else math.nan for value in values]))
    return lines


def _figure(title: str, lines: Sequence[Any], *, prefix: str = "", xlabel: str = "step") -> str:

    last = " · ".join(f"{escape(line.label)} {number(line.values[-1])}" for line in lines)
    svg = line_plot(lines, name=prefix + title, xlabel=xlabel)
    return f"<figure><figcaption><b>{escape(title)}</b><span>last: {last}</span></figcaption>{svg}</figure>"


def _grid(figures: Sequence[str]) -> str:
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def _told(rows: Mapping[str, Rows], what: Callable[[Rows], Sequence[tuple[int, str]]]) -> str:
    """What was said at which step of which stage."""
    found = [(stage, step, text) for stage in _TRAINED for step, text in what(rows.get(stage, []))]
    items = "".join(f"<li><b>{stage}, step {step:,}</b> {escape(text)}</li>" for stage, step, text in found)
    return f'<ul class="told">{items}</ul>' if items else ""


def _loads(rows: Mapping[str, Rows]) -> str:
    """For each stage the loads over the steps, and those of the last step that measured them in numbers."""
    figures = []
    for stage in _TRAINED:
        table, step = load_table(rows.get(stage, []))
        if not table:
            continue
        experts = len(table[0])
        figures.append(
            f"<figure><figcaption><b>{stage}</b><span>over the steps; experts downwards; blank is no token, "
            f"half the colour an even share; a line marks an alarm</span></figcaption>"
            f"{_load_map(rows[stage], len(table), experts, stage)}</figure>"
        )
        head = "".join(f"<th>{expert}</th>" for expert in range(experts))
        body = "".join(
            f"<tr><th>{layer}</th>{''.join(_cell(share, experts) for share in shares)}</tr>"
            for layer, shares in enumerate(table)
        )
        figures.append(
            f"<figure><figcaption><b>{stage}</b><span>step {step}; layers down, experts across, in percent; "
            f'even is {100 / experts:.3g}</span></figcaption><div class="wide"><table class="heat">'
            f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div></figure>"
        )
    return _grid(figures)


def _load_map(rows: Rows, layers: int, experts: int, stage: str) -> str:

    measured = [row for row in rows if f"moe/{layers - 1}/load/{experts - 1}" in row]
    told = [(int(m[1]), row["step"]) for row in rows for name in row if (m := _ALARM.fullmatch(name))]
    panels = []
    for layer in range(layers):
        shares = np.array([[row[f"moe/{layer}/load/{expert}"] for row in measured] for expert in range(experts)])
        marks = [step for where, step in told if where == layer]
        panels.append(Panel(f"layer {layer}", shares * experts / 2, marks))
    return heat_map(panels, [row["step"] for row in measured], name=f"{stage}: load of the experts over the steps")


def load_table(rows: Rows) -> tuple[list[list[float]], int]:
    """([layer][expert] share of tokens, step) of the last line that holds expert loads; ([], 0) without one."""
    for row in reversed(rows):
        found = {(int(m[1]), int(m[2])): value for name, value in row.items() if (m := _LOAD.fullmatch(name))}
        if found:
            layers, experts = (1 + max(key[axis] for key in found) for axis in (0, 1))
            return [[found.get((a, b), math.nan) for b in range(experts)] for a in range(layers)], row["step"]
    return [], 0


def _cell(share: float, experts: int) -> str:
    if not math.isfinite(share):
        return "<td></td>"
    strength = min(share * experts / 2, 1.0)  # an even share is half the colour, twice that all of it
    return f'<td style="--load:{100 * strength:.0f}%">{100 * share:.0f}</td>'


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


if __name__ == "__main__":
    main()

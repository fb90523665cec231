"""Line plots and heat maps as inline SVG that takes its colours from the page: one drawing serves light and dark."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

# Matplotlib writes fixed colours. These stand for the page's variables and are replaced in its output.
_INK, _FAINT = "#010203", "#010204"
_SERIES = ("#010211", "#010212", "#010213", "#010214")
_VARIABLES = {_INK: "var(--soft)", _FAINT: "var(--rule)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES, 1)
}
MOST_POINTS = 800  # of one line; more cannot be seen
MOST_COLUMNS = 200  # of a heat map; more steps are averaged
_HEAT = (0.26, 0.5, 0.85)  # an image cannot take the page's colour: a blue that reads on light and dark paper alike

_STYLE = {
    "svg.fonttype": "none",  # text stays text: the page's fonts, selectable
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": _FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": _INK,
}


@dataclass(frozen=True)
class Line:
    label: str
    steps: Sequence[float]
    values: Sequence[float]  # NaN leaves a gap


def line_plot(lines: Sequence[Line], *, name: str, xlabel: str = "step", size: tuple[float, float] = (4.8, 2.6)) -> str:
    """An <svg> of the lines; `name` describes it to a screen reader. The same input gives the same bytes."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        for number, line in enumerate(lines):
            stride = max(1, -(-len(line.steps) // MOST_POINTS))
            few = len(line.steps) <= 25
            axes.plot(
                line.steps[::stride],
                line.values[::stride],
                color=_SERIES[number % len(_SERIES)],
                linewidth=1.6,
                linestyle=("-", "--", "-.", ":")[number // len(_SERIES) % 4],
                marker="o" if few else None,
                markersize=3.5,
                label=line.label,
            )
        axes.set_xlabel(xlabel)
        whole = all(float(step).is_integer() for line in lines for step in line.steps)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.02)
        if len(lines) > 1:
            axes.legend(loc="best", fontsize=9)
        return _svg(figure, name)


@dataclass(frozen=True)
class Panel:
    label: str
    values: np.ndarray  # [rows, steps]; 0 leaves the paper, 1 and more are the full colour
    marks: Sequence[float] = ()  # steps at which a line is drawn


def heat_map(panels: Sequence[Panel], steps: Sequence[float], *, name: str, xlabel: str = "step") -> str:
    """An <svg> of the panels under one another, the rows of each downwards and the steps across."""
    stride = -(-len(steps) // MOST_COLUMNS)
    starts = np.arange(0, len(steps), stride)
    rows = max(len(panel.values) for panel in panels)
    height = len(panels) * min(1.6, max(0.5, 0.09 * rows)) + 0.5  # inches
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name, "axes.grid": False}):
        figure = Figure(figsize=(6.4, height), layout=ConstrainedLayoutEngine(h_pad=0.02, hspace=0.02))
        for axes, panel in zip(figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True):
            means = np.add.reduceat(panel.values, starts, axis=1) / np.diff(np.append(starts, len(steps)))
            image = np.empty((*means.shape, 4))
            image[..., :3], image[..., 3] = _HEAT, np.clip(means, 0, 1)
            extent = (steps[0], max(steps[-1], steps[0] + 1), len(image) - 0.5, -0.5)
            axes.imshow(image, aspect="auto", interpolation="none", extent=extent)
            for mark in panel.marks:
                axes.axvline(mark, color=_SERIES[1], linewidth=1.6)
            axes.set_ylabel(panel.label, rotation=0, ha="right", va="center")
            axes.set_yticks([0, len(image) - 1])
            axes.tick_params(labelsize=7)
            axes.spines["left"].set_visible(True)
        axes.set_xlabel(xlabel)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return _svg(figure, name)


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name)


def _inline(document: str, name: str) -> str:
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # they would be the same in every plot of the page
    # Only the viewBox stays, so that the plot takes the width that the page gives it.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(name)}"', 1)

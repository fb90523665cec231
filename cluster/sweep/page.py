"""What a sweep came to, as one table on the screen and as one HTML page without outside parts."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cluster.plots import Line, line_plot
from cluster.progress import clock
from cluster.sweep.trial import Measure, Trial

FRAME = Path(__file__).parents[1] / "report.html"  # whose style the page has


def order(trials: Sequence[Trial], measure: Measure) -> list[Trial]:
    """Done ones first, the best on top; then the stopped by what they measured last, the failed, the others."""
    sign = -1.0 if measure.higher else 1.0
    states = ["done", "stopped", "failed", "running", "waiting"]

    def key(trial: Trial) -> tuple[int, float, int]:
        value = trial.metric if trial.metric is not None else trial.last
        known = value is not None and value == value
        return states.index(trial.state), sign * value if known and value is not None else float("inf"), trial.number

    return sorted(trials, key=key)


def cells(trial: Trial, measure: Measure, winner: Trial | None) -> list[str]:
    """job, state, knobs, metric, last of the curve, time, note"""
    last = f"{trial.last:.4g} at step {trial.curve[-1][0]}" if trial.last is not None else ""
    return [
        str(trial.number),
        trial.state,
        trial.name,
        f"{trial.metric:.4g}" if trial.metric is not None else "",
        last,
        clock(trial.elapsed) if trial.elapsed else "",
        "best" if trial is winner else trial.error,
    ]


def heads(measure: Measure) -> list[str]:
    return ["job", "state", "knobs", measure.final, measure.curve, "time", ""]


def table(trials: Sequence[Trial], measure: Measure, winner: Trial | None) -> None:
    """Print the table."""
    shown = Table(title="sweep", title_justify="left")
    for head in heads(measure):
        shown.add_column(head, overflow="fold")
    for trial in order(trials, measure):
        shown.add_row(*cells(trial, measure, winner))
    console = Console()
    print()
    Console(width=console.width if console.is_terminal else 160).print(shown)


def page(title: str, trials: Sequence[Trial], measure: Measure, winner: Trial | None) -> str:
    """The whole document; the same jobs give the same bytes."""
    style = (
        FRAME.read_text("utf-8").partition("</style>")[0].replace("Conclave: run $run", f"Conclave: {escape(title)}")
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in heads(measure))
    body = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells(trial, measure, winner))}</tr>"
        for trial in order(trials, measure)
    )
    lines = [
        Line(f"{trial.number}: {trial.name}", *zip(*trial.curve, strict=True))
        for trial in order(trials, measure)
        if trial.curve
    ]
    plot = line_plot(lines, name=f"{measure.curve} of each job", size=(8.0, 4.2)) if lines else ""
    better = "higher" if measure.higher else "lower"
    best = f"The best: {escape(winner.name)}." if winner else "No job came to its end."
    return (
        f"{style}</style>\n</head>\n<body>\n<header><h1>{escape(title)}</h1>\n"
        f"<p>{len(trials)} jobs on the same inputs; {better} {escape(measure.final)} is better. {best}</p></header>\n"
        f'<main>\n<section><h2>Jobs</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        f"</section>\n<section><h2>{escape(measure.curve)}</h2>"
        f"<figure><figcaption><b>each job</b></figcaption>{plot}</figure></section>\n</main>\n</body>\n</html>\n"
    )

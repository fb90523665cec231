"""The report of a run made by hand."""

import base64
import io
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.costs import Costs
from cluster.plots import Line, Panel, heat_map, line_plot
from cluster.report import load_table, main
from cluster.storage import write_manifest
from conf.errors import InputError
from conf.knobs.running import Run
from conf.schema import Config


def stage(run: Path, name: str, metrics: Mapping[str, float], rows: Sequence[Mapping[str, float | str]]) -> None:
    folder = run / name
    folder.mkdir(parents=True)
    write_manifest(folder, {"stage": name, "metrics": dict(metrics), "seconds": 125.4})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    return Config(run=Run(name="made", dir=str(tmp_path)))


def fill(run: Path) -> None:
    loads = {"moe/0/load/0": 0.75, "moe/0/load/1": 0.25, "moe/1/load/0": 0.5, "moe/1/load/1": 0.5}
    stage(
        run,
        "base",
        {"loss": 4.25},
        [
            {"step": 0, "time": 1, "loss": 8.0, "lr": 0.0, **loads},
            {"step": 10, "time": 2, "loss": 4.25, "val/loss": 4.5, "moe/1/alarm/dead": "layer 1: <ill>"},
            {"step": 11, "time": 3, "incident": "loss 9 > 8: skipped"},
        ],
    )
    stage(run, "chat", {"form_ok": 0.82, "rhyme_ok": 0.1, "only_chat": 1}, [{"step": 1, "time": 1, "loss": "nan"}])
    stage(run, "rl", {"form_ok": 0.97, "rhyme_ok": 0.35}, [{"step": 1, "time": 1, "critic/score/mean": 0.5}])
    samples = [{"prompt": "作诗<script>", "base": "", "chat": "春风。\n秋月。", "rl": "a & b"}]
    (run / "rl" / "samples.json").write_text(json.dumps(samples))


class Tags(HTMLParser):
    """Checks nesting while it collects."""

    void = frozenset({"meta", "br", "link", "use", "path", "rect"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.void:
            assert self.open.pop() == tag


def test_report_shows_what_the_stages_measured(cfg: Config) -> None:
    fill(cfg.run.folder)
    assert main(cfg) == {"stages": 3.0}
    text = (cfg.run.folder / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    # base: loss, loads, learning rate; chat: loss (all NaN, and said so); rl: reward
    assert tags.seen.count("svg") == 5
    assert "last: loss nan" in text
    assert "6 min 16 s" in text  # 3 x 125.4 s
    assert '<th>form_ok</th><td class="n">0.82</td><td class="n">0.97</td><td class="n">+0.15</td>' in text
    assert "<th>only_chat</th>" not in text
    assert '<td style="--load:75%">75</td><td style="--load:25%">25</td>' in text
    assert "<li><b>base, step 10</b> layer 1: &lt;ill&gt;</li>" in text
    assert "<li><b>base, step 11</b> loss 9 &gt; 8: skipped</li>" in text
    assert "dense twin" not in text and "Reports of their own" not in text
    (cfg.run.folder / "base" / "report.html").write_text("")
    main(cfg)
    assert '<a href="base/report.html">base</a>' in (cfg.run.folder / "report.html").read_text()


def test_models_are_compared_with_their_intervals(cfg: Config) -> None:
    fill(cfg.run.folder)
    stage(cfg.run.folder, "compared", {}, [])
    cells = {
        "chat": {"rules": {"mean": 0.5, "low": 0.25, "high": 0.75}, "distinct_2": {"mean": 0.125}},
        "<rl>": {
            "rules": {"mean": 0.75, "low": 0.5, "high": 1.0, "gain": {"mean": 0.25, "low": 0.125, "high": 0.375}},
            "kl": {"mean": 7.5, "low": 7.0, "high": 8.0},
            "task/late": {"mean": 1.0, "low": 1.0, "high": 1.0, "gain": {"mean": -0.5, "low": -1.5, "high": 0.5}},
        },
    }
    (cfg.run.folder / "compared" / "comparison.json").write_text(json.dumps(cells))
    judge = {"told": "wins are by <rules>, which training used (rl: the reward has rules)"}
    (cfg.run.folder / "compared" / "judge.json").write_text(json.dumps(judge))
    samples = [{"prompt": "p", "chat": "c", "hfft": "the best"}]
    (cfg.run.folder / "compared" / "samples.json").write_text(json.dumps(samples))
    main(cfg)
    text = (cfg.run.folder / "report.html").read_text()
    assert '<th class="n">chat</th><th class="n">&lt;rl&gt;</th>' in text
    assert (
        '<th>rules</th><td class="n">0.5 [0.25, 0.75]</td>'
        '<td class="n">0.75 [0.5, 1]<br>▲ +0.25 [+0.125, +0.375]</td>' in text
    )
    assert '<th>kl</th><td></td><td class="n">7.5 [7, 8]</td>' in text
    assert '<td class="n">1 [1, 1]<br>-0.5 [-1.5, +0.5]</td>' in text  # its interval has zero in it
    assert '<th>distinct_2</th><td class="n">0.125</td><td></td>' in text
    assert text.index("<th>rules</th>") < text.index("<th>task/late</th>")
    assert "wins are by &lt;rules&gt;, which training used (rl: the reward has rules)." in text
    assert "<h4>hfft</h4><p>the best</p>" in text and "a &amp; b" not in text


def test_report_escapes_what_models_and_users_wrote(cfg: Config) -> None:
    fill(cfg.run.folder)
    main(cfg)
    text = (cfg.run.folder / "report.html").read_text()
    assert "<script" not in text and "作诗&lt;script&gt;" in text
    assert "春风。<br>秋月。" in text and "a &amp; b" in text


def test_report_is_one_file_and_the_same_each_time(cfg: Config) -> None:
    fill(cfg.run.folder)
    main(cfg)
    first = (cfg.run.folder / "report.html").read_bytes()
    main(cfg)
    assert (cfg.run.folder / "report.html").read_bytes() == first
    assert b"src=" not in first and b"@import" not in first and b"url(http" not in first
    assert b"prefers-color-scheme: dark" in first


def test_report_without_a_stage_is_refused(cfg: Config) -> None:
    with pytest.raises(InputError, match="no finished stage to report on"):
        main(cfg)


def test_plot_takes_the_colours_of_the_page() -> None:
    svg = line_plot([Line("a<b", [0, 1], [1.0, 2.0]), Line("b", [0, 1], [2.0, math.nan])], name="x & y")
    ElementTree.fromstring(svg.replace("xlink:href", "href"))
    assert "var(--series-1)" in svg and "var(--series-2)" in svg and "var(--soft)" in svg
    assert "#0102" not in svg and "a&lt;b" in svg and 'aria-label="x &amp; y"' in svg


def test_a_heat_map_shows_loads_as_opacity_and_alarms_as_lines() -> None:
    values = np.array([[0.0, 0.5, 0.5, 2.0], [1.0, 1.0, 0.0, 0.25]])
    panels = [Panel("layer 0", values), Panel("layer <1>", values[:, ::-1], marks=[2])]
    svg = heat_map(panels, [1, 2, 3, 4], name="loads")
    ElementTree.fromstring(svg)
    assert "layer 0" in svg and "layer &lt;1&gt;" in svg
    assert svg.count("var(--series-2)") == 1  # the mark
    images = [base64.b64decode(part) for part in re.findall(r"data:image/png;base64,([^\"]+)", svg)]
    opacity = [np.asarray(Image.open(io.BytesIO(image)))[..., 3].tolist() for image in images]
    assert opacity[0] == [[0, 127, 127, 255], [255, 255, 0, 63]]
    assert opacity[1] == [row[::-1] for row in opacity[0]]


def test_a_heat_map_of_many_steps_shows_their_means() -> None:
    values = np.tile([[0.0, 1.0]], (1, 200))  # 400 steps
    svg = heat_map([Panel("layer 0", values)], range(400), name="loads")
    (image,) = re.findall(r"data:image/png;base64,([^\"]+)", svg)
    opacity = np.asarray(Image.open(io.BytesIO(base64.b64decode(image))))[..., 3]
    assert opacity.shape == (1, 200) and set(opacity.flatten().tolist()) == {127}


def test_load_table_takes_the_last_measured_step() -> None:
    rows = [
        {"step": 5, "moe/0/load/0": 0.9, "moe/0/load/1": 0.1},
        {"step": 9, "moe/0/load/0": 0.6, "moe/0/load/1": 0.4},
    ]
    assert load_table([*rows, {"step": 12, "loss": 1.0}]) == ([[0.6, 0.4]], 9)
    assert load_table([]) == ([], 0)


def line(step: int, loss: float, seconds: float, **more: float) -> dict[str, float]:
    """Of a model that took 30 tokens and 2e9 operations a step, and `seconds` for each since the last line."""
    return {"step": step, "loss": loss, "tokens": 30 * step, "flops": 2e9 * step, "time/step": seconds, **more}


def test_costs_are_summed_over_the_steps() -> None:
    lines: list[Mapping[str, float]] = [
        line(5, 8.0, 0.2),
        {"step": 8, "val/loss": 7.0},  # between two logged steps
        line(10, 6.0, 0.4),
        {"step": 10, "val/loss": 6.5},
        {"step": 10, "attempt": 2},
        line(20, 4.0, 0.1),
        {"step": 20, "val/loss": 4.5},
    ]
    costs = Costs.of(lines)
    assert costs is not None
    assert costs.seconds == [1.0, 3.0, 4.0] and costs.tokens == [150, 300, 600] and costs.flops[-1] == 4e10
    assert [seconds for seconds, _ in costs.held_out] == pytest.approx([2.2, 3.0, 4.0])
    assert costs.tokens_per_second == 150
    assert costs.until(7.0) == pytest.approx(2.2) and costs.until(9.0) == pytest.approx(2.2)
    assert costs.until(5.5) == pytest.approx(3.5)  # halfway between two evaluations
    assert costs.until(4.0) is None
    assert Costs.of([{"step": 1, "loss": 2.0}]) is None


def test_a_dense_twin_is_drawn_against_what_both_cost(cfg: Config) -> None:
    sizes = {"parameters": 5_900_000, "active_parameters": 2_350_000}
    mixture = [line(10, 6.0, 2.0), {"step": 10, "val/loss": 6.0}, line(20, 4.0, 2.0), {"step": 20, "val/loss": 4.0}]
    stage(cfg.run.folder, "base", sizes, mixture)
    dense = [line(10, 6.5, 1.0), {"step": 10, "val/loss": 6.5}, line(20, 5.0, 1.0), {"step": 20, "val/loss": 5.0}]
    stage(cfg.run.folder, "twin", {"parameters": 2_400_000, "active_parameters": 2_400_000}, dense)
    main(cfg)
    text = (cfg.run.folder / "report.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    for title in ("tokens", "FLOPs", "wall clock"):
        assert f"<b>loss against {title}</b><span>last: mixture of experts 4 · dense twin 5</span>" in text
    assert "billion floating-point operations" in text
    rows = {
        "parameters": ("5,900,000", "2,400,000"),
        "of these active for a token": ("2,350,000", "2,400,000"),
        "held-out loss at the end": ("4", "5"),
        "tokens per second": ("15", "30"),
        "time, evaluations left out": ("40 s", "20 s"),
        "time until the twin&#x27;s last held-out loss, 5": ("30 s", "20 s"),
    }
    for name, (ours, theirs) in rows.items():
        assert f'<tr><th>{name}</th><td class="n">{ours}</td><td class="n">{theirs}</td></tr>' in text


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "time is summed over steps",
        "cluster/costs.py",
        'line["time/step"] * (line["step"] - before)',
        'line["time/step"]',
        None,
    ),
    (
        "a difference that may be none is not marked",
        "cluster/pages/comparison.py",
        'mark = "▲ " if low > 0 else "▼ " if high < 0 else ""',
        'mark = "▲ " if mean > 0 else "▼ "',
        "test_models_are_compared_with_their_intervals",
    ),
]

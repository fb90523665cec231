"""What Weights & Biases is shown of a stage: the lines of its metrics.jsonl, and of a finished one its metrics, samples
and the digests of its files."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.storage import MANIFEST, Damaged, read_json, read_sealed, sha256
from cluster.tracking.tracker import alarms, from_json, incidents
from conf.schema import Config

_LOAD = re.compile(r"(moe/\d+/load)/(\d+)")
_SECRET = re.compile(r"(?:.*_)?(?:key|secret|password|token|credentials?)", re.IGNORECASE)
_TITLE = 63  # characters that W&B allows for an alert's
_BINS = 512  # of a histogram
_SAMPLED = "samples_to_step"
# The table that is made of a stage's file, and the file.
_TABLES = {
    "answers": "answers.json",
    "task_answers": "task_answers.json",
    "samples": "samples.json",
    "rankings": "rankings.jsonl",
    "train": "train.jsonl",
    "prompts": "prompts.jsonl",
}


class Sender:
    """Lines of a metrics.jsonl as W&B shows them, from where an earlier attempt left off."""

    def __init__(self, run: Any, cfg: Config, stage: str) -> None:
        self._run, self._cfg, self._stage = run, cfg, stage
        self._known = run.summary.get("step", 0)  # the last step that W&B has seen
        self._sampled = run.summary.get(_SAMPLED, 0)  # and the last of which it has the samples
        self._last = 0  # the step of the line before
        self._maps = 0  # lines with loads up to now
        self._samples: Any = None  # the table
        self._waiting = 0  # its rows that are still to be sent

    def send(self, lines: Iterable[Mapping[str, Any]]) -> None:
        for line in lines:
            if self._cfg.tracker.rows and "samples" in line and line["step"] > self._sampled:
                self._take_samples(line)
            if "incident" in line and line["step"] < self._last:  # back on purpose: what follows is no repetition
                self._known = min(self._known, line["step"])
            self._last = line["step"]
            if line["step"] < self._known:
                continue
            values = {name: value for name, value in line.items() if name not in ("time", "samples")}
            # The step is a column: W&B's own counter takes none twice.
            self._run.log(self._with_heat(values) | {"_timestamp": line["time"]})
            for text in [*(text for _, text in alarms([line])), *(text for _, text in incidents([line]))]:
                self._alert(text, line["step"], "WARN")
            if "stopped" in line:
                self._alert(str(line["stopped"]), line["step"], "ERROR")

    def _with_heat(self, values: dict[str, Any]) -> dict[str, Any]:
        """The share of each expert as a layer's histogram, which W&B shows over the steps as a heat map, instead of a
        curve for each: a bin an expert."""
        import wandb

        loads: dict[str, dict[int, float]] = {}
        for name in list(values):
            if found := _LOAD.fullmatch(name):
                loads.setdefault(found[1], {})[int(found[2])] = values.pop(name)
        self._maps += bool(loads)
        every = self._cfg.tracker.heat_every
        if every and (self._maps - 1) % every == 0:
            for name, by_expert in loads.items():
                shares = [by_expert[expert] for expert in sorted(by_expert)][:_BINS]
                values[name] = wandb.Histogram(np_histogram=(shares, list(range(len(shares) + 1))))
        return values

    def _take_samples(self, line: Mapping[str, Any]) -> None:
        import wandb

        rows = [{"step": line["step"]} | row for row in line["samples"]]
        if self._samples is None:
            self._samples = wandb.Table(columns=list(rows[0]), log_mode="INCREMENTAL", allow_mixed_types=True)
        for row in rows:
            self._samples.add_data(*(row.get(column) for column in self._samples.columns))
        self._sampled, self._waiting = line["step"], self._waiting + len(rows)
        # Each part names all parts before it: many small ones would be large.
        if self._waiting >= self._cfg.tracker.rows:
            self.send_samples()

    def send_samples(self) -> None:
        """Send the rows that the table has got since it was sent last."""
        if self._waiting:
            try:
                self._run.log({"samples": self._samples, _SAMPLED: self._sampled})
            except (
                Exception
            ):  # of a table, unlike of numbers, W&B is told at once: what it does not take goes with the next
                return
            self._waiting = 0

    def _alert(self, text: str, step: float, level: str) -> None:
        title = f"{self._cfg.run.name}/{self._stage}: {text}"
        told = f"{self._cfg.run.name}, stage {self._stage}, step {step:g}: {text}"
        self._run.alert(title=title[:_TITLE], text=told, level=level, wait_duration=0.001)  # 0 is taken for a minute


def summarize(run: Any, folder: Path) -> None:
    """The finished stage's metrics in the run's summary, beside the last ones of its curves."""
    if (folder / MANIFEST).exists():
        manifest = read_sealed(folder)
        run.summary.update({f"final/{name}": value for name, value in from_json(manifest["metrics"]).items()})
        run.summary.update({"final/seconds": manifest["seconds"]})


def send_outputs(run: Any, cfg: Config, folder: Path, reads: Sequence[Path], page: Path | None) -> None:
    """Sample tables of the finished stage, itself and what it read as artifacts; waits for W&B's answers."""
    import wandb

    if cfg.tracker.rows:
        for name, file in _TABLES.items():
            if rows := sample_rows(folder / file, cfg.tracker.rows):
                run.log({f"tables/{name}": table(rows)})
    if page is not None and page.exists():
        run.log({page.stem: wandb.Html(str(page), inject=False)})
    for read in reads:
        if (read / MANIFEST).exists():
            # A draft, for W&B may not have seen that stage, and offline it can be asked for nothing: the artifact
            # that it has of the same files is the one that counts as used.
            run._log_artifact(artifact(cfg.run.name, read), is_user_created=True, use_after_commit=True)
    if (folder / MANIFEST).exists():
        run.log_artifact(artifact(cfg.run.name, folder), aliases=["latest", sha256(folder / MANIFEST)[:12]])
        if cfg.tracker.upload and (folder / "config.json").exists():
            run.log_artifact(weights(cfg.run.name, folder))


def artifact(run: str, folder: Path) -> Any:
    """A finished stage by the digests of its files; nothing of it is sent. The same files are the same artifact."""
    import wandb

    manifest = read_sealed(folder)
    kind = "model" if "config.json" in manifest["files"] else "dataset"
    about = {name: manifest.get(name) for name in ("stage", "code", "inputs", "metrics")}
    made = wandb.Artifact(_name(run, folder), type=kind, metadata=about | {"manifest": sha256(folder / MANIFEST)})
    for name, digest in manifest["files"].items():
        made.add_reference(f"sha256:{digest}", name=name)
    return made


def weights(run: str, folder: Path) -> Any:
    """The files of a finished model themselves."""
    import wandb

    made = wandb.Artifact(f"{_name(run, folder)}-files", type="weights")
    for name in read_sealed(folder)["files"]:
        if "/" not in name:
            made.add_file(str(folder / name), name=name, policy="immutable")
    return made


def _name(run: str, folder: Path) -> str:
    return re.sub(r"[/:]", "_", f"{run}-{folder.name}")[-120:]


def sample_rows(path: Path, limit: int) -> list[dict[str, Any]]:
    """The first `limit` objects of a stage's .json list or .jsonl; a ranking becomes a row for each of its answers."""
    try:
        if path.suffix == ".json":
            found = read_json(path) if path.exists() else []
        elif path.exists():
            with open(path, encoding="utf-8") as file:
                found = [json.loads(line) for _, line in zip(range(limit), file, strict=False)]
        else:
            found = []
    except (Damaged, ValueError):
        return []
    rows: list[dict[str, Any]] = []
    for item in found[:limit]:
        answers = item.get("answers")
        rest = {name: value for name, value in item.items() if name != "answers"}
        rows += [rest | {"answer": one.pop("text", ""), **one} for one in map(dict, answers)] if answers else [item]
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A W&B table with a column for every name; what is neither text nor number is JSON."""
    import wandb

    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    return wandb.Table(columns=columns, data=cells, allow_mixed_types=True)


def _cell(value: Any) -> Any:
    plain = value is None or isinstance(value, str | int | float)
    return value if plain else json.dumps(value, ensure_ascii=False)


def settings(cfg: Config) -> dict[str, Any]:
    """The whole config as W&B keeps it; what a name gives away as secret is left out."""
    tree: dict[str, Any] = json.loads(
        json.dumps(asdict(cfg), default=lambda value: getattr(value, "value", str(value)))
    )
    return _without_secrets(tree)


def _without_secrets(tree: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_secrets(value)
        if isinstance(value, dict)
        else "(secret)"
        if isinstance(value, str) and value and _SECRET.fullmatch(name)
        else value
        for name, value in tree.items()
    }

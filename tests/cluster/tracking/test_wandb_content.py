"""What W&B is shown of a stage, read back from the file that waits for `wandb sync`."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.tracking.wandb_content import Sender, sample_rows, settings
from conf.schema import Config
from tests.cluster.tracking.wandb_file import Written, written
from tests.cluster.tracking.wandb_stages import chat, config


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Written]:
    folder = chat(config(tmp_path_factory.mktemp("offline"), heat_every=2, rows=3))
    return folder, written(folder)


def test_a_run_says_what_it_is(offline: tuple[Path, Written]) -> None:
    folder, run = offline
    assert (run.run.project, run.run.run_group, run.run.display_name) == ("conclave", "r", "r/chat")
    assert (run.run.job_type, run.run.run_id, run.exit_code) == ("chat", (folder / "wandb" / "id").read_text(), 0)
    assert (run.config["stage"], run.config["seed"], run.config["optim"]["lr"]) == ("chat", 7, Config().optim.lr)
    assert run.config["tracker"]["kind"] == "wandb" and run.config["code"]["torch"]
    assert run.config["code"] == json.loads((folder / "manifest.json").read_text())["code"]


def test_curves_are_those_of_metrics_jsonl(offline: tuple[Path, Written]) -> None:
    _, run = offline
    for name, value in (("loss", lambda step: 1 / step), ("val/moon/loss", lambda step: step / 8)):
        found = [(line["step"], line[name]) for line in run.history if name in line]
        assert found == [(step, pytest.approx(value(step))) for step in range(1, 5)]
    assert {name: run.summary[f"final/{name}"] for name in ("form_ok", "forgetting")} == {
        "form_ok": 0.5,
        "forgetting": 1.25,
    }


def test_the_router_is_a_heat_map_and_no_curve_an_expert(offline: tuple[Path, Written]) -> None:
    _, run = offline
    maps = [line for line in run.history if "moe/1/load/_type" in line]
    assert [line["step"] for line in maps] == [1, 3]  # every second log
    assert maps[0]["moe/1/load/values"] == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    assert maps[0]["moe/1/load/bins"] == [0, 1, 2, 3]  # a bin an expert
    assert not any("moe/1/load/0" in line for line in run.history)


def test_samples_are_appended_and_outputs_shown_once(offline: tuple[Path, Written]) -> None:
    folder, run = offline
    (kept,) = (folder / "wandb").glob("offline-run-*/files")

    def tables(name: str) -> list[dict[str, Any]]:
        paths = [line[f"{name}/path"] for line in run.history if f"{name}/path" in line]
        return [json.loads((kept / path).read_text()) for path in paths]

    first, rest = tables("samples")  # three rows make a part
    assert first == {"columns": ["step", "prompt", "answer"], "data": [[n, "p", f"a{n}"] for n in (1, 2, 3)]}
    assert rest["data"] == [[4, "p", "a4"]]
    assert tables("tables/answers") == [
        {"columns": ["id", "answer", "reward", "reasons"], "data": [["q", "月", 0.5, '["short"]']]}
    ]


def test_an_incident_and_an_alarm_are_alerts(offline: tuple[Path, Written]) -> None:
    _, run = offline
    assert run.alerts == [
        ("r/chat: step 3 left out: loss 9.1", "r, stage chat, step 4: step 3 left out: loss 9.1", "WARN"),
        (
            "r/chat: layer 1: expert 0 gets no token",
            "r, stage chat, step 4: layer 1: expert 0 gets no token",
            "WARN",
        ),
        ("r/chat: doctor.stop=true", "r, stage chat, step 4: doctor.stop=true", "ERROR"),
    ]


def test_a_stage_is_an_artifact_by_digests_and_uses_those_it_read(offline: tuple[Path, Written]) -> None:
    folder, run = offline
    of_stages = [one for one in run.artifacts if one.type in ("model", "dataset")]
    assert [(one.name, one.type, one.use_after_commit) for one in of_stages] == [
        ("r-tasks", "dataset", True),
        ("r-chat", "model", False),
    ]
    manifest = json.loads((folder / "manifest.json").read_text())
    entries = {entry.path: entry for entry in of_stages[1].manifest.contents}
    assert {name: entry.digest for name, entry in entries.items()} == {
        name: f"sha256:{digest}" for name, digest in manifest["files"].items()
    }
    assert all(entry.ref and not entry.local_path for entry in entries.values())  # nothing to upload
    about = json.loads(of_stages[1].metadata)
    assert (about["inputs"], about["metrics"]) == (manifest["inputs"], manifest["metrics"])
    # What the stage tasks has logged of itself is the same artifact.
    of_tasks = written(folder.parent / "tasks").artifacts
    (logged,) = [one for one in of_tasks if one.name == "r-tasks"]
    assert (logged.digest, logged.use_after_commit) == (of_stages[0].digest, False)


def test_weights_are_sent_if_asked_for(tmp_path: Path) -> None:
    run = written(chat(config(tmp_path, upload=True, rows=0)))
    (files,) = [one for one in run.artifacts if one.type == "weights"]
    assert files.name == "r-chat-files"
    assert {entry.path for entry in files.manifest.contents} == {"config.json", "answers.json"}
    assert all(entry.local_path for entry in files.manifest.contents)
    assert not any(name.startswith(("tables/", "samples")) for line in run.history for name in line)  # tracker.rows=0


class Resumed:
    """A run of which W&B has seen the steps up to the fourth."""

    def __init__(self) -> None:
        self.summary, self.alerts = {"step": 4}, 0
        self.logged: list[tuple[int, float | None]] = []

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append((values["step"], values.get("loss")))

    def alert(self, **_: Any) -> None:
        self.alerts += 1


def test_a_resumed_run_gets_what_it_lacks_and_a_rollback_whole(tmp_path: Path) -> None:
    run = Resumed()
    sender = Sender(run, config(tmp_path), "base")
    sender.send([{"step": step, "time": 0.0, "loss": step / 2} for step in range(1, 7)])
    assert run.logged == [(4, 2.0), (5, 2.5), (6, 3.0)]
    sender.send([{"step": 2, "time": 0.0, "incident": "back"}, {"step": 3, "time": 0.0, "loss": 9.0}])
    assert run.logged[3:] == [(2, None), (3, 9.0)] and run.alerts == 1


def test_rankings_become_a_row_an_answer(tmp_path: Path) -> None:
    ranking = {"id": "q", "answers": [{"text": "x", "rank": 0, "scores": {"clear": 1.0}}, {"text": "y", "rank": 1}]}
    path = tmp_path / "rankings.jsonl"
    path.write_text(f"{json.dumps(ranking)}\n" * 3)
    rows = sample_rows(path, 2)
    assert [(row["id"], row["answer"], row["rank"]) for row in rows] == [("q", "x", 0), ("q", "y", 1)] * 2
    assert sample_rows(tmp_path / "none.json", 2) == []


def test_what_a_name_gives_away_as_secret_is_left_out(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    options: dict[str, Any] = {"api_key": "canary", "judge": {"token": "canary", "max_tokens": 5}, "style": "free"}
    cfg.tasks.options = options
    kept = settings(cfg)
    assert kept["tasks"]["options"] == {
        "api_key": "(secret)",
        "judge": {"token": "(secret)", "max_tokens": 5},
        "style": "free",
    }
    assert "canary" not in json.dumps(kept)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "no secret goes with the config",
        "cluster/tracking/wandb_content.py",
        'else "(secret)"',
        "else value",
        "test_what_a_name_gives_away_as_secret_is_left_out",
    ),
    (
        "lineage: a stage uses what it read",
        "cluster/tracking/wandb_content.py",
        "use_after_commit=True",
        "use_after_commit=False",
        "test_a_stage_is_an_artifact_by_digests_and_uses_those_it_read",
    ),
    (
        "an expert's share is in its bin",
        "cluster/tracking/wandb_content.py",
        "for expert in sorted(by_expert)]",
        "for expert in sorted(by_expert, reverse=True)]",
        "test_the_router_is_a_heat_map_and_no_curve_an_expert",
    ),
    (
        "samples are appended",
        "cluster/tracking/wandb_content.py",
        "if self._waiting >= self._cfg.tracker.rows:",
        "if False:",
        "test_samples_are_appended_and_outputs_shown_once",
    ),
    (
        "an incident is an alert",
        "cluster/tracking/wandb_content.py",
        "*(text for _, text in incidents([line]))",
        "",
        "test_an_incident_and_an_alarm_are_alerts",
    ),
]

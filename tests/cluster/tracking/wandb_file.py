"""What W&B's client wrote into a run's .wandb file: a log of LevelDB's format, each record a message."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768
HEADER = 7  # bytes of the file's, and of each piece's: checksum, length, kind
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def messages(path: Path) -> Iterator[bytes]:
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    at, begun = HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK  # a piece's header is never split
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + HEADER])
        piece = content[at + HEADER : at + HEADER + length]
        if len(piece) < length:
            return  # it is being written
        at += HEADER + length
        begun = piece if kind in (FULL, FIRST) else begun + piece
        if kind in (FULL, LAST):
            yield begun


class Written:
    """The records of a run, as W&B's server would be told them."""

    def __init__(self, path: Path) -> None:
        from wandb.proto.wandb_internal_pb2 import Record

        self.history: list[dict[str, Any]] = []
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.alerts: list[tuple[str, str, str]] = []  # title, text, level
        self.artifacts: list[Any] = []
        self.run: Any = None
        self.exit_code: int | None = None
        for message in messages(path):
            record = Record.FromString(message)
            match record.WhichOneof("record_type"):
                case "run":
                    self.run = record.run
                    self.config |= values(record.run.config.update)
                case "config":
                    self.config |= values(record.config.update)
                case "history":
                    self.history.append(values(record.history.item))
                case "summary":
                    self.summary |= values(record.summary.update)
                case "alert":
                    self.alerts.append((record.alert.title, record.alert.text, record.alert.level))
                case "artifact":
                    self.artifacts.append(record.artifact)
                case "exit":
                    self.exit_code = record.exit.exit_code


def values(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def written(folder: Path) -> Written:
    """The one run that a stage's folder keeps for `wandb sync`, whole."""
    (path,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    until = time.monotonic() + 20
    while (run := Written(path)).exit_code is None and time.monotonic() < until:
        time.sleep(0.05)  # W&B's own process is still about to close it
    assert run.exit_code is not None, f"{path}: not closed"
    return run

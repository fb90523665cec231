"""Hugging Face datasets as input, by the library that writes them.

    my/dataset                a folder of Dataset.save_to_disk, or of a DatasetDict that has one split
    my/dataset:train          a split of a DatasetDict
    hf:org/name:train         a dataset of the Hub, streamed
    hf:org/name/config:train  one of its configurations
    hf:org/name@COMMIT:train  as it was at a commit (or branch, or tag), whose 40 digits ask the Hub for nothing until
                              the data are read

A name without a split means the only one; where there are several they are named, for to read a test split along with
the others is seldom meant. A table has every column in every row: what is null in a row counts as missing.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pyarrow as pa

from cluster.storage import Damaged, read_json, sha256
from conf.errors import InputError
from trainers.files.tables import DATES

HUB = "hf:"
REACH = 10.0  # seconds in which the Hub must answer at all; the library itself would try again and again
_NAME = re.compile(
    r"hf:(?P<repo>[\w.-]+(/[\w.-]+)?)(/(?P<config>[\w.-]+))?(@(?P<commit>[\w.-]+))?(:(?P<split>[\w.-]+))?", re.ASCII
)
_COMMIT = re.compile("[0-9a-f]{40}")
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)


class _Hub(NamedTuple):
    repo: str
    config: str | None
    commit: str | None
    split: str | None

    @property
    def name(self) -> str:
        parts = [f"{HUB}{self.repo}", f"/{self.config}" if self.config else ""]
        return "".join([*parts, f"@{self.commit}" if self.commit else "", f":{self.split}" if self.split else ""])


def named(pattern: str, knob: str) -> str | None:
    """The full name of the dataset that `pattern` names, its split and on the Hub its commit said; None if it names
    none. Raises `InputError` for a dataset or a split that does not exist, and for a Hub out of reach."""
    if pattern.startswith(HUB):
        hub = _hub(pattern, knob)
        if hub.split and _COMMIT.fullmatch(hub.commit or ""):
            return hub.name
        commit, splits = _ask(hub, knob)
        return hub._replace(
            commit=commit, split=_choose(hub.split, splits, pattern, hub._replace(split=None).name, knob)
        ).name
    folder, split = _parts(pattern)
    if not _is_saved(folder):
        return None
    if (folder / "dataset_dict.json").is_file():
        split = _choose(split, _read(folder / "dataset_dict.json", "splits"), pattern, str(folder), knob)
    elif split:
        raise InputError(f"{knob}: {pattern}: {folder} is one dataset without splits; leave out :{split}")
    return f"{folder}:{split}" if split else str(folder)


def _choose(split: str | None, splits: list[str], pattern: str, dataset: str, knob: str) -> str:
    if split in splits:
        return split
    if not split and len(splits) == 1:
        return splits[0]
    what = f"no split {split!r}" if split else "say which split"
    there = f"there are {', '.join(splits)}; try {dataset}:{splits[0]}" if splits else "it has none"
    raise InputError(f"{knob}: {pattern}: {what}; {there}")


def title(name: str) -> str:
    """Of a full name: the dataset's own and its split, "dataset:train"."""
    if name.startswith(HUB):
        hub = _hub(name, "")
        return f"{Path(hub.repo).name}:{hub.split}"
    folder, split = _parts(name)
    return folder.resolve().name + (f":{split}" if split else "")


def absolute(name: str) -> str:
    """A full name that means the same from another working folder."""
    return name if name.startswith(HUB) else str(Path(name).absolute())


def digest(name: str) -> str:
    """What decides a dataset's content: the commit on the Hub, or a sha256 over features and files on the disk."""
    if name.startswith(HUB):
        return str(_hub(name, "").commit)
    folder = _split_folder(name)
    features = json.dumps(_read(folder / "dataset_info.json", "features"), sort_keys=True)
    files = [folder / file["filename"] for file in _read(folder / "state.json", "_data_files")]
    for file in files:
        if not file.is_file():
            raise InputError(f"{name}: {file.name} is missing; save the dataset again")
    return hashlib.sha256("\n".join([features, *map(sha256, files)]).encode()).hexdigest()


def rows(name: str, needed: Collection[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a dataset by its full name, in order, one in memory at a time; a class is given by its name.

    Columns with bytes in them (images, audio, ...) have no form as text: one of the `needed` columns raises
    `InputError`, others are left out. `needed` None: all columns.
    """
    data = _stream(name) if name.startswith(HUB) else _load(name)
    features = data.features or {}
    bytes_in = {column: kind for column in features if (kind := _bytes_in(column, features))}
    for column, kind in bytes_in.items():
        if needed is None or column in needed:
            raise InputError(
                f"{name}: column {column!r} holds {kind}, which has no form as text; "
                f"leave it out with remove_columns([{column!r}])"
            )
    for column in needed or ():
        kind = data.features.arrow_schema.field(column).type if column in features else pa.null()
        if any(dated(kind) for dated in DATES):
            raise InputError(f"{name}: column {column!r} holds {kind}, and a template takes text; cast it to string")
    data = data.remove_columns(list(bytes_in)) if bytes_in else data
    classes = {column: list(names) for column, of in features.items() if (names := getattr(of, "names", None))}
    for row in data:
        for column in classes.keys() & row.keys():
            label = row[column]
            row[column] = classes[column][label] if label is not None and label >= 0 else None
        yield _without_nulls(row)


def as_text(value: object) -> object:
    """For json: dates and numbers that JSON lacks as text, arrays as lists. Raises `TypeError` for all else."""
    if isinstance(value, date | time | timedelta | Decimal):
        return str(value)
    if callable(tolist := getattr(value, "tolist", None)):
        return tolist()
    raise TypeError(f"a value of type {type(value).__name__} has no form as text")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _bytes_in(column: str, features: Any) -> str:
    """What a column holds, if there are bytes anywhere in it: 'Image', 'binary'."""
    kinds = [features.arrow_schema.field(column).type]
    while kinds:
        kind = kinds.pop()
        if any(is_bytes(kind) for is_bytes in _BYTES):
            return "binary" if type(features[column]).__name__ == "Value" else type(features[column]).__name__
        kinds += [kind.field(number).type for number in range(kind.num_fields)]
    return ""


def _parts(name: str) -> tuple[Path, str]:
    """(folder, split or "") of a dataset on the disk."""
    folder, colon, split = name.rpartition(":")
    return (Path(folder), split) if colon and not _is_saved(Path(name)) else (Path(name), "")


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))


def _split_folder(name: str) -> Path:
    folder, split = _parts(name)
    return folder / split if split else folder


def _read(path: Path, field: str) -> Any:
    try:
        return read_json(path)[field]
    except (Damaged, KeyError, TypeError) as error:
        raise InputError(f"{path}: not what save_to_disk writes ({error}); save the dataset again") from None


def _load(name: str) -> Any:
    from datasets import disable_progress_bars, load_from_disk

    disable_progress_bars()
    folder = _split_folder(name)
    if not _read(folder / "state.json", "_data_files"):
        raise InputError(f"{name}: holds no record")
    try:
        data = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{name}: not what save_to_disk writes ({_first_line(error)}); save it again") from None
    return data.with_format(None)  # it might have been saved as another library's tensors


def _hub(name: str, knob: str) -> _Hub:
    found = _NAME.fullmatch(name)
    if not found:
        raise InputError(f"{knob}: {name} is no dataset's name; write hf:org/name:split or hf:org/name/config:split")
    return _Hub(found["repo"], found["config"], found["commit"], found["split"])


def _reach(where: str) -> None:
    """Raise `InputError` if the Hub does not answer."""
    from datasets import config

    instead = "save_to_disk it where there is a network, and give the folder"
    if config.HF_HUB_OFFLINE:
        raise InputError(f"{where}: HF_HUB_OFFLINE or HF_DATASETS_OFFLINE forbids to ask the Hub; {instead}")
    try:
        httpx.head(config.HF_ENDPOINT, timeout=REACH)
    except httpx.HTTPError as error:
        raise InputError(f"{where}: {config.HF_ENDPOINT} is out of reach ({error}); {instead}") from None


def _ask(hub: _Hub, knob: str) -> tuple[str, list[str]]:
    """(commit, splits) of a dataset on the Hub."""
    where = f"{knob}: {hub.name}"
    _reach(where)
    from datasets import load_dataset_builder

    try:
        builder = load_dataset_builder(hub.repo, hub.config, revision=hub.commit)
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:  # no such dataset, configuration, access, ...
        raise InputError(f"{where}: {_first_line(error)}") from None
    return str(builder.hash), list(builder.config.data_files or builder.info.splits or ())


def _stream(name: str) -> Any:
    hub = _hub(name, "")
    _reach(name)
    from datasets import load_dataset

    try:
        return load_dataset(hub.repo, hub.config, split=hub.split, revision=hub.commit, streaming=True)
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise InputError(f"{name}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

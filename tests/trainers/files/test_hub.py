"""Datasets of the Hugging Face Hub by name: what happens before and after the library's part."""

from collections.abc import Iterator
from typing import Any

import datasets
import httpx
import pytest

from conf.errors import InputError
from trainers.files import datasets as ours
from trainers.files.readers import absolute, digest, expand, read_records

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Builder:
    """What `load_dataset_builder` says of a dataset on the Hub."""

    hash = COMMIT

    def __init__(self, *splits: str) -> None:
        self.config = self
        self.data_files = {split: ["x.parquet"] for split in splits}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """A Hub that answers, with one dataset of two splits; what was asked of it."""
    asked: list[Any] = []

    def builder(*given: Any, **named: Any) -> Builder:
        asked.append((*given, named))
        return Builder("train", "test")

    def load(*given: Any, **named: Any) -> Any:
        asked.append((*given, named))
        return datasets.IterableDataset.from_generator(lambda: iter([{"text": "a", "n": None}, {"text": b"b"}]))

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(httpx, "head", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset_builder", builder)
    monkeypatch.setattr(datasets, "load_dataset", load)
    yield asked


def test_a_name_on_the_hub_is_pinned_and_streamed(hub: list[Any]) -> None:
    (name,) = expand(["hf:org/name/zh:train"])
    assert name == f"hf:org/name/zh@{COMMIT}:train" and digest(name) == COMMIT and absolute(name) == name
    assert hub == [("org/name", "zh", {"revision": None})]
    assert expand([name]) == [name] and len(hub) == 1  # all is said: nothing to ask
    records = read_records(name)
    assert next(records) == (1, {"text": "a"})
    with pytest.raises(InputError, match=rf"@{COMMIT}:train row 2: a value of type bytes has no form as text$"):
        next(records)
    assert hub[1] == ("org/name", "zh", {"split": "train", "revision": COMMIT, "streaming": True})
    assert ours.title(name) == "name:train"
    assert expand(["hf:name@v1:test"]) == [f"hf:name@{COMMIT}:test"] and hub[2] == ("name", None, {"revision": "v1"})


def test_what_the_hub_does_not_have_is_named(hub: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError) as raised:
        expand(["hf:org/name:tset"], "reward.files")
    told = "no split 'tset'; there are train, test; try hf:org/name:train"
    assert str(raised.value) == f"reward.files: hf:org/name:tset: {told}"
    with pytest.raises(InputError, match="hf:org/name: say which split; there are train, test; try hf:org/name:train"):
        expand(["hf:org/name"])
    for wrong in ("hf:", "hf:a/b/c/d", "hf:org/name:train[:5]", "hf:/org/name"):
        with pytest.raises(InputError, match="is no dataset's name; write hf:org/name:split"):
            expand([wrong])

    def none(*_: Any, **__: Any) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/no' doesn't exist\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", none)
    with pytest.raises(InputError, match="^tasks.queries: hf:org/no:train: Dataset 'org/no' doesn't exist$"):
        expand(["hf:org/no:train"], "tasks.queries")


def test_without_a_network_the_name_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="^corpus.files: hf:org/name:train: HF_HUB_OFFLINE or .*save_to_disk"):
        expand(["hf:org/name:train"])
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):  # pinned: found out where it is read
        list(read_records(f"hf:org/name@{COMMIT}:train"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="^corpus.files: hf:org/name:train: http://127.0.0.1:9 is out of reach"):
        expand(["hf:org/name:train"])


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "of the Hub the commit is read that the settings name",
        "trainers/files/datasets.py",
        "split=hub.split, revision=hub.commit, streaming=True",
        "split=hub.split, streaming=True",
        "test_a_name_on_the_hub_is_pinned_and_streamed",
    ),
    (
        "without a network nothing is tried again and again",
        "trainers/files/datasets.py",
        "    _reach(where)\n",
        "",
        "test_without_a_network_the_name_is_refused_at_once",
    ),
]

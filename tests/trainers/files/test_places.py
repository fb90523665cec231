"""Which files are read: each once, whatever its names; folders and what lies in them beside the records."""

import os
from pathlib import Path

import pytest

from conf.errors import InputError
from trainers.files.readers import digest, expand, unchanged


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text('{"text": "a"}\n')


def test_a_folder_is_what_it_holds(tmp_path: Path) -> None:
    put(tmp_path, "b.jsonl", "a/x.txt", "a/y.bin", "README.md", "README.txt", "_SUCCESS", ".hidden.jsonl", ".git/z.txt")
    said: list[str] = []
    assert expand([str(tmp_path)], told=said.append) == [f"{tmp_path}/a/x.txt", f"{tmp_path}/b.jsonl"]
    left = ", ".join(f"{tmp_path}/{name}" for name in ("README.md", "README.txt", "_SUCCESS", "a/y.bin"))
    assert said == [f"corpus.files: 4 left out, for they are no records: {left}"]
    said.clear()
    assert expand([f"{tmp_path}/*"], told=said.append) == [f"{tmp_path}/b.jsonl", f"{tmp_path}/a/x.txt"][:1]
    assert len(said) == 1 and "README.txt" in said[0]
    assert expand([f"{tmp_path}/README.txt"]) == [f"{tmp_path}/README.txt"]  # one that is named is meant
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"none: a folder without a dataset, and without a file that ends in \.txt"):
        expand([f"{tmp_path}/none"])


def test_a_file_is_read_once_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "a.jsonl")
    os.link(tmp_path / "a.jsonl", tmp_path / "c.jsonl")
    monkeypatch.chdir(tmp_path)
    assert expand(["a.jsonl", "./a.jsonl", f"{tmp_path}/*.jsonl", "."]) == ["a.jsonl"]


def test_folders_that_link_to_themselves_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.jsonl", "x/b.jsonl", "x/[y]/c.jsonl", ".no/d.jsonl")
    for name in ("one", "two", "x/three"):
        (tmp_path / name).symlink_to(tmp_path)
    right = ["a.jsonl", "x/[y]/c.jsonl", "x/b.jsonl"]
    for pattern in ("**/*.jsonl", "**", "**/**/**/*.jsonl", ""):
        assert expand([f"{tmp_path}/{pattern}"]) == [f"{tmp_path}/{name}" for name in right], pattern
    monkeypatch.chdir(tmp_path)
    assert expand(["**/*.jsonl"]) == right
    assert expand(["x/**/*.jsonl"]) == right[1:]
    assert expand([f"{tmp_path}/**/b.*"]) == [f"{tmp_path}/x/b.jsonl"]


def test_a_name_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff.jsonl", "wb") as file:
        file.write(b'{"text": "a"}\n')
    with pytest.raises(InputError, match=r"\\xff\.jsonl': a file's name must be UTF-8; rename it"):
        expand([f"{tmp_path}/*.jsonl"])


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.jsonl")

    def refuse(path: str) -> str:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("trainers.files.readers.sha256", refuse)
    with pytest.raises(InputError, match=r"a\.jsonl: Permission denied$"):
        digest(f"{tmp_path}/a.jsonl")


def test_a_file_that_was_changed_after_its_hash_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "b.jsonl")
    taken = {path: digest(path) for path in expand([f"{tmp_path}/*"])}
    os.utime(tmp_path / "a.jsonl")
    unchanged(taken)
    with open(tmp_path / "b.jsonl", "a", encoding="utf-8") as file:
        file.write("{}\n")
    with pytest.raises(InputError, match=r"b\.jsonl: it was changed while it was read"):
        unchanged(taken)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    ("a file is read once", "trainers/files/places.py", "return (told.st_dev, told.st_ino)", "return name", None),
    (
        "what is not read is said",
        "trainers/files/readers.py",
        "    if left and told:",
        "    if told and not left:",
        None,
    ),
    ("a README is no document", "trainers/files/readers.py", "places.is_about(match)", "False", None),
    ("a file that changed is refused", "trainers/files/readers.py", "if digest(path) != taken:", "if not taken:", None),
    (
        "a name that is no text is said",
        "trainers/files/places.py",
        "            name.encode()\n",
        "            str(name)\n",
        None,
    ),
]

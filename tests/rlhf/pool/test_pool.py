"""The experience pool gives back what it got, to the bit, by what it is; in as much memory as it may have."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from rlhf.messages import Key, Response
from rlhf.pool.pool import Pool, bucket


def made(number: int, *, tokens: int = 20, routed: bool = False) -> Response:
    key = Key(number // 10, f"问{number}", number % 3, version=number // 20)
    answer = [number % 97] * (1 + number % tokens)
    logprobs = [-0.1 * (place + 1) for place in range(len(answer))]
    routes = torch.arange((len(answer) + 1) * 4, dtype=torch.int16).view(-1, 2, 2) if routed else None
    return Response(key, [number % 50_000, 7], answer, logprobs, number % 2 == 0, routes, begun=number % 2)


def same(one: Response, other: Response) -> bool:
    if (one.routes is None) != (other.routes is None):
        return False
    return one == other and (one.routes is None or other.routes is None or torch.equal(one.routes, other.routes))


def test_answers_come_back_to_the_bit_from_memory_and_from_the_file(tmp_path: Path) -> None:
    given = [made(number, routed=number % 2 == 0) for number in range(300)]
    pool = Pool(0.02, tmp_path)
    for start in range(0, 300, 50):
        pool.put(given[start : start + 50], [f"task {number % 4}" for number in range(start, start + 50)])
    assert len(pool) == 300 and pool.in_memory <= 20_000
    assert all(same(one, other) for one, other in zip(pool.get(range(300)), given, strict=True))
    assert list(tmp_path.iterdir()) == []  # the file has no name, and goes with the process
    pool.writer()(tmp_path)
    again = Pool.read(tmp_path, 0.01)
    assert again.find() == list(range(300)) and again.find(task="task 1") == pool.find(task="task 1")
    assert all(same(one, other) for one, other in zip(again.get(range(300)), given, strict=True))
    assert len(Pool.read(tmp_path / "none", 1.0)) == 0


def test_answers_are_found_by_what_they_are() -> None:
    given = [made(number) for number in range(100)]
    pool = Pool(1.0)
    pool.put(given, ["rhyme" if number % 5 == 0 else "form" for number in range(100)])
    assert pool.find(iteration=3) == list(range(30, 40))
    assert pool.find(versions=range(2, 4)) == list(range(40, 80))
    assert pool.find(task="rhyme", versions=range(1)) == [0, 5, 10, 15] and pool.find(task="none") == []
    assert [bucket(replace(given[0], prompt=[5] * count, answer=[7])) for count in (1, 2, 3, 6, 7)] == [2, 2, 3, 3, 4]
    assert pool.find(bucket=2) == [number for number in range(100) if number % 20 in (0,)]
    assert sorted(place for each in range(8) for place in pool.find(bucket=each)) == list(range(100))


def test_what_is_taken_is_gone_and_its_room_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf.pool.pool._LEAST", 1000)
    given, pool = [made(number) for number in range(400)], Pool(0.005, tmp_path)
    pool.put(given, ["form"] * 400)
    whole = pool._file.seek(0, 2)
    assert [response.key for response in pool.take(pool.find(versions=range(15)))] == [one.key for one in given[:300]]
    assert len(pool) == 100 and pool.find() == list(range(300, 400)) and pool._file.seek(0, 2) < whole / 2
    assert all(same(one, other) for one, other in zip(pool.get(pool.find()), given[300:], strict=True))
    with pytest.raises(AssertionError, match="answer 5 is gone"):
        pool.get([5])
    with pytest.raises(AssertionError, match="answer 5 is gone already"):
        pool.drop([5])


@pytest.mark.slow
def test_a_hundred_thousand_answers_take_as_much_memory_as_they_may(tmp_path: Path) -> None:
    """2 GB are for answers of thousands of tokens; these are short, and have a hundredth."""
    one = made(19, tokens=200)
    one = replace(one, prompt=list(range(300)), answer=[7] * 200, logprobs=[-0.5] * 200, begun=0)
    process = psutil.Process()
    pool, before = Pool(20.0, tmp_path), process.memory_info().rss
    for start in range(0, 100_000, 1000):
        some = [replace(one, key=Key(start // 1000, "q", place, version=start // 1000)) for place in range(1000)]
        pool.put(some, ["form"] * 1000)
    assert len(pool) == 100_000 and pool.in_memory <= 20e6 and pool._file.seek(0, 2) > 300e6
    assert process.memory_info().rss - before < 20e6 + 60e6
    found = pool.find(versions=range(40, 41), task="form", bucket=9)
    assert len(found) == 1000 and pool.get(found[:1])[0].logprobs == one.logprobs


PLANTED = [  # promise, file, right code, bug, test
    (
        "the pool takes no more memory than it may",
        "rlhf/pool/pool.py",
        "        while self._bytes > self._most:\n",
        "        while self._bytes > 10 * self._most:\n",
        "test_answers_come_back_to_the_bit_from_memory_and_from_the_file",
    ),
    (
        "what is spilled is found again where it lies",
        "rlhf/pool/pool.py",
        '            index[number]["at"] = fresh.tell()\n            fresh.write(content)\n',
        '            fresh.write(content)\n            index[number]["at"] = fresh.tell()\n',
        "test_what_is_taken_is_gone_and_its_room_is_used_again",
    ),
    (
        "an old answer is told by its version",
        "rlhf/pool/pool.py",
        '(index["version"] < versions.stop)',
        '(index["version"] <= versions.stop)',
        "test_answers_are_found_by_what_they_are",
    ),
]

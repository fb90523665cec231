"""Answers that are still to be learnt from: in memory as far as it may go, the rest in a file, found by what they are.

What an answer is found by (the iteration that it is for, the version of the policy that made it, its task, how long it
is) lies in arrays, 33 bytes of each: 100,000 of them are looked through without the disk.
"""

import json
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from cluster.storage import write_file
from rlhf.messages import Key, Response

_INDEX = np.dtype(
    [
        ("iteration", "<i4"),
        ("version", "<i4"),
        ("task", "<i4"),
        ("bucket", "<i4"),
        ("size", "<i4"),  # bytes
        ("at", "<i8"),  # in the file; -1: in memory
        ("there", "?"),
    ]
)
_LEAST = 1 << 20  # bytes of answers that are gone, below which the file is left as it is


def bucket(response: Response) -> int:
    """Of its tokens, prompt and answer: b for those from 2^(b-1) to 2^b - 1."""
    return (len(response.prompt) + len(response.answer)).bit_length()


class Pool:
    """Of at most `memory_mb` of answers in memory. `folder` is where the file lies, which has no name and goes with the
    process; the system's folder for such files if it is None."""

    def __init__(self, memory_mb: float, folder: Path | None = None) -> None:
        self._most, self._folder = int(memory_mb * 1e6), folder
        self._index = np.zeros(64, dtype=_INDEX)
        self._count = 0
        self._tasks: dict[str, int] = {}
        self._held: OrderedDict[int, bytes] = OrderedDict()  # the oldest first
        self._bytes = 0
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (it lives as long as the pool)
        self._dead = 0  # bytes of the file that nobody asks for

    def __len__(self) -> int:
        return int(self._index["there"][: self._count].sum())

    @property
    def in_memory(self) -> int:
        """Bytes of answers there."""
        return self._bytes

    def put(self, responses: Iterable[Response], tasks: Iterable[str]) -> None:
        """Take in answers, each with the task of its query."""
        for response, task in zip(responses, tasks, strict=True):
            content = _packed(response)
            if self._count == len(self._index):
                self._index = np.concatenate([self._index, np.zeros(self._count, dtype=_INDEX)])
            number = self._tasks.setdefault(task, len(self._tasks))
            key = response.key
            self._index[self._count] = (key.iteration, key.version, number, bucket(response), len(content), -1, True)
            self._held[self._count] = content
            self._bytes += len(content)
            self._count += 1
        self._spill()

    def find(
        self,
        *,
        iteration: int | None = None,
        versions: range | None = None,
        bucket: int | None = None,
        task: str | None = None,
    ) -> list[int]:
        """The numbers of the answers that are there and are all of this, in the order in which they came."""
        index = self._index[: self._count]
        fits = index["there"].copy()
        if iteration is not None:
            fits &= index["iteration"] == iteration
        if versions is not None:
            fits &= (index["version"] >= versions.start) & (index["version"] < versions.stop)
        if bucket is not None:
            fits &= index["bucket"] == bucket
        if task is not None:
            fits &= index["task"] == self._tasks.get(task, -1)
        return [int(number) for number in fits.nonzero()[0]]

    def get(self, numbers: Sequence[int]) -> list[Response]:
        """These answers, as they came."""
        return [_unpacked(self._content(number)) for number in numbers]

    def take(self, numbers: Sequence[int]) -> list[Response]:
        """These answers, which are gone from here then."""
        taken = self.get(numbers)
        self.drop(numbers)
        return taken

    def drop(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            row = self._index[number]
            assert row["there"], f"answer {number} is gone already"
            row["there"] = False
            if row["at"] < 0:
                self._bytes -= len(self._held.pop(number))
            else:
                self._dead += int(row["size"])
        self._compact()

    def writer(self) -> Callable[[Path], None]:
        """What writes all that is there now into two files of a folder, whatever becomes of it meanwhile."""
        numbers = self.find()
        tasks = {number: name for name, number in self._tasks.items()}
        named = [tasks[int(self._index[number]["task"])] for number in numbers]
        contents = [self._content(number) for number in numbers]

        def write(folder: Path) -> None:
            write_file(folder / "pool.bin", b"".join(contents))
            sizes = [[len(content), task] for content, task in zip(contents, named, strict=True)]
            write_file(folder / "pool.json", json.dumps(sizes))

        return write

    @classmethod
    def read(cls, folder: Path, memory_mb: float, spill: Path | None = None) -> "Pool":
        """As `writer` left it; of a folder without one, empty."""
        pool = cls(memory_mb, spill)
        if (folder / "pool.json").is_file():
            with (folder / "pool.bin").open("rb") as file:
                for size, task in json.loads((folder / "pool.json").read_text("utf-8")):
                    pool.put([_unpacked(file.read(size))], [task])
        return pool

    def _content(self, number: int) -> bytes:
        row = self._index[number]
        assert row["there"], f"answer {number} is gone"
        if row["at"] < 0:
            return self._held[number]
        self._file.seek(int(row["at"]))
        return self._file.read(int(row["size"]))

    def _spill(self) -> None:
        """The oldest to the end of the file, until what is left may stay."""
        if self._bytes > self._most:
            self._file.seek(0, 2)
        while self._bytes > self._most:
            number, content = self._held.popitem(last=False)
            self._index[number]["at"] = self._file.tell()
            self._file.write(content)
            self._bytes -= len(content)

    def _compact(self) -> None:
        """Another file, when most of this one is of answers that are gone; the index forgets these at its beginning."""
        index = self._index[: self._count]
        living = (index["there"] & (index["at"] >= 0)).nonzero()[0]
        if self._dead < _LEAST or self._dead < int(index["size"][living].sum()):
            return
        fresh = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
        for number in living:
            content = self._content(int(number))
            index[number]["at"] = fresh.tell()
            fresh.write(content)
        self._file.close()
        self._file, self._dead = fresh, 0


def _packed(response: Response) -> bytes:
    """Its arrays after a line that says how long they are."""
    key, routes = response.key, response.routes
    head = json.dumps(
        [
            *(key.iteration, key.query, key.sample, key.version),
            *(len(response.prompt), len(response.answer), response.finished, response.begun),
            list(routes.shape) if routes is not None else None,
        ],
        ensure_ascii=False,
    )
    ids = np.array([*response.prompt, *response.answer], dtype="<i4")
    parts = [ids.tobytes(), np.array(response.logprobs, dtype="<f8").tobytes()]
    parts += [routes.numpy().astype("<i2").tobytes()] if routes is not None else []
    return b"".join([head.encode(), b"\n", *parts])


def _unpacked(content: bytes) -> Response:
    head, _, rest = content.partition(b"\n")
    iteration, query, sample, version, asked, answered, finished, begun, shape = json.loads(head)
    whole = asked + answered
    ids = np.frombuffer(rest, dtype="<i4", count=whole).tolist()
    logprobs = np.frombuffer(rest, dtype="<f8", count=answered, offset=4 * whole).tolist()
    routes = None
    if shape is not None:
        chosen = np.frombuffer(rest, dtype="<i2", offset=4 * whole + 8 * answered)
        routes = torch.from_numpy(chosen.astype(np.int16)).view(shape)
    key = Key(iteration, query, sample, version)
    return Response(key, ids[:asked], ids[asked:], logprobs, finished, routes, begun)

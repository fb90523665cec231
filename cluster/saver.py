"""Checkpoints that several processes write together, while training goes on, and of which the right ones are kept.

Every rank fills a folder of its own, flushes and hashes it, moves its files into the checkpoint in the making and says
so in `.rank-00001.json`; rank 0 then writes the manifest, gives the checkpoint its name and drops old ones. The state
of the disk is at every moment one of: the old checkpoints; these and the new one.
"""

import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster import fault
from cluster.checkpoints import checkpoint_path, drop_leftovers, prune
from cluster.storage import digests, fsync, publish, read_json, write_json, write_manifest
from conf.errors import InputError
from conf.knobs.training import Checkpoints, OnError

_POLL = 0.02  # seconds


class Saver:
    """Saves one checkpoint at a time into `folder`. All ranks make one and call `save` equally often.

    `attempt` is a word that the ranks share and that no earlier start of the run had: what a killed attempt left is
    never taken for a part of this one's. `deadline` (seconds) is how long rank 0 waits for the others' files. Of what
    was kept, the scores are in the manifests, so a resumed run knows its best.
    """

    def __init__(
        self,
        folder: Path,
        cfg: Checkpoints,
        *,
        keep: int,
        rank: int,
        world: int,
        attempt: str,
        deadline: float = 600.0,
    ) -> None:
        self._folder, self._cfg, self._keep = folder, cfg, keep
        self._rank, self._world, self._attempt, self._deadline = rank, world, attempt, deadline
        self._count = 0
        self._pool = ThreadPoolExecutor(1, "saver")
        self._running: Future[None] | None = None
        self._given_up = threading.Event()

    def __enter__(self) -> "Saver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is None:
            self.wait()
        elif self._running is not None:
            self._given_up.set()  # the other ranks may be gone
            if late := self._running.exception():
                print(f"checkpoint not saved: {late}", file=sys.stderr)
        self._pool.shutdown()

    def beside(self, size: int) -> bool:
        """Whether a state of which a copy takes `size` bytes is to be written while training goes on."""
        return self._cfg.asynchronous and size <= self._cfg.copy_gb * 1e9

    def save(
        self,
        step: int,
        write: Callable[[Path], None],
        *,
        score: float | None = None,
        beside: bool = True,
        interim: bool = False,
    ) -> None:
        """Have `write` put this rank's files into the folder it is given, and commit the checkpoint of `step`.

        With `cfg.asynchronous`, and `beside`, it returns at once, and `write` must hold copies. The ranks' file names
        must differ. The lowest `score` is the best. `interim`: see `checkpoint_path`. Raises what went wrong with the
        checkpoint before; see `wait`.
        """
        self.wait()
        self._count += 1
        final = checkpoint_path(self._folder, step, interim=interim)
        aside = final.with_name(f"{final.name}.{self._attempt}-{self._count}.tmp")
        if self._rank == 0:
            with self._refused(final):
                drop_leftovers(self._folder, but=aside.name)
        task = partial(self._save, step, aside, final, write, score)
        if self._cfg.asynchronous and beside:
            self._running = self._pool.submit(task)
        else:
            task()

    def wait(self) -> None:
        """Until this rank's part is written, on rank 0 until the checkpoint is whole.

        Raises `InputError` naming the step and the reason if the disk or another rank failed; with
        `cfg.on_error=go_on` that is told in a line on stderr instead.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _save(self, step: int, aside: Path, final: Path, write: Callable[[Path], None], score: float | None) -> None:
        with self._refused(final):
            if self._rank == 0:
                self._commit(step, aside, final, write, score)
            else:
                self._report(aside, write)

    @contextmanager
    def _refused(self, final: Path) -> Iterator[None]:
        """What is done where the disk, or another rank, refuses."""
        try:
            yield
        except OSError as error:
            text = f"saving {final} failed: {error}"
            if self._cfg.on_error is OnError.stop:
                raise InputError(f"{text}; make room, or train on without it by checkpoints.on_error=go_on") from error
            print(f"{text}; training goes on, the checkpoints before it are there", file=sys.stderr)

    def _commit(self, step: int, aside: Path, final: Path, write: Callable[[Path], None], score: float | None) -> None:
        try:
            shares = [self._share(aside, write), *self._others(aside)]
            body: dict[str, Any] = {
                "step": step,
                "score": score if score is not None and math.isfinite(score) else None,
                "files": {name: digest for share in shares for name, digest in share["files"].items()},
                "bytes": {name: size for share in shares for name, size in share["bytes"].items()},
            }
            assert len(body["files"]) == sum(len(share["files"]) for share in shares), "two ranks write the same name"
            for rank in range(1, self._world):
                _said(aside, rank).unlink()
            write_manifest(aside, body)
            fault.at("save.sealed")
            publish(aside, final)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        prune(self._folder, step, self._keep, every=self._cfg.every, best=self._cfg.best)

    def _report(self, aside: Path, write: Callable[[Path], None]) -> None:
        try:
            share: dict[str, Any] = self._share(aside, write)
        except Exception as error:  # whatever it is, rank 0 need not wait for its deadline
            write_json(_said(aside, self._rank), {"error": str(error)})
            raise
        write_json(_said(aside, self._rank), share)

    def _share(self, aside: Path, write: Callable[[Path], None]) -> dict[str, dict[str, Any]]:
        """Write this rank's files; returns their digests."""
        own = aside / f"rank-{self._rank:05d}.tmp"
        own.mkdir(parents=True)
        try:
            fault.at("save.begun")
            write(own)
            fault.at("save.written")
            share = digests(own)
            for name in share["files"]:
                place = aside / name
                if place.parent != aside:  # a folder deep at most: of a role, such as learner/
                    place.parent.mkdir(exist_ok=True)
                (own / name).rename(place)
            for folder in {(aside / name).parent for name in share["files"]} | {aside}:
                fsync(folder)
        finally:
            shutil.rmtree(own, ignore_errors=True)  # where the disk is full, this makes room to say so
        return share

    def _others(self, aside: Path) -> list[dict[str, Any]]:
        """What the other ranks report of their shares. Raises `OSError` for those that failed or say nothing."""
        found: dict[int, dict[str, Any]] = {}
        until = time.monotonic() + self._deadline
        while missing := [rank for rank in range(1, self._world) if rank not in found]:
            found |= {rank: read_json(path) for rank in missing if (path := _said(aside, rank)).exists()}
            if failed := [f"rank {rank}: {share['error']}" for rank, share in found.items() if "error" in share]:
                raise OSError("; ".join(failed))
            if time.monotonic() > until or self._given_up.is_set():
                silent = ", ".join(str(rank) for rank in missing if rank not in found)
                if silent:
                    raise TimeoutError(f"no files from rank {silent} (deadline {self._deadline:g} s)")
            self._given_up.wait(_POLL)
        return list(found.values())


def _said(aside: Path, rank: int) -> Path:
    return aside / f".rank-{rank:05d}.json"

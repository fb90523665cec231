"""A stage's run in Weights & Biases, written by the process that runs the stage from what stands in its folder.

A thread of it reads metrics.jsonl as the stage appends to it, so that training neither waits for W&B nor knows of it,
and what a killed process had not sent is sent by the next. A step that is taken again after a kill has the values that
W&B has already, and is not sent twice; W&B cannot unsay a line, so after a rollback its curves go back and show both
ways.

W&B that cannot be reached is told in a line; the run is then kept on the disk, where `wandb sync` finds it.
"""

import os
import secrets
import shutil
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from cluster.code import code
from cluster.storage import write_file
from cluster.tracking.tracker import FILE, parse_lines
from cluster.tracking.wandb_content import Sender, send_outputs, settings, summarize
from conf.knobs.running import TrackerKind, WandbMode
from conf.schema import Config

POLL_EVERY = 1.0  # seconds between looks at metrics.jsonl
_DATA = "WANDB_DATA_DIR"  # where W&B's client keeps what waits to be sent


@contextmanager
def tracked(
    cfg: Config, stage: str, folder: Path, *, reads: Sequence[Path] = (), page: Path | None = None
) -> Iterator[None]:
    """Let W&B see what the stage writes into `folder` meanwhile, if `tracker.kind=wandb`.

    `reads` are the folders of the stages that it reads, `page` is an HTML file to show. Raises nothing: what goes wrong
    with W&B is told in a line on stderr.
    """
    if cfg.tracker.kind is not TrackerKind.wandb:
        yield
        return
    import wandb  # noqa: F401  loads slowly, and only who tracks there needs it: here, for imports dislike threads

    session = _Session(cfg, stage, folder, reads, page)
    session.start()
    code = 1
    try:
        yield
        code = 0
    except (KeyboardInterrupt, SystemExit):
        code = 255  # what W&B calls killed
        raise
    finally:
        session.end(code)


class _Session(threading.Thread):
    """All that is said to W&B, in a thread, for it may not answer."""

    def __init__(self, cfg: Config, stage: str, folder: Path, reads: Sequence[Path], page: Path | None) -> None:
        super().__init__(name="wandb", daemon=True)
        self._cfg, self._stage, self._folder, self._reads, self._page = cfg, stage, folder.absolute(), reads, page
        self._id = _identity(self._folder / "wandb" / "id")
        self._ended, self._code = threading.Event(), 1
        self._run: Any = None
        self._given_up = False  # the stage has ended without us: what else goes wrong need not be told

    def end(self, code: int) -> None:
        """Send the rest. An interrupted process does not wait long for it: the next attempt sends it."""
        self._code = code
        self._ended.set()
        knobs = self._cfg.tracker
        self.join(5.0 if code == 255 else knobs.timeout + 2 * knobs.finish_timeout)
        if self.is_alive():
            self._lacks("it does not take the rest")
            self._given_up = True

    def run(self) -> None:
        before = os.environ.get(_DATA)
        os.environ[_DATA] = before or str(self._folder / "wandb")  # beside the run, not at home
        try:
            online = self._open()
            self._finish(online, self._follow(online))
        except Exception as error:  # whatever W&B does, the stage goes on
            self._say(f"{_line(error)}; the stage goes on without")
        finally:
            os.environ.pop(_DATA)
            os.environ.update({_DATA: before} if before else {})

    def _follow(self, online: bool) -> str:
        """Send all that there is until the stage has ended; returns what was in the way, if anything was."""
        try:
            log, sender = _Log(self._folder / FILE), Sender(self._run, self._cfg, self._stage)
            while not self._ended.wait(POLL_EVERY):
                sender.send(log.new())
            sender.send(log.new())
            if self._code == 0:
                summarize(self._run, self._folder)
            if online:
                _reach(self._cfg.tracker.timeout)  # for what W&B's client waits for longer
            sender.send_samples()
            if self._code == 0:
                send_outputs(self._run, self._cfg, self._folder, self._reads, self._page)
        except Exception as error:
            return _line(error)
        return ""

    def _open(self) -> bool:
        """Begin or continue the run; returns whether W&B answers."""
        import wandb

        knobs, kept = self._cfg.tracker, self._folder / "wandb"
        # What an earlier attempt left for `wandb sync` will all be in the new file, and its own was perhaps cut short.
        for old in [*kept.glob("offline-run-*"), *kept.glob("run-*")]:
            shutil.rmtree(old)
        wandb.setup(wandb.Settings(silent=True))
        if knobs.mode is WandbMode.online:
            try:
                _reach(knobs.timeout)
                self._init("online")
                return True
            except Exception as error:  # a refused key, a proxy, an answer that does not come
                self._lacks(_line(error))
                for left in kept.glob("run-*"):
                    shutil.rmtree(left, ignore_errors=True)
        self._init("offline")
        return False

    def _init(self, mode: Literal["online", "offline"]) -> None:
        import wandb

        knobs, run = self._cfg.tracker, self._cfg.run
        self._run = wandb.init(
            project=knobs.project,
            entity=knobs.entity or None,
            mode=mode,
            dir=str(self._folder),  # absolute: the working directory of a Ray job is deleted with it
            id=self._id,
            resume="allow",
            reinit="create_new",
            name=f"{run.name}/{self._stage}",
            group=run.name,
            job_type=self._stage,
            # Neither the command line nor the git remote nor the list of packages: they may hold what is secret.
            settings=wandb.Settings(
                silent=True,
                console="off",
                x_disable_meta=True,
                disable_git=True,
                x_save_requirements=False,
                init_timeout=knobs.timeout,
                finish_timeout=knobs.finish_timeout,
                finish_timeout_raises=True,
            ),
        )
        self._run.define_metric("*", step_metric="step")
        about = {"stage": self._stage, "seed": run.seed, "code": code()}
        self._run.config.update(settings(self._cfg) | about, allow_val_change=True)

    def _finish(self, online: bool, lacking: str) -> None:
        within = self._cfg.tracker.finish_timeout
        try:
            self._run.finish(exit_code=self._code)
        except TimeoutError:
            lacking = lacking or f"not all was taken within tracker.finish_timeout={within:g} s"
        if lacking:
            self._lacks(lacking)
        elif online:
            for left in (self._folder / "wandb").iterdir():
                if left.name != "id":
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()

    def _lacks(self, why: str) -> None:
        self._say(f"{why}; kept in {self._folder / 'wandb'}, `wandb sync` sends it")

    def _say(self, text: str) -> None:
        if not self._given_up:
            print(f"{self._stage}: W&B: {text}", file=sys.stderr, flush=True)


class _Log:
    """The lines of a metrics.jsonl, each once, also where steps are taken again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: set[tuple[Any, ...]] = set()
        self._last = 0.0
        self._file, self._read = (0, 0), 0  # which file was read, and how far

    def new(self) -> list[dict[str, Any]]:
        """Those that came since it was asked last."""
        if not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            about = os.fstat(file.fileno())
            if (about.st_dev, about.st_ino) != self._file:  # a stage that goes on replaces it
                self._file, self._read = (about.st_dev, about.st_ino), 0
            file.seek(self._read)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        return [line for line in parse_lines(whole) if self._is_new(line)]

    def _is_new(self, line: Mapping[str, Any]) -> bool:
        step = line["step"]
        mark = (step, line.get("attempt"), line.get("incident"), *sorted(line))
        if mark in self._seen:
            return False
        if "incident" in line and step < self._last:  # the stage went back on purpose: what follows is no repetition
            self._seen = {mark for mark in self._seen if mark[0] <= step}
        self._seen.add(mark)
        self._last = step
        return True


def _reach(timeout: float) -> None:
    """Raise what is in the way of W&B: no key, or a server that does not answer in `timeout` seconds.

    Its own client would try for longer, ask on the terminal, and hold the process up at its end.
    """
    import wandb

    if not wandb.login(prompt=False, verify=False):
        raise PermissionError("no API key; `wandb login`, or WANDB_API_KEY")
    address = wandb.setup().settings.base_url
    ask = urllib.request.Request(
        f"{address}/graphql", b'{"query": "{ __typename }"}', {"Content-Type": "application/json"}, method="POST"
    )
    try:
        urllib.request.urlopen(ask, timeout=timeout).close()
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            raise ConnectionError(f"{address} answers {error.code}") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise ConnectionError(f"{address} cannot be reached ({why})") from error


def _line(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _identity(kept: Path) -> str:
    """The W&B run of this folder, the same in every attempt; a stage that is made anew in its place gets another."""
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_file(kept, secrets.token_hex(8))
    return kept.read_text()

"""The domain that `tasks.domain` names, checked where it is met: what it lacks, and what goes wrong inside it."""

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.knobs.alignment import Tasks
from moe.tasks.task import PRINCIPLES, Judge, Sample, Source, Verdict

_OURS = ("moe.", "data.")  # their code has a version: the run's manifests name it
SPLITS = ("train", "val", "prompts", "test_prompts")


@dataclass(frozen=True)
class Domain:
    """A domain as a run has it. Whatever its functions raise becomes an `InputError` that names it."""

    name: str
    principles: tuple[str, ...]
    options: Mapping[str, float]
    fields: tuple[str, ...]
    digest: str  # of a user's own source, whose answers change with it
    _samples: Callable[[Source, Tasks, int], dict[str, list[Sample]]]
    _judge: Callable[[Path, Mapping[str, float]], Judge]
    _check: Callable[[Tasks, dict[str, Any] | None], None] | None = None

    @classmethod
    def of(cls, cfg: Tasks) -> "Domain":
        """Raises `InputError` for a module that is not there or lacks a function, or an option it does not have."""
        module = _imported(cfg.domain)
        for function in ("samples", "judge"):
            if not callable(getattr(module, function, None)):
                raise InputError(
                    f"tasks.domain={cfg.domain}: the module has no function {function}; moe/tasks/task.py says what a "
                    "domain has, and moe.tasks.general has both"
                )
        named = getattr(module, "PRINCIPLES", PRINCIPLES)
        principles = tuple(named) if isinstance(named, tuple | list) else ()
        if len(principles) < 2 or not all(isinstance(name, str) and name for name in principles):
            raise InputError(f"tasks.domain={cfg.domain}: PRINCIPLES={named!r:.80} must name two or more")
        options = dict(getattr(module, "OPTIONS", {}))
        for name in cfg.options:
            if name not in options:
                known = ", ".join(sorted(options)) or "none"
                raise InputError(f"tasks.options.{name}: tasks.domain={cfg.domain} has no such option; it has {known}")
        fields = tuple(getattr(module, "FIELDS", ()))
        digest = "" if cfg.domain.startswith(_OURS) else _digest(module)
        options |= cfg.options
        own = (module.samples, module.judge, getattr(module, "check", None))
        return cls(cfg.domain, principles, options, fields, digest, *own)

    def check(self, cfg: Tasks, record: dict[str, Any] | None) -> None:
        """Raise `InputError` where it cannot make samples of a corpus that begins with `record`, or of none."""
        if self._check is not None:
            theirs = self._check
            self._guarded("check", lambda: theirs(cfg, record))

    def samples(self, source: Source, cfg: Tasks, seed: int) -> dict[str, list[Sample]]:
        """{"train", "val", "prompts", "test_prompts"}, each of them there."""
        made = self._guarded("samples", lambda: self._samples(source, cfg, seed))
        for split in SPLITS:
            if not isinstance(made, Mapping) or not made.get(split):
                raise InputError(f"tasks.domain={self.name}: samples made nothing for {split!r}")
            if not isinstance(made[split], list) or not all(isinstance(sample, Sample) for sample in made[split]):
                raise InputError(f"tasks.domain={self.name}: samples must make a list of Sample for {split!r}")
            ids = [sample.id for sample in made[split]]
            if len(set(ids)) < len(ids):
                twice = next(name for name in ids if ids.count(name) > 1)
                raise InputError(f"tasks.domain={self.name}: samples made two of {split!r} with the id {twice!r}")
        return {split: made[split] for split in SPLITS}

    def judge(self, folder: Path) -> Judge:
        """The judge of a run whose stage tasks is `folder`; what it says is checked."""
        judge = self._guarded("judge", lambda: self._judge(folder, self.options))

        def checked(query: Sample, text: str, finished: bool) -> Verdict:
            where = f"judge of sample {query.id} (task {query.task})"
            verdict = self._guarded(where, lambda: judge(query, text, finished))
            if why := self._guarded(where, lambda: self._wrong(verdict)):
                raise InputError(f"tasks.domain={self.name}: {where}: {why}")
            return verdict

        return checked

    def try_on(self, folder: Path, queries: Iterable[Sample]) -> None:
        """Judge an answer of nothing and one of some words to each query, so that a rule that cannot be followed is
        told before anything trains."""
        judge = self.judge(folder)
        for query in queries:
            for text in ("", query.prompt):
                judge(query, text, True)

    def chosen(self, names: list[str]) -> tuple[str, ...]:
        """The principles that `rank.principles` names, all where it names none."""
        for name in names:
            if name not in self.principles:
                known = ", ".join(self.principles)
                raise InputError(f"rank.principles: {name!r} is none of tasks.domain={self.name}; it has {known}")
        return tuple(dict.fromkeys(names)) or self.principles

    def _wrong(self, verdict: Any) -> str:
        if not isinstance(verdict, Verdict):
            return f"it must give a Verdict, not {type(verdict).__name__}"
        for name in self.principles:
            score = verdict.scores.get(name)
            if not isinstance(score, int | float) or not 0 <= score <= 1:
                return f"scores[{name!r}]={score!r} must be a number in [0, 1]"
        numbers = [verdict.reward, *verdict.measures.values(), *(amount for _, amount in verdict.placed)]
        if not all(isinstance(number, int | float) and isfinite(number) for number in numbers):
            return "reward, measures and placed must be finite numbers"
        return ""

    def _guarded(self, what: str, run: Callable[[], Any]) -> Any:
        try:
            return run()
        except InputError:
            raise
        except Exception as error:  # theirs, whatever it is: the line must name the module that raised it
            raise InputError(f"tasks.domain={self.name}: {what} raised {_in_a_line(error)}") from error


def _imported(name: str) -> Any:
    if not name or name.startswith(".") or "/" in name or name.endswith(".py"):
        raise InputError(f"tasks.domain={name!r} must be the name of a module, such as data.verse or my.domain")
    if "" not in sys.path and (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (
            f"it imports {error.name}, which is not there" if error.name not in _parents(name) else "no such module"
        )
        raise InputError(f"tasks.domain={name}: {missing}; it is looked for from {Path.cwd()}") from error
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"tasks.domain={name}: importing it raised {_in_a_line(error)}") from error


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _parents(name: str) -> set[str]:
    parts = name.split(".")
    return {".".join(parts[:end]) for end in range(1, len(parts) + 1)}


def _digest(module: Any) -> str:
    """sha256 of the module's source, of a package all files."""
    file = Path(module.__file__)
    files = sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()

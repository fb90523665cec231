"""Turn a job function into a command: `python -m folder.job group=choice knob=value`. The only hydra code.

`early(__name__)` stands above the imports of a job's file: the words are read before these load torch or ray, so
`--help` and a typo answer at once.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any, NoReturn, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.errors import InputError, cluster_failure, user_error
from conf.help import dict_knobs, help_text, reason, stray
from conf.schema import Config
from conf.words import combinations, decoded, file_words, opened

ConfigStore.instance().store(name="schema", node=Config)
MULTIRUN = {"-m", "--multirun"}


def compose(overrides: list[str], *, module: str = "") -> Config:
    """The config tree for the words of a command line. Raises `InputError` in one line for any that cannot be, whose
    advice is for the job `module`."""
    words = overrides
    with _hydra():
        try:
            words = [*file_words(overrides), *overrides]
            return _checked(hydra.compose("config", overrides=opened(words)), module)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise (user_error(error) or InputError(decoded(reason(error, words, module)))) from None


def sweep(words: list[str], *, module: str) -> list[tuple[list[str], list[str]]]:
    """(all its words, those that set it apart) of each job that the words of a sweep ask for. Raises `InputError` in
    one line for words that no grammar knows."""
    with _hydra():
        try:
            return combinations(words, GlobalHydra.instance().config_loader())
        except (HydraException, ValueError) as error:
            raise (user_error(error) or InputError(decoded(reason(error, words, module)))) from None


def settings_yaml(config: Config) -> str:
    """The knobs of `config` that are not what they are without any word, as a file for `run.config`: what is learnt,
    not where, how fast and how it is watched."""
    tree, default = (
        OmegaConf.to_container(OmegaConf.structured(each), enum_to_str=True) for each in (config, compose([]))
    )
    found = {}
    for section, knobs in cast(dict[str, Any], tree).items():
        if section not in {"run", "cluster", "tracker", "sweep", "pipeline"}:
            found[section] = _changed(knobs, cast(dict[str, Any], default)[section])
    if config.run.seed:
        found["run"] = {"seed": config.run.seed}
    return OmegaConf.to_yaml(OmegaConf.create({section: knobs for section, knobs in found.items() if knobs}))


def _changed(tree: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, value in tree.items():
        if name not in default or value != default[name]:
            found[name] = _changed(value, default[name]) if isinstance(value, dict) and default.get(name) else value
    return found


@contextmanager
def _hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_module("conf", version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().clear()


def _checked(tree: Any, module: str) -> Config:
    if extra := stray(tree, module):
        raise InputError(extra)
    config = cast(Config, OmegaConf.to_object(tree))
    for name in dict_knobs():
        section, _, knob = name.rpartition(".")
        owner = reduce(getattr, section.split("."), cast(Any, config))
        setattr(owner, knob, {decoded(key): value for key, value in getattr(owner, knob).items()})
    # A worker of a cluster that was joined has a working directory of its own, and the config travels to it.
    config.run.dir = str(config.run.folder.parent)
    return config


def early(name: str) -> None:
    """What stands first in a job's file, with its `__name__`: of the file that `python -m` runs, read the words now."""
    if name != "__main__":
        return
    flags = {word for word in sys.argv[1:] if word.startswith("-")}
    if flags & {"-h", "--help"}:
        in_one_line(lambda: print(_help(sys.argv[1:])))
        sys.exit(0)
    if flags & MULTIRUN:
        in_one_line(lambda: _run_sweep(sys.argv[1:]))
    if not flags:
        in_one_line(lambda: _read.append(compose(sys.argv[1:], module=running())))


def running() -> str:
    """The module that `python -m` runs."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else sys.argv[0]


def _help(words: list[str]) -> str:
    given = [word for word in words if not word.startswith("-")]
    config = compose([word for word in given if word != "all"], module=running())
    about = sys.modules["__main__"].__doc__ or ""
    return help_text(about, running(), config, whole="all" in given)


def _run_sweep(words: list[str]) -> None:
    """Become the process that runs the sweep: `cluster.sweep`, which this room may name and not import."""
    if strange := [word for word in words if word.startswith("-") and word not in MULTIRUN]:
        raise InputError(f"{strange[0]} does not go with -m")
    given = [word for word in words if word not in MULTIRUN]
    os.execv(sys.executable, [sys.executable, "-m", "cluster.sweep", running(), *given])


_read: list[Config] = []  # what `early` has read


def job(body: Callable[[Config], Any]) -> Callable[..., Any]:
    """Decorate a job: called with a `Config` it runs, called bare it reads the command line first.

    A user's error, also one that arose on a remote worker, ends in one line and exit code 2, a failure of Ray's own in
    one line and 1; `CONCLAVE_TRACEBACK=1` shows where it arose.
    """

    def entry(config: Config | None = None) -> Any:
        if config is not None:
            return body(config)
        return in_one_line(lambda: _command(body, sys.argv[1:]))

    entry.__doc__, entry.__name__, entry.__module__ = body.__doc__, body.__name__, body.__module__
    return entry


def _command(body: Callable[[Config], Any], words: list[str]) -> Any:
    if not any(word.startswith("-") for word in words):
        return body(_read.pop() if _read else compose(words, module=running()))
    # Hydra's own flags: --cfg job, --info, ... It would answer a bad word, or a flag behind words, with its own lines.
    flags, knobs = _apart(words)
    config = compose(knobs, module=running())
    if flags in (["--cfg", "job"], ["-c", "job"]):
        return print(OmegaConf.to_yaml(OmegaConf.structured(config)), end="")
    sys.argv[1:] = [*flags, *opened([*file_words(knobs), *knobs])]
    return hydra.main(config_path="pkg://conf", config_name="config", version_base="1.3")(
        lambda tree: in_one_line(lambda: body(_checked(tree, running())))
    )()


def _apart(words: list[str]) -> tuple[list[str], list[str]]:
    """(hydra's flags with their values, the other words). Raises `InputError` for a flag that is none."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise InputError(
            f"{message}; there are --help, --help all, --cfg job and -m, and --hydra-help lists the others"
        )

    parser.error = refuse  # type: ignore[method-assign]
    knobs = parser.parse_intermixed_args(words).overrides
    flags = list(words)
    for word in knobs:
        flags.remove(word)
    return flags, knobs


def in_one_line(run: Callable[[], Any]) -> Any:
    """What `run` gives; a user's error ends the process with one line and code 2."""
    try:
        return run()
    except Exception as error:
        theirs, rays = user_error(error), cluster_failure(error)
        if not (theirs or rays) or os.environ.get("CONCLAVE_TRACEBACK"):
            raise
        told = str(theirs) if theirs else f"{rays}; the same command continues"
        print(f"error: {' '.join(told.split())}", file=sys.stderr)
        sys.exit(2 if theirs else 1)

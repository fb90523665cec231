"""Turn a job function into a command: `python -m folder.job group=choice knob=value`. The only hydra code.

The words are parsed before the job loads torch or ray, so `--help` and a typo answer at once.
"""

import os
import sys
from collections.abc import Callable
from typing import Any, cast

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from conf.errors import user_error
from conf.schema import Config, InputError
from conf.words import dict_knobs, help_text, reason, stray

ConfigStore.instance().store(name="schema", node=Config)


def compose(overrides: list[str]) -> Config:
    """The config tree for the words of a command line. Raises `InputError` in one line for any that cannot be."""
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_module("conf", version_base="1.3"):
            return _checked(hydra.compose("config", overrides=_opened(overrides)))
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise (user_error(error) or InputError(reason(error, overrides))) from None
    finally:
        GlobalHydra.instance().clear()


def _checked(tree: Any) -> Config:
    if extra := stray(tree):
        raise InputError(extra)
    return cast(Config, OmegaConf.to_object(tree))


def _opened(words: list[str]) -> list[str]:
    # A knob that is a dict takes new names without hydra's "+": sft.weights.compose=2
    return [f"++{word}" if word.startswith(tuple(f"{name}." for name in dict_knobs())) else word for word in words]


def job(body: Callable[[Config], Any]) -> Callable[..., Any]:
    """Decorate a job: called with a `Config` it runs, called bare it reads the command line first.

    A user's error, also one that arose on a remote worker, ends in one line and exit code 2; `CONCLAVE_TRACEBACK=1`
    shows where it arose.
    """

    def entry(config: Config | None = None) -> Any:
        if config is not None:
            return body(config)
        return _one_line_errors(lambda: _command(body, sys.argv[1:]))

    entry.__doc__, entry.__name__, entry.__module__ = body.__doc__, body.__name__, body.__module__
    return entry


def _command(body: Callable[[Config], Any], words: list[str]) -> Any:
    flags = {word for word in words if word.startswith("-")}
    if not flags:
        return body(compose(words))
    if flags & {"-h", "--help"}:
        text = sys.modules[body.__module__].__doc__ or body.__doc__ or ""
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        return print(help_text(text, spec.name if spec else body.__module__))
    # Hydra's own flags: --cfg job, --multirun, ... It would answer a bad word with lines of its own.
    knobs = [word for word in words if "=" in word and not word.startswith("-")]
    if not flags & {"-m", "--multirun"}:
        compose(knobs)
    sys.argv[1:] = _opened(words)
    return hydra.main(config_path="pkg://conf", config_name="config", version_base="1.3")(
        lambda tree: _one_line_errors(lambda: body(_checked(tree)))
    )()


def _one_line_errors(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except Exception as error:
        theirs = user_error(error)
        if theirs is None or os.environ.get("CONCLAVE_TRACEBACK"):
            raise
        print(f"error: {' '.join(str(theirs).split())}", file=sys.stderr)
        sys.exit(2)

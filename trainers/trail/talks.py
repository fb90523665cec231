"""Forget what was said in conversations, and name every stage of every run that was made of it."""

from collections.abc import Sequence
from pathlib import Path

from cluster.feedback import FILE, Store
from cluster.people.heard import who_heard
from conf.errors import InputError
from conf.schema import Config


def forget_talks(cfg: Config) -> list[str]:
    """Delete what the run's store has of `forget.conversations`, and take none of it again; what is to be said. Raises
    `InputError` for a conversation that neither the store nor a manifest knows."""
    path = Path(cfg.rank.feedback).absolute() if cfg.rank.feedback else cfg.run.folder / FILE
    names = [str(name) for name in cfg.forget.conversations]
    stages = {name: list(who_heard(cfg.run.folder.parent, name)) for name in names}
    kept = _kept(path, names)
    for name in names:
        if not stages[name] and name not in kept:
            raise InputError(
                f"forget.conversations={name}: neither {path} nor any stage in {cfg.run.folder.parent} knows it; a "
                "name is <key's name>/<conversation>, without keys the conversation alone, as ranked/manifest.json says"
            )
    told = []
    store = Store(path) if path.is_file() else None
    for name in names:
        owner, _, conversation = name.rpartition("/")
        count = store.forget(owner, conversation=conversation) if store else 0
        told.append(f"forgotten: {count} votes of {name}")
        told += [f"seen by {_short(cfg, folder)}: made of what was said in {name}" for folder in stages[name]]
    if store:
        store.close()
    return told


def _kept(path: Path, names: Sequence[str]) -> set[str]:
    """Those of the names that the store has votes of, whoever may see them."""
    if not path.is_file():
        return set()
    store = Store(path)
    found = {name for name in names if (parts := name.rpartition("/")) and store.of(parts[0], parts[2])}
    store.close()
    return found


def _short(cfg: Config, folder: Path) -> str:
    return folder.name if folder.parent == cfg.run.folder else str(folder)

"""Make the corpus again without given records and their copies, or have samples, queries and rankings of a user's own
left out from now on, and say which stages and models have seen them."""

from conf.entry import early, job

early(__name__)

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.run import make, read_manifest
from cluster.storage import Damaged
from conf.errors import InputError
from conf.knobs.text import Corpus
from conf.schema import Config
from trainers.clean.gather import LEDGER
from trainers.clean.ledger import by_id, by_place, forget, lives, with_copies
from trainers.clean.page import place
from trainers.files.forgotten import FORGOTTEN, parted
from trainers.trail.seen import SHOWN, Wanted, own_places, seen_by
from trainers.trail.talks import forget_talks

OWN = "own"  # in the place of a step: a record of no corpus


@job
def main(cfg: Config) -> list[str]:
    """Forget what `forget.records`, `forget.ids` and `forget.conversations` name; what was said. Raises `InputError`
    if there is no such record or conversation.

    The list of all that the run has forgotten stays in its folder, and every later stage of the run obeys it.
    """
    run, folder = cfg.run.folder, cfg.run.folder / "corpus"
    heard = forget_talks(cfg) if cfg.forget.conversations else []
    if heard and not cfg.forget.records and not cfg.forget.ids:
        heard.append(f"rankings without them: python -m rlhf.rank run.name={cfg.run.name}; {_rebuild(cfg)}")
        print("\n".join(heard))
        return heard
    named, places = asked(cfg, folder)
    numbers = with_copies(folder, {life["id"] for life in named}) if named else []
    found = list(lives(folder, lambda table: pc.is_in(table["id"], pa.array(numbers)))) if named else []
    told = heard + [f"to be forgotten: {place(life)}, record {life['id']}" for life in found[:SHOWN]]
    told += [f"to be forgotten: {one}" for one in places[:SHOWN]]
    told += [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    told += [f"and {len(places) - SHOWN} more"] if len(places) > SHOWN else []
    if len(found) > len(named):
        told.append(f"{len(found) - len(named)} of them because they are copies of the others")
    kept = [life for life in found if not life["step"]]
    told += seen_by(run, Wanted.of(run, kept, places))
    own = [{"file": file, "line": line, "step": OWN} for file, line in map(parted, places)]
    count = forget(run / FORGOTTEN, [*found, *own], folder)
    print("\n".join(told), flush=True)
    end = [f"{FORGOTTEN} names {count} records, and every stage of this run obeys it from now on"]
    if found:
        manifest = read_manifest(folder)
        again = replace(cfg, corpus=_as_made(manifest), run=replace(cfg.run, seed=manifest["seed"], rebuild=True))
        make(again, "corpus")
        for old in sorted(run.glob("corpus.replaced-*")):  # they hold what is to be forgotten
            shutil.rmtree(old)
        end.append("corpus: made again without them")
    if kept or places:
        end.append(_rebuild(cfg))
    print("\n".join(end))
    return [*told, *end]


def _rebuild(cfg: Config) -> str:
    command = f"python -m cluster.pipeline run.name={cfg.run.name} run.rebuild=true"
    return f"the stages that have seen them: {command}, then delete the folders *.replaced-*"


def asked(cfg: Config, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """(the rows of the corpus's ledger, the places in a user's own samples, queries and rankings) that the knobs name.
    Raises `InputError` for a name that has none."""
    if not cfg.forget.records and not cfg.forget.ids:
        raise InputError(
            "say which records: 'forget.records=[data/poems.jsonl.gz:17]' or 'forget.ids=[4711]'; or which "
            "conversations: 'forget.conversations=[alice/c-1]'"
        )
    found: dict[int, dict[str, Any]] = {}
    places: dict[str, Any] = {}
    for record in map(str, cfg.forget.records):
        own = own_places(cfg.run.folder, record)
        places |= dict.fromkeys(own)
        if not own or _has_ledger(folder):
            found |= _known(cfg, folder, by_place(folder, record, "forget.records"), "" if own else f"records={record}")
    for number in cfg.forget.ids:
        found |= _known(cfg, folder, by_id(folder, int(number)), f"ids={number}")
    return list(found.values()), list(places)


def _has_ledger(folder: Path) -> bool:
    return any(folder.glob(f"{LEDGER}-*.parquet"))


def _known(cfg: Config, folder: Path, there: Iterator[dict[str, Any]], named: str) -> dict[int, dict[str, Any]]:
    """The rows by their ids. Raises `InputError` where something was `named` and there is none."""
    if named:
        try:
            read_manifest(folder)
        except Damaged as error:
            raise InputError(f"{error}; make it first: python -m trainers.corpus run.name={cfg.run.name}") from None
        if not _has_ledger(folder):
            raise InputError(f"{folder}: it was made before there was a ledger; run.rebuild=true makes it again")
    rows = {life["id"]: life for life in there}
    if named and not rows:
        raise InputError(f"forget.{named}: {folder} has read no such record")
    return rows


def _as_made(manifest: Mapping[str, Any]) -> Corpus:
    """The settings that a corpus was made with: it is the same but for what is forgotten. Knobs that the manifest does
    not know are at their defaults."""
    kinds = {name: type(value) for name, value in vars(Corpus()).items()}
    known = {name: value for name, value in manifest["config"]["corpus"].items() if name in kinds}
    return Corpus(**{name: kinds[name](v) if issubclass(kinds[name], Enum) else v for name, v in known.items()})


if __name__ == "__main__":
    main()

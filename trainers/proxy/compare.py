"""Which text helps: a small model trained on each bucket, source or language, or on a corpus made with a filter and one
made without it, for one budget; the bits per byte of all on the same clean text (a proxy model, as in DataComp-LM)."""

from conf.entry import early, job

early(__name__)

from pathlib import Path
from typing import Any

from cluster.agreement import CHECKPOINTS, key
from cluster.connect import connect, on_worker
from cluster.run import open_stage
from cluster.storage import MANIFEST, read_json, write_file, write_json
from conf.errors import InputError
from conf.schema import Config
from moe.text.tokenizer import Tokenizer
from trainers.clean.page import frame, table
from trainers.files.readers import digest, expand
from trainers.proxy.parts import Part, held_out, parts_of, ranked, texts_of, whole, without
from trainers.proxy.training import measured, precision, write

REPORT = "report"
STAGE = "proxy"


def check(cfg: Config) -> None:
    """Raise `InputError` for what cannot be compared."""
    expand(cfg.proxy.held_out, "proxy.held_out")
    for name, folder in cfg.proxy.corpora.items():
        if not (Path(folder) / MANIFEST).is_file():
            raise InputError(f"proxy.corpora.{name}={folder}: no finished corpus here; give a run's folder corpus")
    if cfg.proxy.row_length > cfg.model.context:
        raise InputError(f"proxy.row_length={cfg.proxy.row_length} must be at most model.context={cfg.model.context}")


@job
def main(cfg: Config) -> dict[str, float]:
    """Read the stages corpus and tokenizer, write report.json and report.html; {"<part>/bits_per_byte"} of each."""
    check(cfg)
    knobs = {name: value for name, value in vars(cfg.proxy).items() if name not in ("held_out", "corpora")}
    given = {path: digest(path) for path in expand(cfg.proxy.held_out, "proxy.held_out")}
    others = {name: key(Path(folder)) for name, folder in cfg.proxy.corpora.items()}
    settings: dict[str, Any] = {
        "proxy": {**knobs, "held_out": given, "corpora": others},
        "model": cfg.model,
        "optim": cfg.optim,
        "compute.precision": precision(cfg),
    }
    with open_stage(cfg, STAGE, reads=["corpus", "tokenizer"], settings=settings) as stage:
        if stage.done:
            return stage.metrics
        connect(cfg.cluster)
        corpus, tokenizer = stage.input("corpus"), stage.input("tokenizer")
        work = (stage.folder / CHECKPOINTS / "parts").absolute()
        pieces = Tokenizer.load(tokenizer)
        clean = held_out(corpus, cfg.proxy, cfg.corpus)
        write(work / "held_out", clean, pieces, cfg.proxy.row_length)
        found: dict[str, list[dict[str, Any]]] = {}
        for number, part in enumerate(chosen(corpus, cfg)):
            found[part.name] = on_part(cfg, part, work / f"{number:03d}", clean, pieces, tokenizer.absolute())
            best = min(one["bits_per_byte"] for one in found[part.name])
            print(f"proxy: {part.name}: {best:.4f} bits per byte after {cfg.proxy.tokens:,} tokens", flush=True)
        rows = ranked(found)
        told = {"held_out": len(clean), "tokens": cfg.proxy.tokens, "parts": rows, "models": found}
        write_json(stage.folder / f"{REPORT}.json", told)
        write_file(stage.folder / f"{REPORT}.html", page(told))
        return stage.finish({f"{row['part']}/bits_per_byte": row["bits_per_byte"] for row in rows})


def chosen(corpus: Path, cfg: Config) -> list[Part]:
    """What is compared: the parts of the run's corpus, or where others are given it and these."""
    if not cfg.proxy.corpora:
        return parts_of(corpus, cfg.proxy, cfg.run.seed)
    others = {name: Path(folder) for name, folder in cfg.proxy.corpora.items()}
    return [whole(name, folder, cfg.proxy, cfg.run.seed) for name, folder in {cfg.run.name: corpus, **others}.items()]


def on_part(
    cfg: Config, part: Part, folder: Path, clean: list[str], pieces: Tokenizer, tokenizer: Path
) -> list[dict[str, Any]]:
    """The measures of each of the models of a part; those that are there already are not made again."""
    path = folder / "models.json"
    if path.is_file():
        return list(read_json(path))
    texts = without(texts_of(part), clean)
    if not texts:
        raise InputError(f"proxy: {part.name} has no document that is not measured on; give other proxy.held_out")
    write(folder / "rows", texts, pieces, cfg.proxy.row_length, most=cfg.proxy.tokens)
    models = []
    for seed in range(cfg.run.seed, cfg.run.seed + cfg.proxy.seeds):
        one = on_worker(cfg.cluster, measured, cfg, folder, tokenizer, seed, within=cfg.proxy.timeout)
        models.append({"documents": part.documents, "characters": part.characters, "seed": seed, **one})
    write_json(path, models)
    return models


def page(told: dict[str, Any]) -> str:
    """The comparison as a page in the frame of the run's report."""
    head = ["Part", "Bits per byte", "Spread over seeds", "Documents", "Characters", "Times seen"]
    columns = ("part", "bits_per_byte", "spread", "documents", "characters", "epochs")
    rows = [{**row, "bits_per_byte": f"{row['bits_per_byte']:.4f}"} for row in told["parts"]]
    body = table(head, [[row[name] for name in columns] for row in rows])
    about = (
        f"A small model for each part, trained on {told['tokens']:,} tokens of it, and how many bits it needs for a "
        f"byte of the same {told['held_out']:,} held-out documents: the fewer, the more that text taught. What lies "
        "closer together than the spread over seeds says nothing."
    )
    return frame("What text is worth", about, {"Parts": body})


if __name__ == "__main__":
    main()

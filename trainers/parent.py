"""The model that `parent.model` names as a stage of the run, for SFT, rankings or RL without a corpus and pretraining.

A dense one is upcycled as `parent` says. It keeps its tokenizer; marks of a chat that it does not know are added.
"""

from conf.entry import early, job

early(__name__)

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from cluster.run import open_stage
from cluster.storage import sha256
from conf.errors import InputError
from conf.schema import Config
from moe.formats import certificate, checkpoints, hugging_face
from moe.formats.grow import grow
from moe.text.defaults import Defaults
from moe.text.tokenizer import Tokenizer
from trainers import closing


def reads(cfg: Config, there: Collection[str]) -> list[str]:
    return []


def check(cfg: Config) -> None:
    """Raise `InputError` for a parent that cannot be read, and for knobs that only the stage base follows."""
    if not cfg.parent.model:
        raise InputError("parent.model is empty; give parent.model=<a Hugging Face folder or a .gguf file>")
    for knob in ("path", "extend", "merge"):
        if value := getattr(cfg.tokenizer, knob):
            raise InputError(
                f"tokenizer.{knob}={value} changes the vocabulary, whose new rows only the stage base trains: make "
                f"corpus, tokenizer, tokens and base of parent.model={cfg.parent.model} first, or leave "
                f"tokenizer.{knob} out"
            )
    checkpoints.shape(cfg.parent)
    Tokenizer.load(cfg.parent.model)


@job
def main(cfg: Config) -> dict[str, float]:
    """Write the parent as a model folder of the run; returns its size."""
    check(cfg)
    source = Path(cfg.parent.model).absolute()
    files = {path.name: sha256(path) for path in checkpoints.weight_files(source)}
    tokenizer = Tokenizer.load(source)
    # by what they hold, wherever they lie
    settings = {"parent": {**asdict(cfg.parent), "model": files}, "tokenizer": {"digest": tokenizer.digest}}
    if tokenizer.form.template:
        settings["tokenizer"]["template"] = tokenizer.form.digest
    with open_stage(cfg, "parent", reads=[], settings=settings, outside=[source]) as stage:
        if stage.done:
            return stage.metrics
        model = checkpoints.new_from(cfg.parent, cfg.run.seed)
        certificate.prove(model, source, exact=not cfg.parent.noise)
        model = grow(model, tokenizer, tokenizer)
        also = checkpoints.defaults(source).stop
        hugging_face.save(model, stage.folder, Defaults.of(tokenizer, chat=True, also=also))
        return stage.finish(closing.sizes(model))


if __name__ == "__main__":
    main()

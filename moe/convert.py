"""Convert a checkpoint: any that `moe.formats` reads in, a Hugging Face folder or a GGUF file out, with a certificate.

python -m moe.convert convert.source=<folder or .gguf> convert.target=<folder> convert.forms=[hugging_face,gguf]
A dense source becomes a mixture of experts: convert.upcycle=true parent.experts=4 parent.top_k=2
"""

from conf.entry import early, job

early(__name__)

import json
import os
import shutil
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from conf.errors import InputError
from conf.knobs.model import Form
from conf.schema import Config
from moe.decoder import Decoder
from moe.formats import certificate, checkpoints, gguf, hugging_face
from moe.formats.upcycle import upcycle
from moe.text.defaults import Defaults

CERTIFICATE, GGUF = "certificate.json", "model.gguf"


@job
def main(cfg: Config) -> dict[str, Any]:
    """Write `convert.target` and return its certificate. Nothing is left behind unless every form proves right."""

    source, target = _places(cfg)
    parent = replace(cfg.parent, model=str(source))
    model = checkpoints.read(source)
    if cfg.convert.upcycle != (model.cfg.experts == 1):
        raise InputError(
            f"convert.source={source} is a mixture of experts already; drop convert.upcycle=true"
            if cfg.convert.upcycle
            else f"convert.source={source} is dense; add convert.upcycle=true parent.experts=4 parent.top_k=2"
        )
    if cfg.convert.upcycle:
        model = upcycle(model, parent, seed=cfg.run.seed)
    noisy = cfg.convert.upcycle and parent.noise > 0
    reference = certificate.prove(model, source, exact=not noisy)
    if noisy:
        reference = certificate.logits(model, certificate.batch(model.vocab_size))
    report: dict[str, Any] = {
        "source": str(source),
        "upcycled": {**asdict(parent), "seed": cfg.run.seed} if cfg.convert.upcycle else None,
        "reference": "the mixture before it was written" if noisy else "the source in transformers",
        "tokens": certificate.ROWS * certificate.LENGTH,
        "bound": certificate.BOUND,
        "versions": _versions(),
    }
    out = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        out.mkdir(parents=True)
        defaults = checkpoints.defaults(source)
        written = [_write(model, form, defaults, out, name=source.stem) for form in cfg.convert.forms]
        del model  # before the reloads: a large one fits into memory once
        proofs = [certificate.certify(path, reference, defaults.stop) for path in written]
        report["forms"] = [{"form": form.value, **proof} for form, proof in zip(cfg.convert.forms, proofs, strict=True)]
        (out / CERTIFICATE).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")
        out.rename(target)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    for entry in report["forms"]:
        print(f"{target} as {entry['form']}: the logits differ by at most {entry['max_logit_difference']:.1e}")
    return report


def _places(cfg: Config) -> tuple[Path, Path]:
    for knob in ("source", "target"):
        if not getattr(cfg.convert, knob):
            raise InputError(f"convert.{knob} is empty; give convert.source=<folder or .gguf> convert.target=<folder>")
    if not cfg.convert.forms:
        raise InputError(f"convert.forms=[] writes nothing; there are: {', '.join(form.value for form in Form)}")
    source, target = Path(cfg.convert.source), Path(cfg.convert.target).absolute()
    if not source.exists():
        raise InputError(f"convert.source={source}: no such folder or file")
    if target.exists():
        raise InputError(f"convert.target={target} is there already; choose another folder")
    return source, target


def _write(model: Decoder, form: Form, defaults: Defaults, out: Path, *, name: str) -> Path:
    """Write one form into `out` -> what to load."""

    if form is Form.gguf:
        gguf.write(model, out / GGUF, defaults, name=name)
        return out / GGUF
    hugging_face.save(model, out, defaults)
    return out


def _versions() -> dict[str, str]:

    found = {}
    for package in ("torch", "transformers", "safetensors", "gguf", "cyllama"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # optional, and then nothing was computed by it
    return found


if __name__ == "__main__":
    main()

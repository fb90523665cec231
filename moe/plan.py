"""Say what a model will need before it is trained: parameters, FLOPs, memory by part, and which plan fits.

The model is `model`, a step takes `pretrain.batch_rows` rows of `tokens.row_length`, and there are `cluster.gpus` of
what `gpu` describes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, gcd, isinf

from conf.entry import job
from conf.schema import Config, InputError, Precision
from moe.footprint import (
    Work,
    active_parameters,
    compute_bound_tokens,
    forward_flops,
    inference_memory,
    parameters,
    peak,
    training_flops,
    training_memory,
)

PRECISIONS = {"fp32": False, "bf16": True}  # bf16: with fp32 weights and optimizer in training
Cells = Sequence[str]


@dataclass(frozen=True)
class Way:
    """One way to spread the training over the devices."""

    name: str
    knobs: str
    work: Work


@job
def main(cfg: Config) -> None:
    """Print the plan's tables."""
    print(text(cfg))


def text(cfg: Config) -> str:
    """The whole plan. Raises `InputError` for a model that is known by its checkpoint only."""
    if cfg.parent.model:
        raise InputError(
            f"parent.model={cfg.parent.model}: moe.plan reckons from model.*; give the parent's sizes there instead"
        )
    vocab = vocabulary(cfg)
    half = cfg.compute.precision in (Precision.bf16, Precision.fp16)
    shown = ways(cfg, half=half)
    sections = {
        f"Parameters (vocabulary of {vocab:,})": _parameters(cfg, vocab),
        f"FLOPs per token, rows of {cfg.model.context:,}": _flops(cfg, vocab),
        f"Training memory by part, one device, {'bf16' if half else 'fp32'}, {_batch(shown[0].work)}": _moments(
            cfg, vocab, shown[0].work
        ),
        f"Training memory of one device, peak, of {cfg.gpu.memory}": _training(cfg, vocab),
        f"Inference memory, {cfg.serve.slots} answers of {cfg.model.context:,} tokens": _inference(cfg, vocab),
        "Tokens per expert": _experts(cfg, shown),
        f"Speed at {cfg.gpu.mfu:.0%} of {cfg.gpu.tflops:g} TFLOP/s": _speed(cfg, vocab),
    }
    return "\n\n".join(f"{title}\n{'-' * len(title)}\n{body}" for title, body in sections.items())


def vocabulary(cfg: Config) -> int:
    return ceil(cfg.tokenizer.vocab_size / 128) * 128


def devices(cfg: Config) -> int:
    return cfg.cluster.gpus or max(1, round(cfg.cluster.workers * cfg.cluster.gpus_per_worker))


def ways(cfg: Config, *, half: bool) -> list[Way]:
    """One device alone, and the plans over all of them; the batch of a step is the same in each.

    Raises `InputError` for a batch that the devices cannot share.
    """
    count, fit = devices(cfg), cfg.pretrain
    if fit.batch_rows % (count * fit.accumulate):
        fix = ceil(fit.batch_rows / (count * fit.accumulate)) * count * fit.accumulate
        raise InputError(
            f"pretrain.batch_rows={fit.batch_rows} must divide by {count} GPUs x pretrain.accumulate={fit.accumulate}; "
            f"try pretrain.batch_rows={fix}"
        )
    one = Work(
        rows=fit.batch_rows // fit.accumulate,
        length=cfg.tokens.row_length,
        optimizer=cfg.optim.kind,
        accumulate=fit.accumulate,
        half=half,
        checkpointing=cfg.compute.checkpointing,
    )
    found = [Way("one device", "", one)]
    if count > 1:
        share = replace(one, rows=one.rows // count)
        spread = cfg.cluster.expert_parallel if cfg.cluster.expert_parallel > 1 else gcd(count, cfg.model.experts)
        data = f"cluster.workers={count}"
        found += [
            Way(f"data parallel x{count}", data, share),
            Way(f"sharded x{count}", f"{data} cluster.shard=true", replace(share, shards=count)),
        ]
        if spread > 1:
            knobs = f"{data} cluster.expert_parallel={spread}"
            found.append(Way(f"experts over {spread}", knobs, replace(share, expert_parallel=spread)))
    return found


def fitting(cfg: Config, vocab: int, way: Way) -> str:
    """That it fits, or the least change with which it does: what to set, in words."""
    limit = cfg.gpu.bytes
    if peak(training_memory(cfg.model, vocab, way.work)) <= limit:
        return "fits"
    changes = []
    for checkpointing in (way.work.checkpointing, True):
        rows, accumulate = way.work.rows, way.work.accumulate
        while True:
            work = replace(way.work, rows=rows, accumulate=accumulate, checkpointing=checkpointing)
            if peak(training_memory(cfg.model, vocab, work)) <= limit:
                changes.append("compute.checkpointing=true" if checkpointing != way.work.checkpointing else "")
                changes.append(f"pretrain.accumulate={accumulate}" if accumulate != way.work.accumulate else "")
                return f"too large; fits with {' '.join(filter(None, changes))}"
            if rows == 1:
                break
            rows, accumulate = ceil(rows / 2), accumulate * 2
    remedy = "more cluster.gpus" if way.work.shards > 1 else "cluster.shard=true on more cluster.gpus"
    return f"too large for any batch: {remedy}, or fewer model.experts"


def table(head: Cells, rows: Iterable[Cells]) -> str:
    """Columns of equal width; the first and every cell that is not a number to the left."""
    lines = [head, *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    numbers = [at > 0 and all(line[at][:1].isdigit() or not line[at] for line in lines[1:]) for at in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, numbers, strict=True)
        ).rstrip()
        for line in lines
    )


def _parameters(cfg: Config, vocab: int) -> str:
    whole, active = parameters(cfg.model, vocab), active_parameters(cfg.model, vocab)
    rows = [(name, _count(whole[name]), _count(active[name])) for name in whole]
    return table(("", "all", "active"), [*rows, ("sum", _count(sum(whole.values())), _count(sum(active.values())))])


def _flops(cfg: Config, vocab: int) -> str:
    parts = forward_flops(cfg.model, vocab)
    whole = sum(parts.values())
    trained = training_flops(cfg.model, vocab, checkpointing=cfg.compute.checkpointing)
    rows = [(name, _count(value), f"{value / whole:.0%}") for name, value in parts.items()]
    return table(
        ("", "operations", "share"),
        [*rows, ("forward", _count(whole), "100%"), ("forward and backward", _count(trained), "")],
    )


def _moments(cfg: Config, vocab: int, work: Work) -> str:
    moments = training_memory(cfg.model, vocab, work)
    parts = list(dict.fromkeys(part for held in moments.values() for part in held))
    rows = [(part, *(_size(held[part]) if held.get(part) else "" for held in moments.values())) for part in parts]
    sums = ("sum", *(_size(sum(held.values())) for held in moments.values()))
    return table(("when", *moments), [*rows, sums])


def _training(cfg: Config, vocab: int) -> str:
    rows = []
    for precision, half in PRECISIONS.items():
        for way in ways(cfg, half=half):
            both = (replace(way.work, checkpointing=on) for on in (False, True))
            peaks = (_size(peak(training_memory(cfg.model, vocab, work))) for work in both)
            rows.append((precision, way.name, _batch(way.work), *peaks, fitting(cfg, vocab, way)))
    knobs = [f"{way.name}: {way.knobs}" for way in ways(cfg, half=False) if way.knobs]
    note = "Tensors alone; on a CPU the freed buffers that moe.allocator keeps take up to a quarter more."
    return "\n".join([table(("", "plan", "micro-batch", "peak", "checkpointing", ""), rows), *knobs, note])


def _inference(cfg: Config, vocab: int) -> str:
    rows = []
    for precision, half in PRECISIONS.items():
        parts = inference_memory(cfg.model, vocab, sequences=cfg.serve.slots, half=half)
        whole = sum(parts.values())
        rest = cfg.gpu.bytes - (whole - parts["KV cache"])
        most = int(rest // (parts["KV cache"] / cfg.serve.slots))
        verdict = "fits" if whole <= cfg.gpu.bytes else "too large"
        fix = f"at most serve.slots={most}" if most > 0 else "the weights alone are too large"
        rows.append((precision, *map(_size, parts.values()), _size(whole), f"{verdict}; {fix}"))
    return table(("", *parts, "sum", ""), rows)


def _experts(cfg: Config, shown: Sequence[Way]) -> str:
    model = cfg.model
    needed = compute_bound_tokens(model, cfg.gpu.tflops / cfg.gpu.bandwidth)
    most = model.hidden_size * model.expert_size / (model.hidden_size + model.expert_size)
    ratio = f"{cfg.gpu.tflops / cfg.gpu.bandwidth:.0f} operations per byte"
    if isinf(needed):
        limit = (
            f"An expert's products have at most {most:.0f} operations per byte, the GPU {ratio}: bound by memory "
            "at any batch; a larger model.expert_size helps."
        )
    else:
        limit = f"The GPU does {ratio}: an expert is bound by arithmetic from {ceil(needed):,} tokens on."
    rows = []
    for way in shown:
        have = way.work.tokens * way.work.expert_parallel * model.top_k / model.experts
        verdict = "bound by arithmetic" if have >= needed else "bound by memory"
        more = "" if have >= needed or isinf(needed) else f"; {ceil(way.work.rows * needed / have):,} rows would do"
        rows.append((way.name, f"{have:,.0f}", f"{verdict}{more}"))
    return table(("plan", "tokens", ""), rows) + f"\n{limit}"


def _speed(cfg: Config, vocab: int) -> str:
    each = training_flops(cfg.model, vocab, checkpointing=cfg.compute.checkpointing)
    rate = devices(cfg) * cfg.gpu.tflops * 1e12 * cfg.gpu.mfu / each
    step = cfg.pretrain.batch_rows * cfg.tokens.row_length
    return (
        f"{devices(cfg)} x GPU: {rate:,.0f} tokens/s, {step / rate:.3g} s for a step of {step:,} tokens, "
        f"{1e9 / rate / 3600:.3g} h for 10^9 tokens. An assumption (gpu.mfu), not a measurement."
    )


def _batch(work: Work) -> str:
    return f"{work.rows} x {work.length:,}"


def _count(number: float) -> str:
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.3g} {unit}"
    return f"{number:.0f}"


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


if __name__ == "__main__":
    main()

"""Say what a model will need before it is trained: which way of spreading it fits, in what memory, how fast.

The model is `model`, or what `parent.model` becomes; a step takes `pretrain.batch_rows` rows of `tokens.row_length`, or
`pretrain.batch_tokens`; and there are `cluster.gpus` of what `gpu` describes. `plan.detail=true` adds parameters, FLOPs
and memory by part.
"""

from conf.entry import early, job

early(__name__)


from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, gcd, isinf

from conf.errors import InputError
from conf.knobs.model import Model, Precision
from conf.schema import Config
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

HALVES = (Precision.bf16, Precision.fp16)  # with fp32 weights and optimizer in training
Cells = Sequence[str]


@dataclass(frozen=True)
class Way:
    """One way to spread the training over the devices."""

    name: str
    knobs: str
    work: Work


@job
def main(cfg: Config) -> None:
    """Print the answer, and with `plan.detail` the tables behind it."""
    print(text(cfg))


def text(cfg: Config) -> str:
    """All that `main` prints. Raises `InputError` for a batch that the devices cannot share."""
    model, vocab = shape(cfg)
    cfg = replace(cfg, model=model)
    precision = cfg.compute.precision
    half, name = precision in HALVES, "fp32" if precision is Precision.auto else precision.value
    return "\n\n".join(
        [_answer(cfg, vocab, half=half, precision=name), *(_detail(cfg, vocab) if cfg.plan.detail else [])]
    )


def shape(cfg: Config) -> tuple[Model, int]:
    """(model, rows of vocabulary): of `model` or of the parent, with what the tokenizer will add to it at most."""
    if not cfg.parent.model:
        return cfg.model, _padded(cfg.tokenizer.vocab_size)
    from moe.formats import checkpoints  # which loads torch

    model, rows = checkpoints.shape(cfg.parent)
    return model, _padded(rows + cfg.tokenizer.extend) if cfg.tokenizer.extend else rows


def _padded(pieces: int) -> int:
    return ceil(pieces / 128) * 128


def devices(cfg: Config) -> int:
    return cfg.cluster.gpus or max(1, round(cfg.cluster.workers * cfg.cluster.gpus_per_worker))


def ways(cfg: Config, *, half: bool) -> list[Way]:
    """One device alone, and the plans over all of them; the batch of a step is the same in each.

    Raises `InputError` for a batch that the devices cannot share.
    """
    count, fit = devices(cfg), cfg.pretrain
    rows = fit.rows(cfg.tokens.row_length)
    if rows % (count * fit.accumulate):
        fix = ceil(rows / (count * fit.accumulate)) * count * fit.accumulate
        knob, given = ("batch_tokens", fit.batch_tokens) if fit.batch_tokens else ("batch_rows", fit.batch_rows)
        raise InputError(
            f"pretrain.{knob}={given} must divide by {count} GPUs x pretrain.accumulate={fit.accumulate}; "
            f"try pretrain.{knob}={fix * cfg.tokens.row_length if fit.batch_tokens else fix}"
        )
    one = Work(
        rows=rows // fit.accumulate,
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
        data, split = f"cluster.workers={count}", "cluster.shard=true"
        found += [
            Way(f"data parallel x{count}", data, share),
            Way(f"sharded x{count}", f"{data} {split}", replace(share, shards=count)),
        ]
        if spread > 1:
            knobs, over = f"{data} cluster.expert_parallel={spread}", replace(share, expert_parallel=spread)
            found.append(Way(f"experts over {spread}", knobs, over))
            found.append(
                Way(f"experts over {spread}, sharded x{count}", f"{knobs} {split}", replace(over, shards=count))
            )
    return found


@dataclass(frozen=True)
class Verdict:
    """Whether a way fits, and the least change with which it does."""

    work: Work  # with the change
    change: str = ""  # what to set, or where nothing helps what else to do
    fits: bool = True  # with the change, if there is one

    @property
    def told(self) -> str:
        if not self.fits:
            return f"too large for any batch: {self.change}"
        return f"too large; fits with {self.change}" if self.change else "fits"


def fitting(cfg: Config, vocab: int, way: Way) -> Verdict:
    """What becomes of a way on devices of `gpu.memory`."""
    limit = cfg.gpu.bytes
    if peak(training_memory(cfg.model, vocab, way.work)) <= limit:
        return Verdict(way.work)
    changes = []
    for checkpointing in (way.work.checkpointing, True):
        rows, accumulate = way.work.rows, way.work.accumulate
        while True:
            work = replace(way.work, rows=rows, accumulate=accumulate, checkpointing=checkpointing)
            if peak(training_memory(cfg.model, vocab, work)) <= limit:
                changes.append("compute.checkpointing=true" if checkpointing != way.work.checkpointing else "")
                changes.append(f"pretrain.accumulate={accumulate}" if accumulate != way.work.accumulate else "")
                change = " ".join(filter(None, changes))
                return Verdict(work, change)
            if rows == 1:
                break
            rows, accumulate = ceil(rows / 2), accumulate * 2
    remedy = "more cluster.gpus" if way.work.shards > 1 else "cluster.shard=true on more cluster.gpus"
    return Verdict(way.work, f"{remedy}, or fewer model.experts", fits=False)


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


def _answer(cfg: Config, vocab: int, *, half: bool, precision: str) -> str:
    """The one table: each way to train, and serving."""
    shown, count = ways(cfg, half=half), devices(cfg)
    rows = []
    for way in shown:
        found = fitting(cfg, vocab, way)
        size = peak(training_memory(cfg.model, vocab, found.work))
        rate = speed(cfg, vocab, 1 if way is shown[0] else count, checkpointing=found.work.checkpointing)
        verdict, fast = ("fits", f"{rate:,.0f}") if found.fits else ("too large", "")
        words = f"{way.knobs} {found.change}".strip() if found.fits else found.change
        rows.append((way.name, _batch(found.work), _size(size), verdict, fast, words))
    parts = inference_memory(cfg.model, vocab, sequences=cfg.serve.slots, half=half)
    whole = sum(parts.values())
    served = f"{cfg.serve.slots} x {cfg.model.context:,}"
    rows.append(
        ("serving, one device", served, _size(whole), "fits" if whole <= cfg.gpu.bytes else "too large", "", "")
    )
    all_of, active = (sum(of(cfg.model, vocab).values()) for of in (parameters, active_parameters))
    step, length = cfg.pretrain.rows(cfg.tokens.row_length), cfg.tokens.row_length
    title = (
        f"{_count(all_of)} parameters, {_count(active)} active; {precision}; a step of {step} x {length:,} = "
        f"{step * length:,} tokens; {count} x {cfg.gpu.memory}"
    )
    note = f"tokens/s: {cfg.gpu.mfu:.0%} of {count} x {cfg.gpu.tflops:g} TFLOP/s (gpu.mfu), an assumption."
    more = "" if cfg.plan.detail else " plan.detail=true shows where the memory goes."
    head = ("", "micro-batch", "memory", "", "tokens/s", "with")
    return f"{title}\n\n{table(head, rows)}\n\n{note}{more}"


def _detail(cfg: Config, vocab: int) -> list[str]:
    half = cfg.compute.precision in HALVES
    shown, names = ways(cfg, half=half), _precisions(cfg)
    sections = {
        f"Parameters (vocabulary of {vocab:,})": _parameters(cfg, vocab),
        f"FLOPs per token, rows of {cfg.model.context:,}": _flops(cfg, vocab),
        f"Training memory by part, one device, {names[half]}, {_batch(shown[0].work)}": _moments(
            cfg, vocab, shown[0].work
        ),
        f"Training memory of one device, peak, of {cfg.gpu.memory}": _training(cfg, vocab),
        f"Inference memory, {cfg.serve.slots} answers of {cfg.model.context:,} tokens": _inference(cfg, vocab),
        "Tokens per expert": _experts(cfg, shown),
        f"Speed at {cfg.gpu.mfu:.0%} of {cfg.gpu.tflops:g} TFLOP/s": _speed(cfg, vocab),
    }
    return [f"{title}\n{'-' * len(title)}\n{body}" for title, body in sections.items()]


def _precisions(cfg: Config) -> dict[bool, str]:
    """The names of full and half precision."""
    return {False: "fp32", True: "fp16" if cfg.compute.precision is Precision.fp16 else "bf16"}


def speed(cfg: Config, vocab: int, count: int, *, checkpointing: bool) -> float:
    """Tokens a second of so many devices. `gpu.mfu` of what they can do is computed, also what is computed twice."""
    each = training_flops(cfg.model, vocab, checkpointing=checkpointing)
    return count * cfg.gpu.tflops * 1e12 * cfg.gpu.mfu / each


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
    for half, precision in _precisions(cfg).items():
        for way in ways(cfg, half=half):
            both = (replace(way.work, checkpointing=on) for on in (False, True))
            peaks = (_size(peak(training_memory(cfg.model, vocab, work))) for work in both)
            rows.append((precision, way.name, _batch(way.work), *peaks, fitting(cfg, vocab, way).told))
    knobs = [f"{way.name}: {way.knobs}" for way in ways(cfg, half=False) if way.knobs]
    note = "Tensors alone; on a CPU the freed buffers that moe.kernels.allocator keeps take up to a quarter more."
    return "\n".join([table(("", "plan", "micro-batch", "peak", "checkpointing", ""), rows), *knobs, note])


def _inference(cfg: Config, vocab: int) -> str:
    rows = []
    for half, precision in _precisions(cfg).items():
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
    again = cfg.compute.checkpointing
    needed, computed = (training_flops(cfg.model, vocab, checkpointing=on) for on in (False, again))
    rate = speed(cfg, vocab, devices(cfg), checkpointing=again)
    step = cfg.pretrain.rows(cfg.tokens.row_length) * cfg.tokens.row_length
    shares = f"hfu {cfg.gpu.mfu:.0%}, mfu {cfg.gpu.mfu * needed / computed:.0%}" if again else f"mfu {cfg.gpu.mfu:.0%}"
    return (
        f"{devices(cfg)} x GPU: {rate:,.0f} tokens/s, {step / rate:.3g} s for a step of {step:,} tokens, "
        f"{1e9 / rate / 3600:.3g} h for 10^9 tokens ({shares}). An assumption (gpu.mfu), not a measurement."
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

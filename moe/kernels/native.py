"""The passes of the CPU step that are bound by memory or by exp, in C: native.c and attention.c; and decoding's whole
step, decode/step.c.

They are optional. `python -m moe.kernels.native` (`make native`) builds them with the system's C compiler; at run time
an existing build is loaded and nothing is ever compiled, so a run's arithmetic cannot change under it. Without a build,
where `processor` says so, and for tensors that are not contiguous fp32 in main memory the callers' torch code computes
the same: `ready` decides. No result depends on the number of threads.

Letters: N tokens, H hidden size, I inner width, V vocabulary, R rows, D head size.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from moe.kernels.processor import VARIABLE, instructions, processor

_HERE = Path(__file__).parent
_UNITS = [_HERE / name for name in ("native.c", "attention.c", "decode/step.c")]
_SOURCES = [*_UNITS, *(_HERE / name for name in ("native.h", "passes.h", "tiles.h", "decode/products.h"))]
_FLAGS = "-std=gnu11 -O3 -march=native -fno-math-errno -fno-trapping-math -fopenmp -shared -fPIC".split()
if platform.machine() in ("x86_64", "AMD64"):
    _FLAGS.append("-mprefer-vector-width=512")  # whole vectors where there are any, of which GCC takes halves by itself
_KERNELS = {  # arguments but the last, the number of threads: p is a pointer, n a size, f a float
    "exponentials": "ppn",
    "swiglu_fp32": "ppnn",
    "swiglu_bf16": "ppnn",
    "swiglu_backward_fp32": "pppppnn",
    "swiglu_backward_bf16": "pppppnn",
    "combine_fp32": "ppppnnn",
    "combine_bf16": "ppppnnn",
    "rms_norm": "ppppnnf",
    "rms_norm_backward": "pppppppnn",
    "norm_turn": "ppppppnnnnf",
    "norm_turn_backward": "pppppppppnnnn",
    "cross_entropy_fp32": "pppnnn",
    "cross_entropy_bf16": "pppnnn",
    "transpose": "ppnn",
    "attention": "pppppnnnnnn",
    "attention_backward": "pppppppnnnnnn",
    "decode": "pppnpnpnnpppf",
}
_TYPES = {"p": ctypes.c_void_p, "n": ctypes.c_int64, "f": ctypes.c_float}


def _openmp() -> list[str]:
    # torch brings an OpenMP of its own; a second one in the process would fight it for the cores
    # (resolved: an environment that is reached through a link has the same build)
    return [str(path.resolve()) for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))]


def built() -> Path:
    """Where the build for these sources, this processor and this OpenMP lies, if there is one."""
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    parts = [*(source.read_text() for source in _SOURCES), *_FLAGS, *_openmp(), platform.machine(), instructions()]
    key = sha256("\n".join(parts).encode()).hexdigest()[:16]
    return cache_home / "conclave" / f"native-{key}.so"


def build() -> str:
    """Compile; returns why that was not possible, or nothing. Several processes may build at once."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return "no C compiler"
    target = built()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder, target.name)
        # --as-needed drops the compiler's own OpenMP where torch's has every symbol
        link = ["-Wl,--as-needed", *map(str, _UNITS), *_openmp(), "-lm", "-o", str(made)]
        done = subprocess.run([compiler, *_FLAGS, *link], capture_output=True, text=True)
        if done.returncode:
            return f"{compiler} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        os.replace(made, target)
    return ""


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none: decided once in a process."""
    if not built().exists():
        return None, "not built: run `make native`"
    try:
        library = ctypes.CDLL(str(built()))
    except OSError as error:  # built against something that is gone
        return None, f"{error}; run `make native`"
    for name, arguments in _KERNELS.items():
        kernel = getattr(library, name)
        kernel.argtypes = [*(_TYPES[kind] for kind in arguments), ctypes.c_int]
        kernel.restype = None
    library.blocks_of.argtypes, library.blocks_of.restype = [ctypes.c_int64], ctypes.c_int64
    library.attention_scratch.argtypes = [ctypes.c_int64] * 4
    library.attention_scratch.restype = ctypes.c_int64
    library.decode_room.argtypes = [ctypes.c_void_p, *[ctypes.c_int64] * 3]
    library.decode_room.restype = ctypes.c_int64
    return library, ""


def available() -> bool:
    """Whether the kernels are in use."""
    return processor().kernels and _load()[0] is not None


def reason() -> str:
    """Why they are not; nothing if they are."""
    return _load()[1] if processor().kernels else f"switched off by {VARIABLE}"


def ready(*tensors: Tensor) -> bool:
    """Whether the kernels can take these: contiguous fp32 in main memory."""
    return available() and all(
        t.dtype == torch.float32 and t.device.type == "cpu" and t.is_contiguous() for t in tensors
    )


def takes(*rows: Tensor) -> bool:
    """Whether the passes that know bf16 can take these: as `ready`, or all of them in bf16."""
    kind = rows[0].dtype
    return (
        kind in _NAMES
        and available()
        and all(x.dtype is kind and x.device.type == "cpu" and x.is_contiguous() for x in rows)
    )


def library() -> ctypes.CDLL:
    """The kernels themselves, where they are in use."""
    loaded, why = _load()
    assert loaded is not None, why
    return loaded


def call(name: str, *arguments: Tensor | int | float | None) -> None:
    run(name, *arguments, threads=torch.get_num_threads())


def run(name: str, *arguments: Tensor | int | float | None, threads: int) -> None:
    """Call a kernel; a tensor stands for its address."""
    plain = (a.data_ptr() if isinstance(a, Tensor) else a for a in arguments)
    getattr(library(), name)(*plain, threads)


def _partial(rows: int, width: int) -> Tensor:
    return torch.empty(library().blocks_of(rows) * width, dtype=torch.float32, device="cpu")


def exponentials(x: Tensor) -> Tensor:
    """e^x as the kernels compute it: 0 below -87, e^88 above 88."""
    y = torch.empty_like(x)
    call("exponentials", x, y, x.numel())
    return y


_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def swiglu(hidden: Tensor) -> Tensor:
    """silu(gate) * up of hidden [R, 2I], gate first -> [R, I]. fp32 or bf16."""
    rows, width = hidden.shape
    active = hidden.new_empty(rows, width // 2)
    call(f"swiglu_{_NAMES[hidden.dtype]}", hidden, active, rows, width // 2)
    return active


def swiglu_backward(hidden: Tensor, slope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What `passes.swiglu_backward` says, the second written over `slope`. fp32 or bf16, the weight fp32."""
    d_hidden, d_weight = torch.empty_like(hidden), torch.empty_like(weight)
    call(f"swiglu_backward_{_NAMES[hidden.dtype]}", hidden, weight, slope, d_hidden, d_weight, *slope.shape)
    return d_hidden, slope, d_weight


def combine(rows: Tensor, slot: Tensor, weights: Tensor | None) -> Tensor:
    """rows [R, H], fp32 or bf16, to the sum over slot [N, k] of each token, weighted by [N, k] -> [N, H] fp32."""
    y = torch.empty(slot.shape[0], rows.shape[1], dtype=torch.float32, device="cpu")
    call(f"combine_{_NAMES[rows.dtype]}", rows, slot.contiguous(), weights, y, *slot.shape, rows.shape[1])
    return y


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [N, H], weight [H] -> weight * scale * x and the scale [N, 1], 1 / root mean square."""
    y, scale = torch.empty_like(x), x.new_empty(x.shape[0], 1)
    call("rms_norm", x, weight, y, scale, *x.shape, eps)
    return y, scale


def rms_norm_backward(dy: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """-> dL/dx [N, H], dL/dweight [H]."""
    dx, dw = torch.empty_like(x), torch.empty_like(weight)
    call("rms_norm_backward", dy, x, weight, scale, dx, dw, _partial(*x.shape), *x.shape)
    return dx, dw


def norm_turn(
    x: Tensor, turned: int, cos: Tensor, sin: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor | None]:
    """x [N, heads, D], cos and sin [N, 1, D/2], weight [turned, D] -> what `norm.norm_turn` says, and the scale
    [N, turned, 1] if there is a weight."""
    y = torch.empty_like(x)
    scale = None if weight is None else x.new_empty(x.shape[0], turned, 1)
    call("norm_turn", x, cos, sin, weight, y, scale, *x.shape[:2], turned, x.shape[2], eps)
    return y, scale


def norm_turn_backward(
    dy: Tensor, x: Tensor | None, turned: int, cos: Tensor, sin: Tensor, weight: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """-> dL/dx [N, heads, D], dL/dweight [turned, D]. Without a weight x and scale are not read."""
    rows, heads, dim = dy.shape
    dx = torch.empty_like(dy)
    dw = partial = None
    if weight is not None:
        dw, partial = torch.empty_like(weight), _partial(rows, turned * dim)
    call("norm_turn_backward", dy, x, cos, sin, weight, scale, dx, dw, partial, rows, heads, turned, dim)
    return dx, dw


def cross_entropy_(logits: Tensor, targets: Tensor) -> Tensor:
    """Write dL/dlogits = softmax - onehot over logits [M, V], fp32 or bf16; returns -log p(target) [M'], fp64, for
    targets [M'].

    Rows from M' on are padding; their gradient is 0. Raises IndexError for a target outside the vocabulary.
    """
    targets = targets.contiguous()
    if targets.numel() and not 0 <= targets.min() <= targets.max() < logits.shape[1]:
        raise IndexError(
            f"targets reach from {targets.min()} to {targets.max()}, the vocabulary from 0 to {logits.shape[1] - 1}"
        )
    losses = torch.empty(targets.shape[0], dtype=torch.float64, device="cpu")
    call(
        f"cross_entropy_{_NAMES[logits.dtype]}",
        logits,
        targets,
        losses,
        logits.shape[0],
        targets.shape[0],
        logits.shape[1],
    )
    return losses


def transpose(x: Tensor) -> Tensor:
    """x [n, m] -> [m, n], contiguous."""
    y = x.new_empty(x.shape[1], x.shape[0])
    call("transpose", x, y, *x.shape)
    return y


def _scratch(width: int, dim: int, backward: bool, half: bool) -> Tensor:
    floats = torch.get_num_threads() * library().attention_scratch(width, dim, backward, half)
    room = torch.empty(floats + 16, dtype=torch.float32, device="cpu")
    return room[-room.data_ptr() % 64 // 4 :]  # vectors are loaded from whole cache lines


def attention(joined: Tensor, heads: int, kv: int, starts: Tensor | None, half: bool = False) -> tuple[Tensor, Tensor]:
    """Causal attention over joined [rows, width, heads + 2 kv, D] (queries, keys, values).

    starts [rows, width] int64: the first position that each position sees, never falling along a row; without it all do
    from 0. `half`: the products' factors are rounded to bf16, which is slow on a processor without AMX. Returns
    [rows, width, heads, D] and what the backward pass needs of the softmax.
    """
    rows, width, _, dim = joined.shape
    out, lse = joined.new_empty(rows, width, heads, dim), joined.new_empty(rows, heads, width)
    call("attention", joined, starts, out, lse, _scratch(width, dim, False, half), rows, width, heads, kv, dim, half)
    return out, lse


def attention_backward(
    d_out: Tensor,
    joined: Tensor,
    heads: int,
    kv: int,
    starts: Tensor | None,
    out: Tensor,
    lse: Tensor,
    half: bool = False,
) -> Tensor:
    """-> dL/djoined."""
    rows, width, _, dim = joined.shape
    made, scratch = torch.empty_like(joined), _scratch(width, dim, True, half)
    call("attention_backward", joined, starts, out, lse, d_out, made, scratch, rows, width, heads, kv, dim, half)
    return made


def main() -> None:
    why = build() or reason()
    if why:
        sys.exit(f"{why}: torch path")
    print(f"native kernels: {built()}")


if __name__ == "__main__":
    main()

"""The C kernels and the torch code that computes the same against fp64, in sizes that no vector width divides.

Planted bugs these turn red: a swapped sine, a diagonal off by one, sums per thread, a NaN that disappears.
"""

from collections.abc import Callable
from dataclasses import replace
from math import log

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from moe.kernels import native
from moe.kernels.attention import Documents, attention
from moe.kernels.norm import Rope, norm_turn, rms_norm
from moe.kernels.processor import Processor, processor, using
from moe.kernels.sorted_experts import torch_experts
from moe.losses import cross_entropy_sum

Made = tuple[Tensor, ...]


def leaves(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]


def with_gradients(f: Callable[..., Tensor], inputs: list[Tensor]) -> Made:
    """f of the inputs and the gradients of its weighted sum."""
    y = f(*inputs)
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(y.shape, generator=generator).to(y.dtype)
    return y.detach(), *torch.autograd.grad((y * direction).sum(), inputs)


def compare(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: list[Tensor]) -> None:
    """`ours` in fp32, through the kernels where they are in use, against `theirs` in fp64."""
    assert native.ready(*inputs) == processor().kernels
    exact = with_gradients(theirs, [x.detach().double().requires_grad_() for x in inputs])
    for got, wanted in zip(with_gradients(ours, inputs), exact, strict=True):
        assert got.dtype == torch.float32
        largest = max([1.0, *wanted.abs().flatten().tolist()])
        torch.testing.assert_close(got.double(), wanted, rtol=2e-6, atol=2e-6 * largest)


def test_exponential_is_right_to_two_units_in_the_last_place(kernels: None) -> None:
    x = torch.linspace(-87, 88, 1_000_003)
    exact = x.double().exp()
    assert ((native.exponentials(x).double() - exact) / exact).abs().max() < 2 * 2**-23
    edges = native.exponentials(torch.tensor([-1e30, -88.0, 0.0, float("-inf"), float("nan"), 1e30]))
    assert edges[:4].tolist() == [0.0, 0.0, 1.0, 0.0] and edges[4].isnan() and edges[5] > 1e38


@pytest.mark.parametrize(
    ("n", "h", "i", "e", "k"), [(37, 19, 13, 4, 2), (200, 64, 64, 3, 1), (1, 5, 3, 8, 2), (0, 4, 4, 2, 1)]
)
def test_experts(any_processor: Processor, n: int, h: int, i: int, e: int, k: int) -> None:
    chosen = torch.rand(n, e, generator=torch.Generator().manual_seed(2)).topk(k, dim=1).indices

    def run(x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return torch_experts(x, chosen, weights, gate_up, down)

    compare(run, run, leaves((n, h), (n, k), (e, 2 * i, h), (e, h, i)))


@pytest.mark.parametrize(("n", "h"), [(1, 1), (300, 37), (129, 64), (0, 8)])
def test_rms_norm(any_processor: Processor, n: int, h: int) -> None:
    compare(lambda x, w: rms_norm(x, w, 1e-5), lambda x, w: F.rms_norm(x, (h,), w, 1e-5), leaves((n, h), (h,)))


@pytest.mark.parametrize(
    ("n", "heads", "turned", "dim"), [(1, 3, 2, 6), (261, 4, 3, 10), (130, 8, 6, 32), (0, 2, 1, 4)]
)
@pytest.mark.parametrize("normalised", [True, False])
def test_norm_turn(any_processor: Processor, n: int, heads: int, turned: int, dim: int, normalised: bool) -> None:
    angles = torch.rand(n, 1, dim // 2, generator=torch.Generator().manual_seed(3)) * 6
    rope = Rope(angles.cos(), angles.sin())

    def plain(x: Tensor, w: Tensor | None = None) -> Tensor:
        kept = x[:, :turned] if w is None else F.rms_norm(x[:, :turned], (dim,), None, 1e-5) * w
        a, b = kept.chunk(2, dim=2)
        return torch.cat((torch.cat((a * rope.cos - b * rope.sin, b * rope.cos + a * rope.sin), 2), x[:, turned:]), 1)

    def ours(x: Tensor, w: Tensor | None = None) -> Tensor:
        return norm_turn(x, turned, rope, w, 1e-5)

    compare(ours, plain, leaves((n, heads, dim), *[(turned, dim)] * normalised))


@pytest.mark.parametrize(
    ("m", "h", "v", "chunk"), [(7, 5, 11, 3), (130, 9, 1003, 128), (70, 64, 128, 512), (1, 2, 1, 1)]
)
def test_cross_entropy(any_processor: Processor, m: int, h: int, v: int, chunk: int) -> None:
    targets = torch.randint(0, v, (m,), generator=torch.Generator().manual_seed(4))
    compare(
        lambda states, head: cross_entropy_sum(states, head, targets, chunk=chunk),
        lambda states, head: F.cross_entropy(states @ head.t(), targets, reduction="sum"),
        leaves((m, h), (v, h)),
    )


def test_cross_entropy_of_great_logits_of_padding_and_of_a_target_outside(kernels: None) -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [0.0, 0.0, float("-inf")], [1.0, 2.0, 3.0]])  # the third row is padding
    assert native.cross_entropy_(logits, torch.tensor([1, 0])).tolist() == pytest.approx([1e4, log(2)])
    assert logits.tolist() == [[1.0, -1.0, 0.0], [-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]
    with pytest.raises(IndexError, match="from 1 to 3, the vocabulary from 0 to 2"):
        native.cross_entropy_(logits, torch.tensor([3, 1]))


@pytest.mark.parametrize(
    ("rows", "width", "heads", "kv_heads", "dim"),
    [(2, 1, 2, 1, 8), (3, 63, 4, 2, 8), (1, 64, 2, 2, 32), (2, 65, 4, 1, 40), (1, 200, 3, 3, 20), (0, 5, 2, 1, 8)],
)
@pytest.mark.parametrize("packed", [False, True])
def test_attention(
    any_processor: Processor, rows: int, width: int, heads: int, kv_heads: int, dim: int, packed: bool
) -> None:
    documents = None
    if packed:
        new = torch.rand(rows, width, generator=torch.Generator().manual_seed(5)) < 0.02
        documents = Documents(torch.where(new, torch.arange(width), 0).cummax(1).values)
    (joined,) = leaves((rows, width, heads + 2 * kv_heads, dim))

    def run(x: Tensor) -> Tensor:
        return attention(x, heads, kv_heads, documents)

    compare(run, run, [joined])


def test_documents_see_themselves_only_and_up_to_now() -> None:
    mask = Documents(torch.tensor([[0, 0, 2, 2]])).mask
    assert mask.int().tolist() == [[[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]]]


def test_attention_to_a_token_does_not_depend_on_what_else_is_computed(kernels: None) -> None:
    (joined,) = leaves((3, 150, 6, 16))
    whole = attention(joined, 4, 1)
    assert torch.equal(attention(joined[1:2, :70].contiguous(), 4, 1), whole[1:2, :70])


@pytest.mark.parametrize(("n", "m"), [(0, 3), (1, 1), (17, 33), (100, 70), (128, 64)])
def test_transpose(kernels: None, n: int, m: int) -> None:
    (x,) = leaves((n, m))
    assert torch.equal(native.transpose(x.detach()), x.t())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_passes_between_the_products(kernels: None, kind: torch.dtype) -> None:
    """Against fp64 on the same numbers: what is written in bf16 is the nearest, or next to it."""
    hidden, slope, rows, logits = (t.detach().to(kind) for t in leaves((37, 2 * 70), (37, 70), (40, 33), (9, 517)))
    weight, weights, slot = torch.rand(37), torch.rand(21, 3), torch.randint(0, 40, (21, 3))
    targets = torch.randint(0, 517, (7,))  # two rows of padding
    gate, up = hidden.double().chunk(2, 1)
    silu = gate * gate.sigmoid()
    share = weight.double().unsqueeze(1)
    d_active = share * slope.double()
    d_gate = d_active * up * (gate.sigmoid() + silu * (1 - gate.sigmoid()))
    softmax = logits.double().softmax(1)
    wanted = [
        silu * up,
        torch.cat([d_gate, d_active * silu], 1),
        share * silu * up,
        (slope.double() * silu * up).sum(1),
        (weights.double().unsqueeze(2) * rows.double()[slot]).sum(1),
        rows.double()[slot].sum(1),
        F.cross_entropy(logits[:7].double(), targets, reduction="none"),
        torch.cat([softmax[:7] - F.one_hot(targets, 517), torch.zeros(2, 517)]),
    ]
    made: list[Tensor] = [native.swiglu(hidden), *native.swiglu_backward(hidden, slope.clone(), weight)]
    made += [native.combine(rows, slot, weights), native.combine(rows, slot, None)]
    made += [native.cross_entropy_(logits, targets), logits]
    for got, right in zip(made, wanted, strict=True):
        precise = got.dtype is not torch.bfloat16
        torch.testing.assert_close(got.double(), right, rtol=2e-6 if precise else 2**-8, atol=2e-5 if precise else 1e-6)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("width", "heads", "kv", "dim"), [(150, 4, 2, 20), (64, 2, 1, 64), (1, 1, 1, 8)])
def test_attention_whose_factors_are_bf16(
    kernels: None, packed: bool, width: int, heads: int, kv: int, dim: int
) -> None:
    """Within what rounding the factors does, and by another road than fp32's."""
    (joined,) = leaves((2, width, heads + 2 * kv, dim))
    documents = Documents((torch.arange(width) // 40 * 40).expand(2, -1).contiguous()) if packed else None

    def run(x: Tensor) -> Made:
        with torch.autocast("cpu", torch.bfloat16):
            return with_gradients(lambda x: attention(x, heads, kv, documents), [x])

    with using(replace(processor(), tiles=True)):
        made = run(joined)
    exact = with_gradients(lambda x: attention(x, heads, kv, documents), [joined.detach().double().requires_grad_()])
    for got, wanted in zip(made, exact, strict=True):
        assert got.dtype == torch.float32
        error = (got.double() - wanted).norm() / wanted.norm()
        assert (1e-4 if width > 1 else 0) < error < 8e-3


def test_a_nan_stays_one(kernels: None) -> None:
    x = torch.zeros(1, 4, 3, 16)
    x[0, 1, 0, 0] = float("nan")  # a query
    assert attention(x, 1, 1).isnan().any(-1).flatten().tolist() == [False, True, False, False]
    bad = torch.tensor([[0.0, float("nan"), 1.0, 2.0]])
    assert native.cross_entropy_(bad.clone(), torch.tensor([0])).isnan().all()
    for kind in (torch.float32, torch.bfloat16):
        assert native.swiglu(bad.to(kind)).isnan().tolist() == [[False, True]]
        assert native.cross_entropy_(bad.to(kind, copy=True), torch.tensor([0])).isnan().all()
    assert native.rms_norm(bad, torch.ones(4), 1e-5)[0].isnan().all()


def test_the_number_of_threads_changes_no_bit(kernels: None) -> None:
    n, angles = 1400, torch.rand(1400, 1, 8)
    joined, x, gain, gains, head, up = (
        t.detach() for t in leaves((n, 6, 16), (n, 96), (96,), (4, 16), (200, 96), (n, 192))
    )
    token, slot, weight, weights = (
        torch.randint(0, n, (n,)),
        torch.randint(0, n, (n, 2)),
        torch.rand(n),
        torch.rand(n, 2),
    )
    y, scale = native.rms_norm(x, gain, 1e-5)
    turned, scales = native.norm_turn(joined, 4, angles.cos(), angles.sin(), gains, 1e-5)
    cells = joined.view(14, 100, 6, 16)
    out, lse = native.attention(cells, 4, 1, None)

    def everything() -> list[Tensor]:
        logits = x @ head.t()
        made = [native.cross_entropy_(logits, token % 200), logits, native.swiglu(up), native.transpose(x)]
        for kind in (torch.float32, torch.bfloat16):
            made += native.swiglu_backward(up.to(kind), y.to(kind, copy=True), weight)
            made.append(native.combine(x.to(kind), slot, weights))
        made += native.rms_norm(x, gain, 1e-5) + native.rms_norm_backward(y, x, gain, scale)
        turns = native.norm_turn_backward(turned, joined, 4, angles.cos(), angles.sin(), gains, scales)
        made += [t for t in turns if t is not None]
        for half in (False, True):
            made += native.attention(cells, 4, 1, None, half)
            made.append(native.attention_backward(out, cells, 4, 1, None, out, lse, half))
        return made

    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(everything())
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        for first, other in zip(runs[0], run, strict=True):
            assert torch.equal(first, other)


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a rotation turns by its angle",
        "moe/kernels/native.c",
        "to[i] = a * c[i] - b * s[i];",
        "to[i] = a * c[i] + b * s[i];",
        "test_norm_turn",
    ),
    (
        "padding of a chunk has no gradient",
        "moe/kernels/native.c",
        "memset(x, 0, vocabulary * sizeof(float));",
        "(void)x;",
        "test_cross_entropy_of_great_logits_of_padding_and_of_a_target_outside",
    ),
    (
        "documents do not see each other in the kernels",
        "moe/kernels/attention.c",
        "MIN(KEYS, start[query + q] - key)",
        "MIN(KEYS, start[query + q] - key - 1)",
        "test_attention",
    ),
    (
        "rounding its factors is all that bf16 does to attention",
        "moe/kernels/attention.c",
        "block_product(dp_half, QUERIES, q_half, dk",
        "block_product(p_half, QUERIES, q_half, dk",
        "test_attention_whose_factors_are_bf16",
    ),
    (
        "an expert's slope carries its routing weight once",
        "moe/kernels/passes.h",
        "slope = w * given;",
        "slope = given;",
        "test_the_passes_between_the_products",
    ),
    (
        "bf16 is rounded to the nearest",
        "moe/kernels/native.h",
        "(number.bits + 0x7fff + (number.bits >> 16 & 1)) >> 16",
        "number.bits >> 16",
        "test_the_passes_between_the_products",
    ),
]

"""The grouped backend against a plain loop. On a CPU its products are a loop too, all else is as on CUDA."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from conf.errors import InputError
from conf.knobs.model import ExpertsBackend
from moe.experts import backend, gathered_experts
from moe.kernels import grouped, megablocks
from moe.kernels.grouped import _GroupedExperts, available, grouped_experts, grouped_product
from moe.kernels.sorted_experts import torch_experts
from tests.moe.kernels.by_expert import errors, loop, results
from tests.moe.kernels.megablocks_conformance import NAMES, Case, inputs

CASES = [
    Case(24, 32, 24, 4, 2, busy=4),
    Case(24, 32, 24, 4, 2, busy=4, skewed=True),
    Case(24, 32, 24, 8, 2, busy=3),  # five experts get nothing
    Case(20, 16, 8, 8, 1, busy=8),
    Case(20, 16, 8, 8, 1, busy=1),
    Case(9, 8, 16, 6, 6, busy=6),  # every token goes to every expert
    Case(1, 8, 16, 4, 2, busy=4),
    Case(0, 16, 8, 4, 2, busy=4),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_forward_and_all_gradients_equal_the_loop(case: Case, dtype: torch.dtype) -> None:
    near = 1e-13 if dtype == torch.float64 else 1e-6
    ours = results(grouped_experts, case, dtype)
    assert all(part.dtype == dtype for part in ours)
    assert all(error < near for error in errors(ours, results(loop, case, torch.float64)).values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_in_bf16_no_error_is_twice_that_of_the_loop(case: Case) -> None:
    exact = results(loop, case, torch.float64)
    ours = errors(results(grouped_experts, case, torch.bfloat16), exact)
    theirs = errors(results(loop, case, torch.bfloat16), exact)
    assert all(ours[name] <= 2 * theirs[name] for name in NAMES), (ours, theirs)


def test_under_autocast_weights_and_their_gradients_stay_fp32() -> None:
    def in_bf16(x: Tensor, *rest: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return grouped_experts(x, *rest)

    ours = results(in_bf16, CASES[1], torch.float32)
    assert [part.dtype for part in ours] == [torch.bfloat16, *[torch.float32] * 4]
    assert all(1e-4 < error < 1e-2 for error in errors(ours, results(loop, CASES[1], torch.float64)).values())


def test_an_expert_without_rows_gets_exact_zeros() -> None:
    _, _, _, d_gate_up, d_down = results(grouped_experts, CASES[2], torch.float32)
    assert d_gate_up[3:].abs().sum() == 0 and d_down[3:].abs().sum() == 0
    assert (d_gate_up[:3].flatten(1).norm(dim=1) > 0).all() and (d_down[:3].flatten(1).norm(dim=1) > 0).all()


def test_frozen_weights_get_no_gradient() -> None:
    experts, (x, weights, gate_up, down), direction = inputs(CASES[0])
    grouped_experts(x, experts, weights, gate_up.detach(), down.detach()).backward(direction)
    assert gate_up.grad is None and x.grad is not None
    torch.testing.assert_close(x.grad, found_x(CASES[0], direction))


def found_x(case: Case, direction: Tensor) -> Tensor:
    experts, (x, *rest), _ = inputs(case)
    return torch.autograd.grad(loop(x, experts, *rest), x, direction)[0]


def test_the_backward_pass_keeps_x_the_routes_and_the_hidden_activations() -> None:
    case = CASES[1]
    experts, (x, weights, gate_up, down), _ = inputs(case)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        grouped_experts(x, experts, weights, gate_up, down)
    given = {leaf.data_ptr() for leaf in (x, weights, gate_up, down)}
    made = [tensor for tensor in kept if tensor.data_ptr() not in given]
    assignments = case.tokens * case.top_k
    hidden = [tensor for tensor in made if tensor.is_floating_point()]
    assert [tuple(tensor.shape) for tensor in hidden] == [(assignments, 2 * case.inner)]
    routes = sum(tensor.numel() for tensor in made if not tensor.is_floating_point())
    assert routes == 2 * assignments + case.experts


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr("moe.kernels.passes._triton_is_there", lambda: False)


@pytest.mark.parametrize("capability", [(9, 0), (10, 3)], ids=str)
def test_on_cuda_the_host_waits_for_nothing_and_the_layouts_are_allowed(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tensors without numbers: torch refuses whatever would have to look at one, and checks what its kernel asks for.
    on_a_gpu(monkeypatch, capability)
    shapes = [(24, 32), (24, 2), (4, 48, 32), (4, 32, 24)]
    with torch.no_grad(), FakeTensorMode():
        x, weights, gate_up, down = (torch.empty(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes)
        experts, kept = torch.zeros(24, 2, dtype=torch.long, device="cuda"), SimpleNamespace()
        kept.needs_input_grad = (True, False, True, True, True)
        kept.save_for_backward = lambda *tensors: setattr(kept, "saved_tensors", tensors)
        y = _GroupedExperts.forward(kept, x, experts, weights.float(), gate_up, down)
        gradients = _GroupedExperts.backward(kept, y)
        with pytest.raises(DataDependentOutputException):
            experts.sum().item()
    assert gradients[1] is None and gradients[2] is not None and gradients[2].dtype == torch.float32
    made = [gradients[0], gradients[3], gradients[4]]
    assert [tuple(part.shape) for part in made if part is not None] == [shapes[0], shapes[2], shapes[3]]


@pytest.mark.parametrize(
    ("capability", "dtype", "hidden", "inner", "why"),
    [
        ((8, 0), torch.bfloat16, 32, 24, "compute capability 9 or 10, and this one has 8.0; set compute.experts=auto"),
        ((12, 0), torch.bfloat16, 32, 24, "compute capability 9 or 10, and this one has 12.0"),
        ((9, 0), torch.float32, 32, 24, "bf16 on CUDA, not in torch.float32; set compute.precision=bf16"),
        ((9, 0), torch.float16, 32, 24, "bf16 on CUDA, not in torch.float16; set compute.precision=bf16"),
        ((9, 0), torch.bfloat16, 36, 24, "model.hidden_size that divides by 8, not 36"),
        ((9, 0), torch.bfloat16, 32, 20, "model.expert_size that divides by 8, not 20"),
        ((9, 0), torch.bfloat16, 32, 24, ""),
        ((10, 0), torch.bfloat16, 32, 24, ""),
    ],
)
def test_where_torch_would_loop_auto_does_not_choose_it_and_by_name_it_is_refused(
    capability: tuple[int, int], dtype: torch.dtype, hidden: int, inner: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch, capability)
    with FakeTensorMode():
        x, weights = torch.empty(4, hidden, device="cuda", dtype=dtype), torch.empty(4, 2, device="cuda")
        experts = torch.zeros(4, 2, dtype=torch.long, device="cuda")
        gate_up, down = torch.empty(3, 2 * inner, hidden, device="cuda"), torch.empty(3, hidden, inner, device="cuda")
    assert available(x, gate_up) is not bool(why)
    if why:
        with pytest.raises(InputError, match=f"^compute.experts=grouped .*{why}"):
            grouped_experts(x, experts, weights, gate_up, down)


@pytest.mark.parametrize("chosen", ["grouped", "gathered", "megablocks", "torch"])
def test_auto_takes_the_first_that_can(chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "available", lambda x, gate_up: chosen == "grouped")
    monkeypatch.setattr(megablocks, "available", lambda x: chosen != "torch")
    for name in ("grouped_experts", "gathered_experts", "experts_megablocks", "torch_experts"):
        monkeypatch.setattr(f"moe.experts.{name}", lambda *given, name=name: name)
    with FakeTensorMode():
        few, many = torch.ones(1, 1, device="cuda"), torch.ones(300, 1, device="cuda")
    auto = backend(ExpertsBackend.auto)
    with torch.set_grad_enabled(chosen != "gathered"):
        assert chosen in str(auto(few, few, few, few, few))
    with torch.no_grad():
        assert ("megablocks" if chosen == "gathered" else chosen) in str(auto(many, many, many, many, many))
    on_the_cpu = torch.ones(1, 1)
    assert str(auto(on_the_cpu, on_the_cpu, on_the_cpu, on_the_cpu, on_the_cpu)) == "torch_experts"


def test_a_few_tokens_with_matrices_of_their_own_get_the_same() -> None:
    dice = torch.Generator().manual_seed(2)
    x, gate_up = torch.randn(5, 8, generator=dice), torch.randn(6, 12, 8, generator=dice)
    down, weights = torch.randn(6, 8, 6, generator=dice), torch.rand(5, 3, generator=dice)
    experts = torch.stack([torch.randperm(6, generator=dice)[:3] for _ in range(5)])
    for kind in (torch.float32, torch.bfloat16):
        given = (x.to(kind), experts, weights, gate_up.to(kind), down.to(kind))
        rtol, atol = (1e-5, 1e-5) if kind is torch.float32 else (5e-2, 2e-1)
        torch.testing.assert_close(gathered_experts(*given), torch_experts(*given), rtol=rtol, atol=atol)


def test_what_is_asked_for_by_name_runs() -> None:
    assert backend(ExpertsBackend.torch) is torch_experts
    assert backend(ExpertsBackend.grouped) is grouped_experts
    assert not available(torch.ones(1, 8).bfloat16(), torch.ones(1, 16, 8))


def test_the_grouped_product_of_a_cpu_equals_torchs() -> None:
    dice = torch.Generator().manual_seed(0)
    a, b = torch.randn(9, 8, generator=dice), torch.randn(4, 8, 16, generator=dice)
    ends = torch.tensor([3, 3, 4, 9], dtype=torch.int32)
    torch.testing.assert_close(grouped_product(a, b, ends), torch.nn.functional.grouped_mm(a, b, offs=ends))
    slopes = torch.randn(9, 16, generator=dice)
    ours = grouped_product(a.t(), slopes, ends)
    torch.testing.assert_close(ours, torch.nn.functional.grouped_mm(a.t(), slopes, offs=ends))
    assert ours[1].abs().sum() == 0


PLANTED = [  # promise, file, right code, bug, test (None: this whole file)
    (
        "a grouped expert's gradient is weighted by its route",
        "moe/kernels/passes.py",
        "(share * active).to(hidden.dtype)",
        "active.to(hidden.dtype)",
        "test_forward_and_all_gradients_equal_the_loop",
    ),
    (
        "grouped experts get the rows of their own tokens",
        "moe/kernels/grouped.py",
        "torch.searchsorted(expert, every, right=True, out_int32=True)",
        "torch.searchsorted(expert, every, right=False, out_int32=True)",
        None,
    ),
    (
        "grouped experts keep no gathered rows for the backward pass",
        "moe/kernels/grouped.py",
        "ctx.save_for_backward(x, weights, gate_up, down, hidden, order, ends, slot)",
        "ctx.save_for_backward(x[order // experts.shape[1]], weights, gate_up, down, hidden, order, ends, slot)",
        "test_the_backward_pass_keeps_x_the_routes_and_the_hidden_activations",
    ),
    (
        "grouped experts never make the host wait",
        "moe/kernels/grouped.py",
        "places = torch.arange(expert.shape[0], device=expert.device)",
        "places = torch.arange(int(ends[-1]), device=expert.device)",
        "test_on_cuda_the_host_waits_for_nothing_and_the_layouts_are_allowed",
    ),
    (
        "auto never chooses grouped products where torch loops",
        "moe/kernels/grouped.py",
        "if major not in _MAJORS:",
        "if major < 9:",
        "test_where_torch_would_loop_auto_does_not_choose_it_and_by_name_it_is_refused",
    ),
]

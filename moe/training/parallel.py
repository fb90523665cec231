"""How one model is spread over the workers: the experts of a layer by all-to-all, weights and optimizer by FSDP2.

What is spread is a DTensor, which knows its mesh and its placements: optimizer, clipping and checkpoints ask nothing
else. Every worker is a data worker, whatever else it shares. Gradients are summed, not averaged: the
loss is already divided by the units of the whole step.

Letters: N tokens, H hidden size, E experts, k experts per token, A = N*k assignments, P workers that share a layer's
experts, M assignments that arrive at a worker.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from conf.errors import InputError
from conf.knobs.model import Model
from conf.knobs.running import Cluster
from moe.decoder import Decoder
from moe.experts import Backend
from moe.kernels.gemm import product_dtype

_REPLICA, _EXPERT = "replica", "expert"


def check_parallel(model: Model, cfg: Cluster) -> None:
    """Raise InputError where the experts of a layer cannot be spread as `cfg` says."""
    if model.experts % cfg.expert_parallel:
        raise InputError(
            f"model.experts={model.experts} must divide by cluster.expert_parallel={cfg.expert_parallel}; "
            "try cluster.expert_parallel=1"
        )


def parallelise(model: Decoder, cfg: Cluster, on: torch.device | None = None) -> Decoder:
    """Spread `model` over the workers of the process group, in place; returns it. The weights are those of rank 0, and
    only they are looked at: on the other ranks the model may be a shape alone, on the device `meta`. What is spread
    comes to lie on the device `on`, a tensor at a time; a model that is not stays where it is.

    Its parameters become new ones: make the optimizer afterwards. From then on all workers call it equally often.
    """
    world = world_size()
    owners = cfg.expert_parallel
    if world == 1 or not (cfg.shard or owners > 1):
        return model
    place = on or model.device
    device = place.type
    weights = dict(model.state_dict()) if own_rank() == 0 else {}
    model.to("meta")
    mesh = init_device_mesh(device, (world // owners, owners), mesh_dim_names=(_REPLICA, _EXPERT))
    if owners > 1:
        for layer in model.model.blocks():
            layer.mlp.backend = across(layer.mlp.backend, mesh.get_group(_EXPERT))
            if cfg.shard:  # over the replicas by FSDP2, below
                _spread(layer.mlp.experts, mesh[_EXPERT], [Shard(0)])
            else:
                _spread(layer.mlp.experts, mesh, [Replicate(), Shard(0)])
    if cfg.shard:
        _shard(model, init_device_mesh(device, (world,)), mesh[_REPLICA] if owners > 1 else None)
    _fill(model.to_empty(device=place), weights, place)
    return model


def _fill(model: nn.Module, weights: dict[str, Tensor], device: torch.device) -> None:
    """Give every worker its part of the `weights` that rank 0 has, which are gone afterwards."""
    for name, target in model.state_dict().items():
        tensor = (
            weights.pop(name).to(device) if weights else torch.empty(target.shape, dtype=target.dtype, device=device)
        )
        dist.broadcast(tensor, 0)
        own(target).copy_(own(spread_as(target, tensor)))


def _spread(experts: nn.Module, mesh: DeviceMesh, placements: list[Placement]) -> None:
    """Every parameter below `experts` has an expert's number as its first dimension."""
    for module in experts.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            spread = distribute_tensor(parameter.detach(), mesh, placements, src_data_rank=None)
            module.register_parameter(name, nn.Parameter(spread, requires_grad=parameter.requires_grad))


def _shard(model: Decoder, everyone: DeviceMesh, replicas: DeviceMesh | None) -> None:
    """FSDP2 over `everyone`, for the experts over their replicas where they are spread already."""
    for layer in model.model.blocks():
        if replicas is not None:
            # The gate lies in the same module but has no owner: it stays whole, and is summed as unsharded weights are.
            fully_shard(layer.mlp, mesh=replicas, ignored_params=set(layer.mlp.gate.parameters()))
        fully_shard(layer, mesh=everyone)
    fully_shard(model, mesh=everyone)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


class _Exchange(torch.autograd.Function):
    """Rows to the workers of a group: the first sizes[0] to the first, and so on. Backward sends the slopes home."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: list[int], arriving: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sizes, ctx.arriving, ctx.group = sizes, arriving, group
        return _exchange(rows, sizes, arriving, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _exchange(grads[0], ctx.arriving, ctx.sizes, ctx.group), None, None, None


def _exchange(rows: Tensor, sizes: list[int], arriving: list[int], group: dist.ProcessGroup) -> Tensor:
    arrived = rows.new_empty(sum(arriving), *rows.shape[1:])
    dist.all_to_all_single(arrived, rows.contiguous(), arriving, sizes, group=group)
    return arrived


def across(backend: Backend, group: dist.ProcessGroup) -> Backend:
    """`backend` with the experts spread over the workers of `group`, in order: the first has the first E/P of them.

    Dropless: an assignment travels to its expert and the answer back, however unevenly they fall. All workers of the
    group must call it together, also one without tokens.
    """

    def run(x: Tensor, experts: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        gate_up, down = own(gate_up), own(down)
        held, top_k = gate_up.shape[0], experts.shape[1]
        flat = experts.flatten()
        order = flat.argsort(stable=True)  # [A] assignments by expert, and so by worker
        leaving = torch.bincount(flat, minlength=held * group.size())  # [E]
        coming = torch.empty_like(leaving)  # [E] by worker, then by own expert
        dist.all_to_all_single(coming, leaving, group=group)
        sizes, arriving = (counts.view(-1, held).sum(1).tolist() for counts in (leaving, coming))
        sent = x.to(product_dtype(x)).index_select(0, order // top_k)
        rows = _Exchange.apply(sent, sizes, arriving, group)  # [M, H]
        here = torch.arange(held, device=x.device).repeat(group.size()).repeat_interleave(coming)
        rows = backend(rows, here.unsqueeze(1), weights.new_ones(rows.shape[0], 1), gate_up, down)
        rows = _Exchange.apply(rows, arriving, sizes, group)  # [A, H]
        picked = rows.index_select(0, order.argsort()).view(*experts.shape, x.shape[1])
        return torch.bmm(weights.to(rows.dtype).unsqueeze(1), picked).squeeze(1)

    return run


def own(tensor: Tensor) -> Tensor:
    """This worker's part of what is spread, in the same memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """What is spread, gathered, for which all workers must call; any other tensor as it is."""
    if not isinstance(tensor, DTensor):
        return tensor
    # Experts that FSDP2 has cut further are put together from right to left, as they were cut.
    return tensor.redistribute(placements=[Replicate(), *tensor.placements[1:]]).full_tensor()


def spread_as(like: Tensor | None, tensor: Tensor) -> Tensor:
    """A whole tensor spread as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters that lie on the same workers together: a fused operator takes no others at once."""
    found: dict[DeviceMesh | None, list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        found[parameter.device_mesh if isinstance(parameter, DTensor) else None].append(parameter)
    return list(found.values())


def reduce_gradients(model: nn.Module) -> None:
    """Sum the gradients over the workers that hold the same weights, in one flat message for each such set of workers.

    Those that FSDP2 shards are summed already.
    """
    if world_size() == 1:
        return
    shared: dict[dist.ProcessGroup | None, list[Tensor]] = defaultdict(list)
    for gradient in (p.grad for p in model.parameters() if p.grad is not None):
        if not isinstance(gradient, DTensor):
            shared[None].append(gradient)
        elif gradient.placements[0].is_replicate():
            shared[gradient.device_mesh.get_group(_REPLICA)].append(own(gradient))
    for group, gradients in shared.items():
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat, group=group)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Scale the summed gradients, in place, to a global norm of at most `limit`; returns the norm before, []."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = total_norm(gradients)
    scale = (limit / (norm + 1e-6)).clamp(max=1.0)
    torch._foreach_mul_([own(gradient) for gradient in gradients], scale)
    return norm


def total_norm(tensors: list[Tensor]) -> Tensor:
    """Norm [] of all numbers of `tensors`, spread or the same on all workers, which call together if any is spread."""
    if not any(isinstance(tensor, DTensor) for tensor in tensors):
        return nn.utils.get_total_norm(tensors)
    squares = torch.stack([own(tensor).square().sum() / _copies(tensor) for tensor in tensors]).sum()
    dist.all_reduce(squares)
    return squares.sqrt()


def _copies(tensor: Tensor) -> int:
    """How many workers hold the same values."""
    if not isinstance(tensor, DTensor):
        return dist.get_world_size()
    count = 1
    for dim, placement in enumerate(tensor.placements):
        count *= tensor.device_mesh.size(dim) if placement.is_replicate() else 1
    return count


def take_device(cfg: Cluster) -> None:
    """Compute on the GPU that this process was given, if the run's workers have one."""
    if cfg.gpus_per_worker:
        torch.set_default_device("cuda")


def repeatable(cfg: Cluster, device: str) -> None:
    """With `cluster.deterministic` a GPU takes only kernels that give the same bits every time; where there is none,
    torch warns and goes on. On a CPU all do. To be called before anything is computed."""
    if cfg.deterministic and device == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # see torch.use_deterministic_algorithms
        torch.use_deterministic_algorithms(True, warn_only=True)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def own_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def fixed_sum(parts: dict[int, Tensor], slots: int) -> Tensor:
    """The sum of a tensor from each of `slots` slots, added in one fixed order whoever holds which.

    Of W workers, worker r gives the slots that are r modulo W; W divides `slots`, a power of two. Slot s is added to
    slot s + n/2 of the n that are left, so that a worker first adds what it has itself.
    """
    world = world_size()
    held = dict(parts)
    while slots > 1:
        if slots == world:
            mine = held[dist.get_rank()]
            gathered = [torch.empty_like(mine) for _ in range(world)]
            dist.all_gather(gathered, mine)
            held = dict(enumerate(gathered))
        slots //= 2
        held = {slot: value + held[slot + slots] for slot, value in held.items() if slot < slots}
    return held[0]

"""One model on many processes: data parallel (DDP) or sharded (FSDP2), and states that do not depend on how many."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map


def place() -> tuple[int, int]:
    """(rank, processes) of this process; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def largest(value: int) -> int:
    """The largest value of all processes. It travels between CPUs: no GPU is waited for."""
    if place()[1] == 1:
        return value
    box = torch.tensor(value)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def average_(x: Tensor) -> Tensor:
    """x, in place, as its mean over all processes."""
    if (world := place()[1]) > 1:
        dist.all_reduce(x)
        x /= world
    return x


@contextmanager
def leader_first() -> Iterator[None]:
    """The body runs in rank 0, and then in the others: what rank 0 downloads, they find."""
    rank, world = place()
    if rank:
        dist.barrier()
    yield
    if world > 1 and rank == 0:
        dist.barrier()


def distribute(objective: nn.Module, shard: bool) -> nn.Module:
    """The module to call in training: gradients become those of the mean loss over all processes.

    With `shard` each process keeps its part of every weight, gradient and moment and gathers a block's weights while
    it computes with them (FSDP2); else each keeps all of them (DDP). `objective` has `mae` and `heads`.
    """
    if place()[1] == 1:
        return objective
    if not shard:
        # Said once of the patch embedding of grey images, whose stride of a dimension of size 1 has no meaning.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        return nn.parallel.DistributedDataParallel(objective)
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    mae: Any = objective.mae
    heads: Any = objective.heads
    for module in (*mae.encoder.blocks, *mae.decoder_blocks, mae, *heads.values()):
        fully_shard(module)
    register_fsdp_forward_method(mae, "encode")
    return objective


@contextmanager
def gradient_sync(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Gradients computed inside are exchanged between the processes only if `wanted` (the last of an accumulation)."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules() if place()[1] > 1 else ():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(wanted, recurse=False)
    alone = isinstance(model, nn.parallel.DistributedDataParallel) and not wanted
    with cast(Any, model).no_sync() if alone else nullcontext():
        yield


def whole(state: Any) -> Any:
    """A state dict with every sharded tensor gathered, on the CPU: the same for any number of processes.

    All processes must call it.
    """
    from torch.distributed.tensor import DTensor

    def gather(x: Any) -> Any:
        x = x.full_tensor() if isinstance(x, DTensor) else x
        return x.detach().cpu() if isinstance(x, Tensor) else x

    return tree_map(gather, state)


def own_parts(model: nn.Module) -> list[Tensor]:
    """The parameters, or of sharded ones what this process holds."""
    from torch.distributed.tensor import DTensor

    parts: list[Any] = list(model.parameters())
    return [(p.to_local() if isinstance(p, DTensor) else p).detach() for p in parts]


def _like(x: Any, own: Any) -> Any:
    """The whole tensor x, sharded as `own` is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(own, DTensor) and isinstance(x, Tensor) and x.shape == own.shape:
        return distribute_tensor(
            x.to(own.device), own.device_mesh, own.placements, src_data_rank=None
        )
    return x


def model_part(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A whole state dict of a module -> this process's part of it."""
    own = model.state_dict()
    return {name: _like(x, own.get(name)) for name, x in state.items()}


def optimizer_part(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """A whole state dict of an optimiser -> this process's part of it."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        i: {k: _like(x, params[i]) for k, x in entry.items()} for i, entry in state["state"].items()
    }
    return {**state, "state": moments}

"""One model on many processes: data parallel (DDP) or sharded (FSDP2), and what they agree on."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank_and_world_size() -> tuple[int, int]:
    """(rank, world_size) of this process; (0, 1) outside a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def barrier() -> None:
    """Waits until all processes are here."""
    all_reduce_max(0)


def all_reduce_max(value: int) -> int:
    """The largest value of all processes. It travels between CPUs: no GPU is waited for."""
    if rank_and_world_size()[1] == 1:
        return value
    box = torch.tensor(value)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def all_reduce_mean_(x: Tensor) -> Tensor:
    """x, in place, as its mean over all processes."""
    if (world_size := rank_and_world_size()[1]) > 1:
        dist.all_reduce(x)
        x /= world_size
    return x


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """The body runs in rank 0, and then in the others: what rank 0 downloads, they find."""
    rank, world_size = rank_and_world_size()
    if rank:
        dist.barrier()
    yield
    if world_size > 1 and rank == 0:
        dist.barrier()


def distribute(objective: nn.Module, shard: bool) -> nn.Module:
    """The module to call in training: gradients become those of the mean loss over all processes.

    With `shard` each process keeps its part of every weight, gradient and moment, and gathers a
    block's weights while it computes with them (FSDP2); else each keeps all of them (DDP).
    `objective` has `mae` and `heads`.
    """
    if rank_and_world_size()[1] == 1:
        return objective
    if not shard:
        # Said once of the patch embedding of grey images, whose stride of a dimension of size 1
        # has no meaning.
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
    """Gradients computed inside are exchanged between the processes only if `wanted`.

    Of an accumulation over several backward passes that is the last one.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules() if rank_and_world_size()[1] > 1 else ():
        if isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(wanted, recurse=False)
    alone = isinstance(model, nn.parallel.DistributedDataParallel) and not wanted
    with cast(Any, model).no_sync() if alone else nullcontext():
        yield


def local_parameters(model: nn.Module) -> list[Tensor]:
    """The parameters, or of sharded ones what this process holds."""
    from torch.distributed.tensor import DTensor

    parameters: list[Any] = list(model.parameters())
    return [(p.to_local() if isinstance(p, DTensor) else p).detach() for p in parameters]

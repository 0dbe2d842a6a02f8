"""What the processes of test_distributed do: functions that a spawned worker can import."""

import os
import signal
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from lib.data import Dataset, Split
from lib.distributed import collectives
from lib.errors import UMAEError
from lib.losses import uniformity_loss
from lib.presets import Config
from lib.train import train
from lib.train.checkpoint import full_state_dict
from lib.train.loop import Trainer


def data_of(config: Config, n: int = 80) -> Dataset:
    """n random digits-like images in ten classes; no file is read."""
    g = torch.Generator().manual_seed(5)
    images = torch.randint(
        256, (n, config.channels, config.image_size, config.image_size), generator=g
    )
    split = Split(torch.arange(n) % 10, images.to(torch.uint8), [])
    mean = torch.full((config.channels,), 0.5)
    return Dataset(
        split, split, [str(k) for k in range(10)], mean, mean / 2, "random", config.image_size
    )


def steps(config: Config, count: int) -> dict[str, Any]:
    """The weights, the mean terms and the images seen in the first `count` steps of one run."""
    trainer = Trainer(config, data_of(config))
    seen: list[Tensor] = []
    take = trainer.data.batches

    def recorded(split: Split, order: Any, **more: Any) -> Any:
        seen.extend(order)
        return take(split, order, **more)

    trainer.data.batches = recorded  # type: ignore[method-assign]
    bar = type("Bar", (), {"update": lambda self, n: None})()
    for epoch in range(-(-count // trainer.steps_per_epoch)):
        trainer.train_epoch(epoch, bar, [])
    assert trainer.step == count
    weights = full_state_dict(trainer.objective)
    mine = torch.stack(seen)
    if trainer.world_size > 1:
        shares = [torch.empty_like(mine) for _ in range(trainer.world_size)]
        dist.all_gather(shares, mine)
    else:
        shares = [mine]
    return {"weights": weights, "sums": collectives.all_reduce_mean_(trainer.sums), "seen": shares}


def global_uniformity(features: Tensor, form: str) -> dict[str, Tensor]:
    """Value and gradient of this process's share, gathered.

    DDP's averaging is a division by the processes.
    """
    rank, world = collectives.rank_and_world_size()
    share = features.chunk(world)[rank].clone().requires_grad_()
    value = uniformity_loss(share, form)
    (value**2).backward()
    grad = share.grad
    assert grad is not None
    grads = [torch.empty_like(grad) for _ in range(world)]
    dist.all_gather(grads, grad)
    alone = uniformity_loss(share.detach(), form, local=True)
    return {"value": value.detach(), "grad": torch.cat(grads) / world, "local": alone}


def many(*calls: tuple) -> list[Any]:
    """Several functions in one launch, for starting takes the time; an error is an answer."""
    answers = []
    for fn, *args in calls:
        try:
            answers.append(fn(*args))
        except UMAEError as error:
            answers.append(error)
    return answers


def whole_run(config: Config) -> str:
    return str(train(config, data_of(config)).folder)


def stopped_run(config: Config, at_step: int) -> None:
    """A run in which one process, not the first, is asked to stop at a step."""
    rank, world = collectives.rank_and_world_size()
    taken = 0

    def count(*_: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == at_step and rank == world - 1:
            os.kill(os.getpid(), signal.SIGINT)

    hook = register_optimizer_step_post_hook(count)
    try:
        train(config, data_of(config))
    finally:
        hook.remove()

"""Part F: other uniformity terms, trained by the one loop of lib. None of them has earned a place
in lib.

Each sees the mean of the patch tokens, unless it says otherwise.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lib.compute.device import clear_memory_errors
from lib.data import Dataset
from lib.losses import uniformity_loss
from lib.models import pool_tokens
from lib.presets import Config
from lib.runs import Run, open_run, outputs
from lib.train.loop import LESS_MEMORY, Trainer, run_to_the_end
from lib.train.objective import Objective
from study.plan import VARIANTS


class VariantObjective(Objective):
    """The U-MAE loss with another term; `progress()` is the share of the training done, 0 to 1."""

    def __init__(self, config: Config, classes: int, progress: Callable[[], float]) -> None:
        super().__init__(config, classes)
        self.progress = progress


class AllTokens(VariantObjective):
    """Every visible token of every image is a view of its own, the class tokens included."""

    def uniformity(self, latent: Tensor) -> Tensor:
        return uniformity_loss(latent.flatten(0, 1))


class DroppedHead(VariantObjective):
    """A head of two layers stands between the feature and the term; no probe sees it.

    A projection head that is thrown away after training, as in SimCLR (Chen et al. 2020).
    """

    def __init__(self, config: Config, classes: int, progress: Callable[[], float]) -> None:
        super().__init__(config, classes, progress)
        dim = config.embed_dim
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def uniformity(self, latent: Tensor) -> Tensor:
        return uniformity_loss(self.head(pool_tokens(latent, "avg")))


class FallingTerm(VariantObjective):
    """The coefficient falls on a line from twice its value to 0; its mean is the same."""

    def uniformity(self, latent: Tensor) -> Tensor:
        return 2 * (1 - self.progress()) * uniformity_loss(pool_tokens(latent, "avg"))


class VarianceOnly(VariantObjective):
    """Every coordinate of the layer-normed feature shall vary; how they covary is left alone.

    mean_d max(0, 1 - std_d), the variance term of VICReg (Bardes et al. 2022, Eq. 1).
    """

    def uniformity(self, latent: Tensor) -> Tensor:
        features = pool_tokens(latent, "avg").float()
        with torch.autocast(features.device.type, enabled=False):
            std = (F.layer_norm(features, features.shape[-1:]).var(0) + 1e-4).sqrt()
            return F.relu(1 - std).mean()


TERMS: dict[str, type[VariantObjective]] = dict(
    zip(VARIANTS, (AllTokens, DroppedHead, FallingTerm, VarianceOnly), strict=True)
)


class VariantTrainer(Trainer):
    """The loop of lib with the objective of a variant."""

    def __init__(self, name: str, config: Config, data: Dataset) -> None:
        self.name = name
        super().__init__(config, data)

    def new_objective(self) -> VariantObjective:
        classes = len(self.data.class_names)
        return TERMS[self.name](self.config, classes, self.progress)

    def progress(self) -> float:
        return self.step / (self.config.epochs * self.steps_per_epoch)

    def _build(self) -> None:
        super()._build()
        self.how["variant"] = self.name
        if isinstance(self.objective, DroppedHead):
            own = {"params": list(self.objective.head.parameters()), "scheduled": True}
            self.optimizer.add_param_group({**own, "weight_decay": self.config.weight_decay})


def open_variant(name: str, config: Config, fingerprint: str) -> Run:
    """The run of a variant, under outputs/variants: its config is that of plain U-MAE."""
    run = open_run(config, fingerprint)
    return replace(run, folder=outputs() / "variants" / name.replace(" ", "_") / run.folder.name)


def train_variant(name: str, config: Config, data: Dataset) -> Run:
    """Trains or goes on with the run of a variant of VARIANTS, in one process, and returns it."""
    run = open_variant(name, config, data.fingerprint)
    with run.lock(), clear_memory_errors(LESS_MEMORY):
        if run.result is not None:
            return run
        run_to_the_end(run, VariantTrainer(name, config, data))
    return run

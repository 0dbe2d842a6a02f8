"""Figures: one style, image grids, one way to save. The only file of lib that imports matplotlib and seaborn."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lib.masking import patchify, unpatchify

COLOURS = {"MAE": "#4C72B0", "U-MAE": "#DD8452", "paper": "#7F7F7F"}


def style() -> None:
    """The look of every figure of the repository; call it once at the top of a notebook."""
    sns.set_theme(context="notebook", style="ticks", palette="deep", rc={
        "figure.dpi": 100, "savefig.dpi": 150, "figure.constrained_layout.use": True, "axes.spines.top": False,
        "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3, "font.size": 10, "axes.titlesize": 11,
        "legend.frameon": False, "pdf.fonttype": 42,
    })  # fmt: skip


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes folder/name.png and folder/name.pdf."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("png", "pdf"):
        figure.savefig(folder / f"{name}.{suffix}", bbox_inches="tight")


def show_image(ax: Axes, pixels: Tensor, title: str = "") -> None:
    """pixels (C, H, W) in [0, 1], one or three channels."""
    image = pixels.clamp(0, 1).permute(1, 2, 0).numpy()
    ax.imshow(
        image if image.shape[-1] == 3 else image[..., 0],
        cmap="gray",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=9)
    sns.despine(ax=ax, left=True, bottom=True)


def image_grid(rows: Sequence[Tensor], titles: Sequence[str], size: float = 1.1) -> Figure:
    """One row per tensor (N, C, H, W) of pixels in [0, 1]; a title per row at its left, or N titles on top."""
    n = max(len(r) for r in rows)
    figure, axes = plt.subplots(
        len(rows), n, figsize=(size * n + 0.6, size * len(rows) + 0.3), squeeze=False
    )
    for i, row in enumerate(rows):
        for j in range(n):
            axes[i, j].set_axis_off() if j >= len(row) else show_image(axes[i, j], row[j])
    for k, title in enumerate(titles):
        if len(titles) == len(rows):
            axes[k, 0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        else:
            axes[0, k].set_title(title, fontsize=9)
    return figure


def hide(pixels: Tensor, mask: Tensor, patch_size: int, grey: float = 0.75) -> Tensor:
    """pixels (B, C, H, W) with the patches where mask (B, L) is 1 painted grey."""
    patches = patchify(pixels, patch_size)
    patches = torch.where(mask[..., None] > 0, torch.full_like(patches, grey), patches)
    return unpatchify(patches, patch_size, (pixels.shape[-2], pixels.shape[-1]))

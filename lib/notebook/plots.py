"""Figures: one style, seeds with intervals, image grids. The only file of lib that draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from lib.masking import patchify, unpatchify
from lib.notebook.statistics import FEWEST, OPEN, interval, verdict

# No colour means two things: objectives, then curves of the images alone, then protocols, then
# what a notebook counts itself (C0 to C4). Whoever sees few colours can go by the markers.
COLOURS = {"MAE": "#4C72B0", "U-MAE": "#DD8452", "scratch": "#55A868", "paper": "#7F7F7F"}
MARKERS = {"MAE": "o", "U-MAE": "s", "scratch": "^", "paper": "*"}
DATA = {"intra": "#000000", "inter": "#2CA58D", "overall": "#A05195", "relative": "#003F5C"}
PROTOCOL_COLOURS = {
    "online": "#8172B3",
    "sgd": "#C44E52",
    "mae": "#937860",
    "lbfgs": "#64B5CD",
    "knn": "#CCB974",
}
PROTOCOL_MARKERS = {"online": "P", "sgd": "v", "mae": "D", "lbfgs": "X", "knn": "h"}
FEATURES = {"token": "class token", "avg": "mean of patch tokens"}
PROTOCOL_NAMES = {
    "online": "online,\nmasked views",
    "sgd": "plain, 10 epochs\n(sgd)",
    "mae": "batch-normed,\n90 epochs (mae)",
    "lbfgs": "converged\n(lbfgs)",
    "knn": "20 nearest\nneighbours (knn)",
}
CYCLE = ("#332288", "#CC6677", "#117733", "#AA4499", "#999933")  # C0 to C4
CLASS_MARKERS = ("o", "^", "s", "X", "d")
CLASS_COLOURS = {
    "dark": ("#332288", "#117733", "#882255", "#222222", "#8C510A"),
    "light": ("#56B4E9", "#E69F00", "#F099B8", "#A6C84C", "#AAAAAA"),
}
# Ten classes: every marker once in a dark and once in a light colour, so that grey would do.
CLASS_LOOKS = [
    {"color": colour, "marker": marker}
    for colours in CLASS_COLOURS.values()
    for colour, marker in zip(colours, CLASS_MARKERS, strict=True)
]
FADED = 0.5  # opacity of marks whose verdict is "cannot tell"

STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.prop_cycle": plt.cycler(color=CYCLE),
    "grid.alpha": 0.3,
    "font.size": 10,
    "axes.titlesize": 11,
    "legend.frameon": False,
    "pdf.fonttype": 42,
}


def style() -> None:
    """The look of every figure of the repository; call it once at the top of a notebook."""
    plt.style.use(["seaborn-v0_8-ticks", STYLE])


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes folder/name.png and folder/name.pdf; the places of all parts are fixed by then."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # found once, not anew for each file and for the page
    for suffix in ("png", "pdf"):
        figure.savefig(folder / f"{name}.{suffix}", bbox_inches="tight")


def draw_seeds(
    ax: Axes,
    x: Sequence[float],
    values: Sequence[Sequence[float]],
    colour: str,
    marker: str = "o",
    label: str | None = None,
    line: str = "-",
    filled: bool = True,
    judged: Sequence[Sequence[float]] | None = None,
) -> None:
    """Means over seeds joined by a line, every seed as a dot, and the 95 % interval of the mean.

    x (points), values (points, seeds). A point is faded if the interval of its differences `judged`
    (points, pairs) contains 0; fewer than three differences have no verdict and fade nothing. The
    axes hold every interval of three seeds or more. One of two seeds may be cut off: it is 12.7
    standard errors to each side, and would hide the rest.
    """
    means = [float(np.mean(v)) for v in values]
    face = colour if filled else "white"
    for k, (at, mean, seeds) in enumerate(zip(x, means, values, strict=True)):
        alpha = FADED if judged is not None and _is_open(judged[k]) else 1.0
        ax.scatter([at] * len(seeds), seeds, s=9, color=colour, alpha=0.6 * alpha, lw=0, zorder=2)
        ax.plot(at, mean, marker, ms=6, mfc=face, mec=colour, alpha=alpha, zorder=3)
        if len(seeds) > 1:
            bar = Line2D([at, at], interval(seeds), color=colour, lw=1.2, alpha=0.5 * alpha)
            hold = ax.add_artist if len(seeds) < FEWEST else ax.add_line  # an artist widens nothing
            hold(bar)
    ax.plot(x, means, line, color=colour, lw=1.3, alpha=0.8, zorder=1)
    if label is not None:
        ax.plot([], [], marker + line, color=colour, mfc=face, ms=6, label=label)


def _is_open(differences: Sequence[float]) -> bool:
    return len(differences) >= FEWEST and verdict(differences) == OPEN


def draw_gains(gains: Mapping[tuple[str, str], Sequence[float]]) -> Figure:
    """U-MAE minus MAE in points, by protocol: filled for the class token, hollow for the mean.

    gains: {(protocol, feature): a gain for each pair of runs}. A gain is faded if its interval
    contains 0.
    """
    figure, ax = plt.subplots(figsize=(8, 3.6))
    protocols = list(dict.fromkeys(protocol for protocol, _ in gains))
    for (protocol, feature), values in gains.items():
        place = protocols.index(protocol) + (-0.15 if feature == "token" else 0.15)
        look = PROTOCOL_COLOURS[protocol], PROTOCOL_MARKERS[protocol]
        draw_seeds(ax, [place], [values], *look, filled=feature == "token", judged=[values])
    for feature, face in (("token", "0.3"), ("avg", "white")):
        ax.plot([], [], "o", ms=6, mfc=face, mec="0.3", label=FEATURES[feature])
    ax.axhline(0, color="0.3", lw=1)
    ax.set_xticks(range(len(protocols)), [PROTOCOL_NAMES[protocol] for protocol in protocols])
    ax.tick_params(axis="x", labelsize=9)
    ax.set_ylabel("U-MAE minus MAE (points)")
    seeds = max(map(len, gains.values()))
    title = f"Linear accuracy of the same models ({seeds} of each), by protocol and feature"
    ax.set_title(f"{title}\n{explained(seeds)}")
    ax.legend()
    return figure


def explained(pairs: int) -> str:
    """What the bars and the faded marks of a figure of gains mean, for its title."""
    if pairs < 2:
        return "one pair: no interval"
    return "bars: 95 % intervals" + "; faded: the interval contains 0" * (pairs >= FEWEST)


def as_text(name: str) -> str:
    """A name of a class for a figure: matplotlib reads $ as mathematics, and hides a leading _."""
    return " " * name.startswith("_") + name.replace("$", r"\$")


def show_image(ax: Axes, pixels: Tensor, title: str = "") -> None:
    """pixels (C, H, W) in [0, 1], one or three channels."""
    image = pixels.clamp(0, 1).permute(1, 2, 0).numpy()
    shown = image if image.shape[-1] == 3 else image[..., 0]
    ax.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.set_title(title, fontsize=9)
    ax.spines[:].set_visible(False)


def image_grid(rows: Sequence[Tensor], titles: Sequence[str], size: float = 1.1) -> Figure:
    """One row per tensor (N, C, H, W) of pixels in [0, 1].

    titles: one a row, at its left, or N on top of the columns.
    """
    n = max(len(r) for r in rows)
    shape = (size * n + 0.6, size * len(rows) + 0.3)
    figure, axes = plt.subplots(len(rows), n, figsize=shape, squeeze=False)
    for i, row in enumerate(rows):
        for j in range(n):
            if j < len(row):
                show_image(axes[i, j], row[j])
            else:
                axes[i, j].set_axis_off()
    for k, title in enumerate(titles):
        if len(titles) == len(rows):
            axes[k, 0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        else:
            axes[0, k].set_title(title, fontsize=9)
    return figure


def hide(pixels: Tensor, mask: Tensor, patch_size: int) -> Tensor:
    """pixels (B, C, H, W) with the patches where mask (B, L) is 1 painted grey."""
    patches = patchify(pixels, patch_size)
    patches = torch.where(mask[..., None] > 0, torch.full_like(patches, 0.75), patches)
    return unpatchify(patches, patch_size, (pixels.shape[-2], pixels.shape[-1]))

"""Coefficients of the uniformity term in one unit, a weight on mean cos^2, side by side."""

import pandas as pd

from lib.losses import cosine_weight, equivalent_coefficients
from lib.presets import Config

RELEASED_LAMBDA = 0.01  # the default of the authors' code
PAPER_LAMBDA = 0.001  # Section 5.1; for Eq. 9 as printed
WIDTHS = {192: "ViT-Tiny", 768: "ViT-Base", 1024: "ViT-Large"}
DEVICES = (1, 8, 16)


def coefficient_table(config: Config) -> pd.DataFrame:
    """This run, the authors' release on some numbers of devices, and the printed Eq. 9.

    A row each: its weight on mean cos^2, and the `lam` of the spectral form that has the same
    weight at the width of this run and at the paper's widths ("-": not comparable).
    """
    weight = cosine_weight(config.lam, config.uniformity, config.embed_dim)
    rows = {f"this run: {config.uniformity}, lam {config.lam:g}": weight}
    for devices in DEVICES:
        name = f"authors' code: lambda {RELEASED_LAMBDA:g}, {devices} device(s)"
        rows[name] = RELEASED_LAMBDA / devices
    rows[f"Eq. 9 as printed: {PAPER_LAMBDA:g} on squared distances"] = None
    widths = {config.embed_dim: "this run"} | WIDTHS
    table = {name: _row(weight, list(widths)) for name, weight in rows.items()}
    heads = ["weight on mean cos^2"]
    heads += [f"spectral lam, D={width}" for width in widths]
    return pd.DataFrame.from_dict(table, orient="index", columns=heads)


def _row(weight: float | None, widths: list[int]) -> list[str]:
    if weight is None:
        return ["-"] * (1 + len(widths))
    same = [equivalent_coefficients(weight, width)["spectral"] for width in widths]
    return [f"{value:.2g}" for value in (weight, *same)]

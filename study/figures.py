"""The study's figures in outputs/reference/study: seeds as dots, with 95 % intervals."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from lib.notebook import plots
from lib.notebook.statistics import OPEN, verdict
from study.coefficients import RELEASED, curves
from study.plan import OBJECTIVES, PRESETS, SHORT
from study.tables import SUMMARY, Record, gains


def draw_gains(records: Sequence[Record], folder: Path) -> list[str]:
    """One PNG a data set and variant; a gain that cannot be told from none is faded.

    Returns the names of the files that were written.
    """
    plots.style()
    rows, written = gains(records), []
    for data in PRESETS:
        for variant in list(OBJECTIVES)[1:]:
            own = [r for r in rows if (r["data"], r["objective"]) == (data, variant)]
            if not own:
                continue
            values = {(r["protocol"], r["feature"]): r["differences"] for r in own}
            told = {key: verdict(differences) != OPEN for key, differences in values.items()}
            figure = plots.draw_gains(values, told)
            n = max(map(len, values.values()))
            pairs = f"{n} pair" if n == 1 else f"{n} pairs"
            figure.axes[0].set_title(
                f"{variant}, {data}, 40 epochs, {pairs}\n"
                "bars: 95 % intervals; faded: the interval holds 0, or fewer than 3 pairs"
            )
            name = f"gains_{data}_{variant.replace(', ', '_').replace(' ', '_')}.png"
            figure.savefig(folder / name, bbox_inches="tight")
            plt.close(figure)
            written.append(name)
    return written


def draw_coefficients(records: Sequence[Record], folder: Path) -> list[str]:
    """One PNG a data set: class-token accuracy against the weight on mean cos^2, by probe.

    Returns the names of the files that were written.
    """
    plots.style()
    written = []
    for data in PRESETS:
        found = {p: curves(records, data, p) for p in SUMMARY.values()}
        if not any(found.values()):
            continue
        figure, ax = plt.subplots(figsize=(8, 3.8))
        for reading, protocol in SUMMARY.items():
            look = plots.PROTOCOL_COLOURS[protocol], plots.PROTOCOL_MARKERS[protocol]
            for form, own in found[protocol].items():
                label = f"{reading}, {form}"
                line, filled = ("-", True) if form == "spectral" else (":", False)
                plots.draw_seeds(ax, list(own), list(own.values()), *look, label, line, filled)
        ax.axvline(RELEASED, color=plots.COLOURS["paper"], lw=1, ls="-.", label="authors' code")
        ax.set_xscale("symlog", linthresh=1e-3, linscale=0.5)
        ax.set_xlim(-2e-4, 20)
        ax.set(xlabel="weight on mean cos² (0: MAE)", ylabel="test accuracy (%)")
        ax.set_title(f"The coefficient, {data}, {SHORT} epochs, class token; bars: 95 % intervals")
        figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", fontsize=8)
        name = f"coefficients_{data}.png"
        figure.savefig(folder / name, bbox_inches="tight")
        plt.close(figure)
        written.append(name)
    return written

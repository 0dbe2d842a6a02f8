"""The study's figures in outputs/reference/study: gains by protocol, seeds as dots."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from lib.notebook import plots
from lib.notebook.statistics import OPEN, verdict
from study.plan import OBJECTIVES, PRESETS
from study.tables import Record, gains


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
            pairs = max(map(len, values.values()))
            figure.axes[0].set_title(
                f"{variant}, {data}, 40 epochs, {pairs} pairs\n"
                "bars: 95 % intervals; faded: the interval holds 0, or fewer than 3 pairs"
            )
            name = f"gains_{data}_{variant.replace(', ', '_').replace(' ', '_')}.png"
            figure.savefig(folder / name, bbox_inches="tight")
            plt.close(figure)
            written.append(name)
    return written

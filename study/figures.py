"""The study's figures in outputs/reference/study: seeds as dots, with 95 % intervals."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from lib.notebook import plots
from study.coefficients import RELEASED, curves
from study.explanation import budget_gains
from study.plan import OBJECTIVES, PRESETS, SCRATCH, SHORT, TUNING_EPOCHS
from study.tables import (
    FEATURES,
    PROTOCOLS,
    SUMMARY,
    Record,
    along_pair,
    finetuned,
    gains,
    mask_ratio_curves,
    of_part,
)
from study.variant_gains import variant_claims

Named = Iterator[tuple[str, Figure]]  # the file's name without its ending, and the figure
PAIR = ("MAE", "U-MAE")
REPRODUCED_ON = 16  # GPUs of U-MAE's issue 11, among which the authors' code divides the gradient


def draw(records: Sequence[Record], folder: Path) -> list[str]:
    """Every figure that the records can fill, as a PNG; returns the names of the files."""
    plots.style()
    written = []
    for make in FIGURES:
        written += [_save(folder, *named) for named in make(records)]
    return written


def _save(folder: Path, name: str, figure: Figure) -> str:
    figure.savefig(folder / f"{name}.png", bbox_inches="tight")
    plt.close(figure)
    return f"{name}.png"


def gain_figures(records: Sequence[Record]) -> Named:
    """One a data set and variant: the gain by protocol; faded where its interval contains 0."""
    rows = gains(records)
    for data in PRESETS:
        for variant in list(OBJECTIVES)[1:]:
            own = [r for r in rows if (r["data"], r["objective"]) == (data, variant)]
            if not own:
                continue
            values = {(r["protocol"], r["feature"]): r["differences"] for r in own}
            figure = plots.draw_gains(values)
            n = max(map(len, values.values()))
            pairs = f"{n} pair" if n == 1 else f"{n} pairs"
            title = f"{variant}, {data}, 40 epochs, {pairs}"
            figure.axes[0].set_title(f"{title}\n{plots.explained(n)}")
            yield f"gains_{data}_{variant.replace(', ', '_').replace(' ', '_')}", figure


def budget_figures(records: Sequence[Record]) -> Named:
    """The gain of the plain probe against how much it learns: rate times epochs."""
    looks = {"raw": ("sgd", -1), "standardised": ("mae", 1)}
    for data in PRESETS:
        found = budget_gains(records, data)
        if not found:
            continue
        figure, ax = plt.subplots(figsize=(8, 3.6))
        for prepare, (protocol, side) in looks.items():
            own = {
                lr * epochs * (1.05 if lr > 0.05 else 0.95) * (1 + 0.02 * side): gain
                for (p, lr, epochs), gain in found.items()
                if p == prepare
            }
            gains_of = list(own.values())
            look = plots.PROTOCOL_COLOURS[protocol], plots.PROTOCOL_MARKERS[protocol]
            label = f"{prepare} features"
            plots.draw_seeds(ax, list(own), gains_of, *look, label, judged=gains_of)
        ax.axhline(0, color="0.3", lw=1)
        ax.set(xscale="log", xlabel="learning rate × epochs of the plain probe")
        ax.set_ylabel("U-MAE minus MAE (points)")
        ax.set_title(
            f"The longer the plain probe, the smaller the gain? {data}, class token\n"
            + plots.explained(max(map(len, found.values())))
        )
        ax.legend()
        yield f"budget_{data}", figure


def coefficient_figures(records: Sequence[Record]) -> Named:
    """Class-token accuracy against the weight on mean cos^2, by probe."""
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
        for weight, style, label in (
            (RELEASED, "-.", "authors' code, 1 GPU"),
            (RELEASED / REPRODUCED_ON, ":", f"the same on {REPRODUCED_ON} GPUs"),
        ):
            ax.axvline(weight, color=plots.COLOURS["paper"], lw=1, ls=style, label=label)
        ax.set_xscale("symlog", linthresh=1e-3, linscale=0.5)
        ax.set_xlim(-2e-4, 20)
        ax.set(xlabel="weight on mean cos² (0: MAE)", ylabel="test accuracy (%)")
        ax.set_title(f"The coefficient, {data}, {SHORT} epochs, class token; bars: 95 % intervals")
        figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", fontsize=8)
        yield f"coefficients_{data}", figure


def variant_figures(records: Sequence[Record]) -> Named:
    """The gain over MAE of every other term, a dodged mark a protocol; mean token."""
    claims = variant_claims(records)
    for data in PRESETS:
        own = [c for c in claims if c["data"] == data]
        if not own:
            continue
        figure, ax = plt.subplots(figsize=(8, 3.6))
        for k, protocol in enumerate(PROTOCOLS):
            found = {
                f"{c['variant']}\nlam {c['lam']:g}": c["differences"]
                for c in own
                if c["protocol"] == protocol
            }
            places = [at + 0.15 * (k - 2) for at in range(len(found))]
            gains_of = list(found.values())
            look = plots.PROTOCOL_COLOURS[protocol], plots.PROTOCOL_MARKERS[protocol]
            label = plots.PROTOCOL_NAMES[protocol].replace("\n", " ")
            plots.draw_seeds(ax, places, gains_of, *look, label, " ", False, judged=gains_of)
        ax.axhline(0, color="0.3", lw=1)
        ax.set_xticks(range(len(found)), list(found))
        ax.set_ylabel("variant minus MAE (points)")
        ax.set_title(
            f"Other uniformity terms, {data}, {SHORT} epochs, mean token\n"
            + plots.explained(max(len(c["differences"]) for c in own))
        )
        figure.legend(*ax.get_legend_handles_labels(), loc="outside right center", fontsize=8)
        yield f"variants_{data}", figure


def ratio_figures(records: Sequence[Record]) -> Named:
    """Accuracy of both objectives against the mask ratio: a row a feature, a panel a probe."""
    for data in PRESETS:
        if of_part(records, "mask ratio", data):
            rows = {
                label: [
                    _of_common_seeds(mask_ratio_curves(records, data, protocol, feature))
                    for protocol in SUMMARY.values()
                ]
                for feature, label in FEATURES.items()
            }
            title = f"{data}, {SHORT} epochs; bars: 95 % intervals"
            yield f"mask_ratios_{data}", _panels(rows, "mask ratio", title)


def _of_common_seeds(found: dict[str, dict[float, dict[int, float]]]) -> "Curves":
    """At every ratio the seeds that both objectives have, as in the table."""
    base, other = (found.get(name, {}) for name in PAIR)
    common = {x: base[x].keys() & other[x].keys() for x in base.keys() & other.keys()}
    return {
        name: {x: [own[x][s] for s in sorted(seeds)] for x, seeds in sorted(common.items())}
        for name, own in zip(PAIR, (base, other), strict=True)
    }


def finetuning_figures(records: Sequence[Record]) -> Named:
    """Finetuned accuracy, and the batch-normed probe of the same encoders."""
    for data in PRESETS:
        found = finetuned(records, data)
        if not found:
            continue
        figure, ax = plt.subplots(figsize=(6, 3.6))
        for at, (start, (tuned, probed)) in enumerate(found.items()):
            name = "scratch" if start == SCRATCH else start
            look = plots.COLOURS[name], plots.MARKERS[name]
            plots.draw_seeds(ax, [at], [tuned], *look)
            if probed:
                plots.draw_seeds(ax, [at], [probed], *look, filled=False)
        for label, face in (("finetuned", "0.3"), ("batch-normed probe, mean token", "white")):
            ax.plot([], [], "o", ms=6, mfc=face, mec="0.3", label=label)
        ax.set_xticks(range(len(found)), list(found))
        ax.set_xlim(-0.5, len(found) - 0.5)
        ax.set_ylabel("test accuracy (%)")
        n = max(len(tuned) for tuned, _ in found.values())
        seeds = "1 seed" if n == 1 else f"{n} seeds; bars: 95 % intervals"
        ax.set_title(f"Finetuning, {data}, {TUNING_EPOCHS} epochs, all labels, {seeds}")
        ax.legend()
        yield f"finetuning_{data}", figure


def along_figures(records: Sequence[Record]) -> Named:
    """The long pair: accuracy along training, a row a feature, a panel a probe; one seed."""
    for data in PRESETS:
        rows = {}
        for feature, label in FEATURES.items():
            found = [along_pair(records, data, p, feature) for p in SUMMARY.values()]
            rows[label] = [
                {o: {epoch: [pair[k]] for epoch, pair in each.items()} for k, o in enumerate(PAIR)}
                for each in found
            ]
        if any(found):
            title = f"{data}, one pair of 200 epochs"
            yield f"along_{data}", _panels(rows, "epoch of pretraining", title)


Curves = dict[str, dict[float, list[float]]]  # {objective: {x: accuracies over seeds}}


def _panels(rows: dict[str, Sequence[Curves]], xlabel: str, title: str) -> Figure:
    """A row a feature, a panel a probe of SUMMARY, a line an objective; one scale for all."""
    shape = len(rows), len(SUMMARY)
    figure, axes = plt.subplots(*shape, figsize=(10, 6), sharex=True, sharey=True)
    for line, (label, found) in zip(axes, rows.items(), strict=True):
        for ax, reading, own in zip(line, SUMMARY, found, strict=True):
            for objective, points in own.items():
                look = plots.COLOURS[objective], plots.MARKERS[objective]
                plots.draw_seeds(ax, list(points), list(points.values()), *look, objective)
            ax.set_title(f"{reading}, {label}")
        line[0].set_ylabel("test accuracy (%)")
    for ax in axes[-1]:
        ax.set_xlabel(xlabel)
    axes[0, 0].legend()
    figure.suptitle(title)
    return figure


FIGURES = (
    gain_figures,
    budget_figures,
    coefficient_figures,
    variant_figures,
    ratio_figures,
    finetuning_figures,
    along_figures,
)

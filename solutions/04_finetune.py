"""Exercises of notebooks/04_finetune.ipynb."""

from typing import Any

from lib.evaluate.many import finetune_all
from lib.evaluate.recipes import recipe_for
from solutions.runs import pair


def _tuned(
    epochs: int | None, fraction: float, starts: dict[str, dict[str, Any]]
) -> dict[str, float]:
    """Test accuracy by name: each start is "MAE" or "scratch" with changes of the recipe."""
    runs, data = pair(epochs=epochs)
    config = runs["MAE"].config
    wanted = [
        (config, recipe_for(config.preset, **changes), fraction, 0, name.startswith("scratch"))
        for name, changes in starts.items()
    ]
    found = finetune_all(wanted, data, jobs=1)
    return {name: round(r["best"], 1) for name, r in zip(starts, found, strict=True)}


def exercise_1(
    epochs: int | None = None, budget: int = 20, fractions: tuple[float, ...] = (0.1, 1.0)
) -> dict[str, Any]:
    """Set `layer_decay` to 1. Which rows lose more, the pretrained ones or those with few labels?

    Answer: on digits no row loses, with one seed: MAE gains about 2 points at both shares of the
    labels. A `layer_decay` below 1 gives the first blocks a smaller rate, so that what they learnt
    in pretraining stays. This small network learnt little that must be kept, and profits from
    moving all its weights. The rows from scratch do not change: random weights are always trained
    with one rate.
    """
    found = {}
    for fraction in fractions:
        for start in ("MAE", "scratch"):
            starts = {f"{start}, {d}": {"epochs": budget, "layer_decay": d} for d in (0.75, 1.0)}
            found[f"{start}, {fraction:.0%} of the labels"] = _tuned(epochs, fraction, starts)
    return found


def exercise_2(epochs: int | None = None, budget: int = 10) -> dict[str, Any]:
    """Give scratch a longer `finetune_epochs` until it meets MAE. How many epochs is that worth?

    Answer: the first budget of scratch below that is not under MAE's accuracy. On digits that is 20
    epochs against 10, with one seed: pretraining was worth about 10 labelled epochs. Count fairly:
    MAE also had its 60 pretraining epochs, but on images without labels. Pretraining saves labels,
    not time.
    """
    starts = {f"MAE, {budget} epochs": {"epochs": budget}}
    starts |= {f"scratch, {k * budget} epochs": {"epochs": k * budget} for k in (1, 2, 4)}
    found = _tuned(epochs, 1.0, starts)
    first, *longer = found.items()
    return {**found, "meets MAE": next((name for name, a in longer if a >= first[1]), "not yet")}


def exercise_3(epochs: int | None = None, budgets: tuple[int, ...] = (10, 40)) -> dict[str, Any]:
    """Set `mixup` to 0.8. When does regularisation begin to help?

    Answer: when training is long enough to overfit. In a short finetuning the mixed images are only
    a harder task, and the accuracy falls. On digits it still falls at 40 epochs (one seed): that is
    not long enough. Raise the budgets until the second row turns.
    """
    return {
        f"{budget} epochs": _tuned(
            epochs, 1.0, {f"MAE, mixup {m}": {"epochs": budget, "mixup": m} for m in (0.0, 0.8)}
        )
        for budget in budgets
    }

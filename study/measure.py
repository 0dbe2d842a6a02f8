"""What the study measures of one trained run, as a JSON record that carries its origin."""

from typing import Any

from lib.data import Dataset
from lib.errors import InputError
from lib.evaluate import PROTOCOLS, Features, evaluate, features
from lib.evaluate.finetuning import finetune
from lib.evaluate.recipes import recipe_for
from lib.evaluate.representation import condition_number, participation_ratio
from lib.losses import cosine_weight, effective_rank, spectrum
from lib.presets import POOLS
from lib.runs import Run
from lib.runs.provenance import commit, provenance
from study.checks import baselines, budgets, checks, sizes
from study.plan import SCRATCH, TUNING_EPOCHS, Planned


def measure(planned: Planned, run: Run, data: Dataset) -> dict[str, Any]:
    """What the part of the plan asks for, of one run."""
    record = {**origin(planned, run, data), "measured_commit": commit()}
    if planned.part == "finetuning":
        return {**record, "finetuned": finetuned(planned, run, data)}
    return {**record, **frozen(planned, run, data)}


def is_complete(record: dict[str, Any]) -> bool:
    """Whether a record holds all that `measure` puts into one today."""
    return all("scaled" in found for found in record.get("checks", {}).values())


def complete(record: dict[str, Any], run: Run, data: Dataset) -> dict[str, Any]:
    """The record with what an earlier version of the study did not measure."""
    own = features(run, data)
    added = {f: sizes(Features({f: x}, own.y), f) for f, x in own.x.items()}
    checked = {f: found | added[f] for f, found in record["checks"].items()}
    return {**record, "checks": checked, "completed_commit": commit()}


def origin(planned: Planned, run: Run, data: Dataset) -> dict[str, Any]:
    """Which run it is, and where it was trained; random weights: where they are finetuned."""
    config, variant = run.config, planned.part == "variants"
    weight = cosine_weight(config.lam, config.uniformity, config.embed_dim)
    return {
        "part": planned.part,
        "data": planned.data,
        "objective": planned.objective,
        "seed": planned.seed,
        "fields": planned.fields,
        "cosine_weight": None if variant else weight,  # another term has none
        "run": run.folder.name,
        "images": {"train": len(data.train), "test": len(data.test)},
        "origin": provenance() if planned.objective == SCRATCH else run.origin(),
    }


def frozen(planned: Planned, run: Run, data: Dataset) -> dict[str, Any]:
    """Accuracy under every protocol for both features, and the spectra of the features."""
    record: dict[str, Any] = {
        "accuracy": accuracies(run, data),
        "representation": representation(run, data),
        "training": {k: v for k, v in (run.result or {}).items() if k.startswith("test_")},
    }
    if planned.part == "objectives":
        record["budget"] = budgets(run, data)
        record["checks"] = checks(run, data)
        if planned.objective == "MAE":
            record["baselines"] = baselines(run.config, data)
    if planned.part == "long":
        record["along"] = along_training(run, data)
    return record


def finetuned(planned: Planned, run: Run, data: Dataset) -> dict[str, Any]:
    """All labels, the preset's recipe with a longer budget; the epoch chosen on validation."""
    recipe = recipe_for(planned.preset, epochs=TUNING_EPOCHS)
    scratch = planned.objective == SCRATCH
    found = finetune(run.config, recipe, 1.0, planned.seed, scratch, data)
    return {k: found[k] for k in ("best", "last", "best_epoch", "best_validation", "seconds")}


def accuracies(run: Run, data: Dataset, epoch: int | None = None) -> dict[str, Any]:
    """{protocol: {feature: {"validation": .., "test": ..}}} in percent."""
    found: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        found[protocol] = {}
        for feature in POOLS:
            try:
                found[protocol][feature] = evaluate(run, protocol, feature, epoch, data=data)
            except InputError:  # the online layer is not kept at every snapshot
                if epoch is None or protocol != "online":
                    raise
    return found


def representation(run: Run, data: Dataset, epoch: int | None = None) -> dict[str, Any]:
    """Of the whole test images: spectrum of the covariance, its condition number, ranks."""
    found = {}
    for feature, x in features(run, data, epoch).x.items():
        test = x["test"]
        found[feature] = {
            "eigenvalues": spectrum(test).tolist(),
            "condition_number": condition_number(test),
            "effective_rank": effective_rank(test),
            "participation_ratio": participation_ratio(test),
        }
    return found


def along_training(run: Run, data: Dataset) -> list[dict[str, Any]]:
    """The same measurements at every snapshot of the run."""
    return [
        {
            "epoch": epoch,
            "accuracy": accuracies(run, data, epoch),
            "representation": representation(run, data, epoch),
        }
        for epoch in run.snapshot_epochs()
        if epoch
    ]

"""The accuracy of runs under the linear protocols, measured once and kept in their folders."""

from dataclasses import asdict
from typing import Any

from lib.data import Dataset, load
from lib.errors import InputError, check_choice
from lib.evaluate.features import SPLITS, VERSION, features
from lib.evaluate.probes import PROTOCOLS, Probe, linear_accuracy
from lib.presets import POOLS
from lib.runs.cache import cached
from lib.runs.folder import Run
from lib.runs.provenance import provenance

PROBES_VERSION = 1  # of lib.evaluate.probes: raise it when the same inputs give other numbers


def settings_of(protocol: str | Probe, pool: str, epoch: int | None, seed: int) -> dict[str, Any]:
    """What a person asks for, as the kept file names it; a protocol with all its numbers.

    Raises InputError for an unknown protocol.
    """
    if isinstance(protocol, str):
        check_choice("protocol", protocol, list(PROTOCOLS))
    probe = PROTOCOLS[protocol] if isinstance(protocol, str) else protocol
    return {
        "protocol": protocol if isinstance(protocol, str) else "probe",
        "probe": asdict(probe) if probe else None,
        "pool": pool,
        "epoch": epoch,
        "seed": seed,
    }


def content_of(run: Run, epoch: int | None = None) -> dict[str, Any]:
    """What an accuracy of this run was measured on: its weights, its images, and by which code."""
    return {
        "weights": run.weights_digest(epoch),
        "images": run.fingerprint,
        "features_version": VERSION,
        "probes_version": PROBES_VERSION,
    }


def evaluate(
    run: Run,
    protocol: str | Probe,
    pool: str = "token",
    epoch: int | None = None,
    seed: int = 0,
    data: Dataset | None = None,
) -> dict[str, Any]:
    """Accuracy in percent of a finished run under a protocol: {"validation": .., "test": ..}.

    `protocol` is a name in PROTOCOLS or a Probe; `epoch` chooses a snapshot. The rest of the
    result is that of `lib.evaluate.probes.linear_accuracy`. It is measured once and kept.
    Raises InputError for an unknown protocol or pool, for images that are not the run's, and for
    "online" at an epoch where it was not measured.
    """
    settings = settings_of(protocol, pool, epoch, seed)
    check_choice("pool", pool, POOLS)
    if protocol == "online":
        return _online(run, pool, epoch)
    images = data or load(**run.config.data_fields)
    run.check_data(images.fingerprint)

    def measured() -> dict[str, Any]:
        found = linear_accuracy(features(run, images, epoch), protocol, pool, seed)
        return {**found, **provenance()}

    name = f"{protocol} of {run.folder.name}"
    kept = cached(run.folder / "probes", name, settings, content_of(run, epoch), measured)
    return {k: kept[k] for k in MEASURED if k in kept}


MEASURED = (*SPLITS[1:], "converged", "iterations", "k")


def _online(run: Run, pool: str, epoch: int | None) -> dict[str, float]:
    """What the layers that were trained along with the encoder name right."""
    source: dict[str, Any] | None = run.result
    if epoch is not None:
        source = next((m for m in run.metrics() if m["epoch"] == epoch), None)
    if source is None:
        raise InputError(
            f"run {run.folder.name} has no online accuracy at epoch {epoch}; it was not measured "
            "there"
        )
    if run.imported_from:
        raise InputError(
            f"run {run.folder.name} was {run.imported_from}: no layer was trained along with it; "
            "choose another protocol than online"
        )
    names = {s: f"{s}_online_{pool}_full" for s in SPLITS[1:]}
    return {s: source[name] for s, name in names.items() if name in source}

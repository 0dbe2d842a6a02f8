"""Encoders that learned nothing: raw pixels, and the encoder of a preset before its training.

The third baseline, the same network trained from scratch with labels, is `finetune(scratch=True)`.
"""

from typing import Any

import torch
from torch import Tensor

from lib.data import Dataset, load
from lib.errors import check_choice
from lib.evaluate.accuracy import MEASURED, PROBES_VERSION, settings_of
from lib.evaluate.features import VERSION, Encoder, Features, encode, kept_features, mae_encoder
from lib.evaluate.probes import FROZEN, Probe, linear_accuracy
from lib.models import MAE, model_args
from lib.presets import POOLS, Config
from lib.runs.cache import cached
from lib.runs.folder import outputs
from lib.runs.provenance import provenance

BASELINES = {"pixels": ("pixels",), "untrained": POOLS}  # and the names of their features


def baseline_features(baseline: str, config: Config, data: Dataset) -> Features:
    """The features of a baseline; those of "untrained" are kept in outputs/baselines.

    "pixels": "pixels" (N, C*H*W), normalised as the encoder of `config` sees them.
    "untrained": "token" and "avg" (N, D) of the weights with which `config` starts its training.
    Raises InputError for another name.
    """
    check_choice("baseline", baseline, list(BASELINES))

    def compute() -> Features:
        return encode(_encoder(baseline, config, data), data, workers=config.workers)

    if baseline == "pixels":  # larger on disk than the images, and as fast from them
        return compute()
    folder = outputs() / "baselines" / config.preset
    settings, content = _settings(baseline, config), {"images": data.fingerprint}
    return kept_features(folder, f"features of {baseline}", settings, content, compute)


def _settings(baseline: str, config: Config) -> dict[str, Any]:
    own = {"baseline": baseline, "normalize": config.normalize}
    if baseline == "pixels":
        return own | {"image_size": config.image_size}
    return own | {"seed": config.seed, **model_args(config)}


def _encoder(baseline: str, config: Config, data: Dataset) -> Encoder:
    normalization = data.normalization(config.normalize)
    if baseline == "untrained":
        return mae_encoder(untrained(config), config, normalization)

    def pixels(images: Tensor) -> dict[str, Tensor]:
        return {"pixels": normalization(images).flatten(1)}

    return pixels


def untrained(config: Config) -> MAE:
    """The weights of a run of `config` before its first step; they depend on its seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MAE(config).eval()


def evaluate_baseline(
    baseline: str,
    config: Config,
    protocol: str | Probe,
    feature: str | None = None,
    seed: int = 0,
    data: Dataset | None = None,
) -> dict[str, Any]:
    """Accuracy in percent of a baseline under a protocol or a Probe, measured once and kept.

    The result is that of `lib.evaluate.evaluate`. `feature`: a name that the baseline has, by
    default its first. `seed` is that of the probe. Raises InputError for what does not exist.
    """
    check_choice("baseline", baseline, list(BASELINES))
    feature = feature or BASELINES[baseline][0]
    check_choice("feature", feature, BASELINES[baseline])
    if isinstance(protocol, str):
        check_choice("protocol", protocol, FROZEN)
    images = data or load(**config.data_fields)

    def measured() -> dict[str, Any]:
        features = baseline_features(baseline, config, images)
        return {**linear_accuracy(features, protocol, feature, seed), **provenance()}

    of_probe = settings_of(protocol, feature, None, seed)
    settings = {"of": _settings(baseline, config), **of_probe}
    content = {
        "images": images.fingerprint,
        "features_version": VERSION,
        "probes_version": PROBES_VERSION,
    }
    folder, what = outputs() / "baselines" / config.preset, f"{protocol} of {baseline}"
    kept = cached(folder, what, settings, content, measured)
    return {k: kept[k] for k in MEASURED if k in kept}

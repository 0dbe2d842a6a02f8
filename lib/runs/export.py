"""The encoder of a run as a timm model, with its input and a model card."""

from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from lib.data import Dataset
from lib.losses import cosine_weight, equivalent_coefficients
from lib.models import encoder_args
from lib.presets import Config
from lib.runs.files import write_atomic, write_json

OUR_LICENCE = """MIT for the code and these weights, as far as the images allow; the images have a
licence of their own"""


def export_encoder(
    weights: dict[str, Tensor],
    config: Config,
    folder: Path,
    data: Dataset,
    result: dict[str, Any],
) -> None:
    """Writes the encoder of an MAE's weights for timm, and README.md, a card with its `result`.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` gives it back, and
    `timm.data.create_transform(**timm.data.resolve_model_data_config(model))` gives the input that
    it was trained on: bit for bit that of `Dataset.normalization`, from images of `image_size`
    pixels or from the files of a folder. Grey images must have Pillow's mode L.
    """
    own = {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
    state = {k: v.detach().cpu().float().contiguous() for k, v in own.items()}
    write_atomic(folder / "model.safetensors", save(state))
    size = [config.channels, config.image_size, config.image_size]
    normalization = data.normalization(config.normalize)
    pretrained_cfg = {
        "input_size": size,
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "mean": normalization.mean.tolist(),
        "std": normalization.std.tolist(),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    description = {
        "architecture": "vit_base_patch16_224",
        "num_classes": 0,
        "model_args": encoder_args(config),
        "pretrained_cfg": pretrained_cfg,
    }
    write_json(folder / "config.json", description)
    write_atomic(folder / "README.md", model_card(config, data, result).encode())


def coefficient(config: Config) -> str:
    """lam in the units of both forms (see `losses.equivalent_coefficients`), for people."""
    weight = cosine_weight(config.lam, config.uniformity, config.embed_dim)
    if config.lam == 0:
        return "0: MAE, without a uniformity term"
    if weight is None:
        return f"{config.lam:g}, on the {config.uniformity} form"
    units = equivalent_coefficients(weight, config.embed_dim)
    return (
        f"{weight:g} on the mean squared cosine, which is lam = {units['released']:g} of the "
        f"released form and {units['spectral']:g} of the spectral form at width {config.embed_dim}"
    )


def model_card(config: Config, data: Dataset, result: dict[str, Any]) -> str:
    """Markdown: what the encoder is, how it was trained, what it reaches, how it is used."""
    feature = "the class token" if config.pool == "token" else "the mean of the patch tokens"
    if "imported" in result:
        origin, licence = _imported(config, data, result), "that of the file"
    else:
        origin, licence = _trained(config, data, result), OUR_LICENCE
    return f"""# {"U-MAE" if config.lam else "MAE"} encoder, {config.preset}

A vision transformer of width {config.embed_dim} and depth {config.depth} with patches of
{config.patch_size} pixels, pretrained by masked reconstruction (mask ratio {config.mask_ratio:g}).

- Coefficient of the uniformity term, lam: {coefficient(config)}
- The term sees {feature}
{origin}

```python
import timm
encoder = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # FOLDER holds this file
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder))
features = encoder.forward_features(transform(image)[None])  # (1, 1 + patches, {config.embed_dim})
```

Licence: {licence}.
"""


def _images(config: Config, data: Dataset) -> str:
    name = config.data.split(":")[0]
    shape = f"{config.channels} x {config.image_size} x {config.image_size} pixels"
    classes = f"{len(data.class_names)} classes"
    return f"{name}, {len(data.train)} images, {classes}, fingerprint {data.fingerprint}; {shape}"


def _trained(config: Config, data: Dataset, result: dict[str, Any]) -> str:
    """On what and how long a run was trained here, and what its online layer reached."""
    rows = [
        f"| online linear layer, {what}, {view} images | {result[key]:.2f} |"
        for pool, what in (("token", "class token"), ("avg", "mean of the patch tokens"))
        for view in ("full", "masked")
        if (key := f"test_online_{pool}_{view}") in result
    ]
    table = "\n".join(["| protocol | test accuracy in % |", "|---|---|", *rows])
    return f"""- Data: {_images(config, data)}
- Epochs: {config.epochs} of batches of {config.batch_size}, seed {config.seed}

{table}

The online layer is trained along with the encoder on masked images; a linear
probe afterwards gives other numbers (notebooks/03_linear_probe.ipynb)."""


def _imported(config: Config, data: Dataset, result: dict[str, Any]) -> str:
    """Of which file the weights of an imported run are."""
    file = result["imported"]["files"][-1]
    return f"""- Not trained by this code: imported from {file["name"]}
  (SHA-256 {file["sha256"]})
- Imported for the data: {_images(config, data)}
- Epochs, as the file or the person who imported it says: {config.epochs}"""

"""The encoder of a run as a timm model, with the input that it was trained on."""

from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from lib.data import Dataset
from lib.models import encoder_args
from lib.presets import Config
from lib.runs.files import write_atomic, write_json


def export_encoder(weights: dict[str, Tensor], config: Config, folder: Path, data: Dataset) -> None:
    """Writes the encoder of an MAE's weights for timm.

    `timm.create_model("local-dir:FOLDER", pretrained=True)` gives it back, and
    `timm.data.create_transform(**timm.data.resolve_model_data_config(model))` gives its input.
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

"""Run folders: where a run lives, who is working on it, and files that are never seen half-written."""

from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from lib.models import encoder_args
from lib.presets import Config
from lib.runs.files import write_atomic, write_json


def export_encoder(weights: dict[str, Tensor], config: Config, folder: Path) -> None:
    """Writes the encoder of an MAE's weights so that `timm.create_model("local-dir:FOLDER", pretrained=True)` gives it
    back."""
    own = {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
    state = {k: v.detach().cpu().float().contiguous() for k, v in own.items()}
    write_atomic(folder / "model.safetensors", save(state))
    size = [config.channels, config.image_size, config.image_size]
    description = {
        "architecture": "vit_base_patch16_224", "num_classes": 0, "model_args": encoder_args(config),
        "pretrained_cfg": {
            "input_size": size, "num_classes": 0, "first_conv": "patch_embed.proj", "classifier": "head",
        },
    }  # fmt: skip
    write_json(folder / "config.json", description)

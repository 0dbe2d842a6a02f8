"""Models with known random weights, and images that fit them."""

import json
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from lib.models import MAE
from lib.presets import Config


def seeded(config: Config, seed=0, dtype=torch.float32) -> MAE:
    """A model whose every weight is random: biases, norms and the class token too."""
    torch.manual_seed(seed)
    model = MAE(config).to(dtype)
    for p in model.parameters():
        if p.requires_grad:
            p.data.add_(0.05 * torch.randn_like(p))
    return model.eval()


def images_for(config: Config, batch=3, dtype=torch.float32):
    return torch.randn(batch, config.channels, config.image_size, config.image_size, dtype=dtype)


def save_timm(folder: Path, **arguments) -> VisionTransformer:
    """A ViT of timm for 32 pixels, small and random, in a folder that `local-dir:` reads."""
    small = {"img_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0}
    arguments = {**small, **arguments}
    model = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    description = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 0,
        "model_args": {k: v for k, v in arguments.items() if k != "num_classes"},
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "mean": [0.4, 0.5, 0.6],
            "std": [0.5, 0.4, 0.3],
            "interpolation": "bicubic",
            "crop_pct": 0.9,
            "crop_mode": "center",
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(description))
    save_file(model.state_dict(), folder / "model.safetensors")
    return model

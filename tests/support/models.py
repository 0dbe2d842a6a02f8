"""Models with known random weights, and images that fit them."""

import torch

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

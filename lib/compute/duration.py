"""How long work takes on one core, roughly: enough to see whether processes pay for their start.

The constants are of small models on one core of a server; larger work is far from the limit.
"""

from lib.masking import num_visible
from lib.presets import Config

RATE = 5e10  # FLOP/s of matrix products
STEP = 8e-3  # seconds of a training step besides its products


def training_seconds(config: Config, images: int) -> float:
    """Of one run on `images` training images: forward, and backward with twice the products."""
    visible, all_patches = num_visible(config.num_patches, config.mask_ratio), config.num_patches
    flops = _forward(visible, config.embed_dim, config.depth)
    flops += _forward(all_patches, config.decoder_dim, config.decoder_depth)
    seen = config.epochs * images
    return seen * (3 * flops / RATE + STEP / config.batch_size)


def encoding_seconds(config: Config, images: int) -> float:
    """Of the features of `images` whole images."""
    return images * _forward(config.num_patches, config.embed_dim, config.depth) / RATE


def _forward(patches: int, dim: int, depth: int) -> float:
    """FLOP of transformer blocks on the patches of an image and its class token."""
    tokens = patches + 1
    return 2.0 * depth * tokens * (12 * dim**2 + 2 * tokens * dim)

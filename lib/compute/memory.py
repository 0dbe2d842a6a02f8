"""An upper bound on the memory of a run, from its shapes alone: no model is built."""

from lib.masking import num_visible
from lib.presets import Config


def memory_at_most(config: Config) -> float:
    """Bytes that a run needs at most, without the libraries: see `cost.estimate` for less.

    A block keeps less than 16 numbers of 4 bytes for every value of its tokens, and 3 for every
    weight of its attention.
    """
    c, images = config, config.batch_size // config.accum_steps
    pixels = c.channels * c.image_size**2
    parts = (
        (num_visible(c.num_patches, c.mask_ratio), c.embed_dim, c.depth, c.num_heads),
        (c.num_patches, c.decoder_dim, c.decoder_depth, c.decoder_heads),
    )
    parameters, kept = 0, 6 * pixels
    for patches, dim, depth, heads in parts:
        tokens = patches + 1
        parameters += 13 * (depth + 1) * dim**2 + dim * (pixels + 4 * (c.num_patches + 1))
        kept += depth * tokens * (16 * dim + 3 * heads * tokens) + 8 * tokens * dim
    return 16 * parameters + 4 * images * kept

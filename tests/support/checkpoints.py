"""Files in the layout of the MAE code and of the authors' release, made from known weights."""

import argparse
import copy

import torch
from torch import nn

from lib.models import MAE
from lib.presets import resolve


def config_of(**fields):
    return resolve(
        "cifar10-vit-micro",
        **{"image_size": 16, "embed_dim": 16, "depth": 2, "num_heads": 2, "decoder_dim": 24,
           "decoder_depth": 1, "decoder_heads": 4, **fields},
    )  # fmt: skip


def mae_names(model: MAE) -> dict[str, torch.Tensor]:
    """The tensors of our MAE under the names of the MAE code."""
    return {k.removeprefix("encoder."): v.clone() for k, v in model.state_dict().items()}


def written(path, model, tensors=None, release=True, epoch=199, **more):
    """The file that training code of that layout would have saved for `model`."""
    tensors = mae_names(model) if tensors is None else tensors
    if release:
        width = model.encoder.embed_dim
        for name, module in (("fc", nn.Linear(width, 10)), ("fc_norm", nn.LayerNorm(width))):
            tensors |= {f"{name}.{k}": v for k, v in module.state_dict().items()}
    trained = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    sum(p.sum() for p in trained.parameters() if p.requires_grad).backward()
    optimizer.step()
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5,
              "growth_interval": 2000, "_growth_tracker": 7}  # fmt: skip
    args = argparse.Namespace(
        model="mae_vit_base_patch16", mask_ratio=0.6, norm_pix_loss=True, batch_size=64,
        output_dir="./out", distributed=True, gpu=0, betas=[0.9, 0.95], resume="",
    )  # fmt: skip
    saved = {"model": tensors, "optimizer": optimizer.state_dict(), "epoch": epoch,
             "scaler": scaler, "args": args, **more}  # fmt: skip
    torch.save(saved, path)
    return path


def their_forward(tensors, images, masks, heads, decoder_heads, patch):
    """MAE's forward pass as its paper describes it, from a file's tensors: a slow reference.

    The patches are embedded by the convolution, the decoder sees all tokens in image order.
    """
    f = torch.nn.functional

    def linear(x, name):
        return f.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def norm(x, name):
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        return f.layer_norm(x, (x.shape[-1],), weight, bias, eps=1e-6)

    def block(x, name, count):
        q, k, v = linear(norm(x, f"{name}.norm1"), f"{name}.attn.qkv").chunk(3, -1)
        split = [t.unflatten(-1, (count, -1)).transpose(1, 2) for t in (q, k, v)]
        scores = split[0] @ split[1].transpose(-1, -2) / split[0].shape[-1] ** 0.5
        mixed = (scores.softmax(-1) @ split[2]).transpose(1, 2).flatten(2)
        x = x + linear(mixed, f"{name}.attn.proj")
        hidden = f.gelu(linear(norm(x, f"{name}.norm2"), f"{name}.mlp.fc1"))
        return x + linear(hidden, f"{name}.mlp.fc2")

    weight, bias = tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"]
    tokens = f.conv2d(images, weight, bias, stride=patch).flatten(2).transpose(1, 2)
    tokens = tokens + tensors["pos_embed"][:, 1:]
    visible = torch.stack([t[i] for t, i in zip(tokens, masks.ids_keep, strict=True)])
    cls = tensors["cls_token"] + tensors["pos_embed"][:, :1]
    x = torch.cat([cls.expand(len(images), -1, -1), visible], 1)
    for i in range(sum(name.endswith("norm1.weight") for name in tensors if name[0] == "b")):
        x = block(x, f"blocks.{i}", heads)
    latent = norm(x, "norm")
    x = linear(latent, "decoder_embed")
    full = tensors["mask_token"].expand(len(images), tokens.shape[1], -1).clone()
    for row, ids, values in zip(full, masks.ids_keep, x[:, 1:], strict=True):
        row[ids] = values
    x = torch.cat([x[:, :1], full], 1) + tensors["decoder_pos_embed"]
    x = block(x, "decoder_blocks.0", decoder_heads)
    return latent, linear(norm(x, "decoder_norm"), "decoder_pred")[:, 1:]

"""The original network, run straight from a checkpoint's own tensors and names.

It is there to check conversions: diffusers' network must give what this gives. Written after
CompVis latent-diffusion, `ldm/modules/diffusionmodules/model.py` (arXiv:2112.10752).

Legend: B batch, C latent channels, H W pixels, f downscale, D channels of a level.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.conversion.ldm_names import LdmShape
from codec.conversion.ldm_shapes import NORM_GROUPS

Weights = Mapping[str, Tensor]
"""float32 tensors by their original names."""


@torch.no_grad()
def encode_moments(weights: Weights, shape: LdmShape, x: Tensor) -> Tensor:
    """Returns means and log-variances (B, 2 C, H/f, W/f) of images (B, in_channels, H, W)."""
    last = len(shape.widths) - 1
    h = _conv(weights, "encoder.conv_in", x)
    for level in range(last + 1):
        for layer in range(shape.layers):
            h = _block(weights, f"encoder.down.{level}", layer, h)
        if level < last:
            # one more row and column of zeros, at the end alone
            h = F.pad(h, (0, 1, 0, 1))
            name = f"encoder.down.{level}.downsample.conv"
            h = F.conv2d(h, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2)
    h = _middle(weights, "encoder", h)
    h = _conv(weights, "encoder.conv_out", F.silu(_norm(weights, "encoder.norm_out", h)))
    return _conv(weights, "quant_conv", h) if shape.quant_conv else h


@torch.no_grad()
def decode(weights: Weights, shape: LdmShape, z: Tensor) -> Tensor:
    """Returns images (B, out_channels, H, W) of raw latents (B, C, H/f, W/f)."""
    h = _conv(weights, "post_quant_conv", z) if shape.post_quant_conv else z
    h = _middle(weights, "decoder", _conv(weights, "decoder.conv_in", h))
    for level in reversed(range(len(shape.widths))):
        for layer in range(shape.layers + 1):
            h = _block(weights, f"decoder.up.{level}", layer, h)
        if level > 0:
            h = F.interpolate(h, scale_factor=2.0, mode="nearest")
            h = _conv(weights, f"decoder.up.{level}.upsample.conv", h)
    return _conv(weights, "decoder.conv_out", F.silu(_norm(weights, "decoder.norm_out", h)))


def _conv(weights: Weights, name: str, x: Tensor) -> Tensor:
    """A convolution that keeps the size."""
    weight = weights[f"{name}.weight"]
    return F.conv2d(x, weight, weights[f"{name}.bias"], padding=weight.shape[-1] // 2)


def _norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    return F.group_norm(x, NORM_GROUPS, weight, bias, eps=1e-6)


def _block(weights: Weights, level: str, layer: int, x: Tensor) -> Tensor:
    """A residual block, and the attention after it where there is one."""
    h = _resnet(weights, f"{level}.block.{layer}", x)
    attention = f"{level}.attn.{layer}"
    return _attention(weights, attention, h) if f"{attention}.norm.weight" in weights else h


def _middle(weights: Weights, half: str, x: Tensor) -> Tensor:
    h = _resnet(weights, f"{half}.mid.block_1", x)
    if f"{half}.mid.attn_1.norm.weight" in weights:
        h = _attention(weights, f"{half}.mid.attn_1", h)
    return _resnet(weights, f"{half}.mid.block_2", h)


def _resnet(weights: Weights, name: str, x: Tensor) -> Tensor:
    h = _conv(weights, f"{name}.conv1", F.silu(_norm(weights, f"{name}.norm1", x)))
    h = _conv(weights, f"{name}.conv2", F.silu(_norm(weights, f"{name}.norm2", h)))
    shortcut = f"{name}.nin_shortcut"
    return h + (_conv(weights, shortcut, x) if f"{shortcut}.weight" in weights else x)


def _attention(weights: Weights, name: str, x: Tensor) -> Tensor:
    """One head over all places: softmax(q^T k / sqrt(D)) v."""
    normed = _norm(weights, f"{name}.norm", x).flatten(2)  # (B, D, h * w)
    q, k, v = (_matrix(weights, f"{name}.{part}", normed) for part in ("q", "k", "v"))
    scores = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(q.shape[1]), dim=-1)
    attended = v @ scores.transpose(1, 2)
    return x + _matrix(weights, f"{name}.proj_out", attended).reshape(x.shape)


def _matrix(weights: Weights, name: str, x: Tensor) -> Tensor:
    """A 1x1 convolution of (B, D, h * w), stored with or without its two sides of 1."""
    matrix = weights[f"{name}.weight"].flatten(1)
    return matrix @ x + weights[f"{name}.bias"][:, None]

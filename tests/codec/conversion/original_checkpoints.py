"""Original checkpoints of tiny random networks, under the names that CompVis' code gives them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from codec.conversion.ldm_names import LdmShape, is_attention_matrix, name_table
from codec.conversion.ldm_shapes import diffusers_config


def shape(**changes: Any) -> LdmShape:
    """The smallest network of the original's kind: its normalisations have 32 groups."""
    widths = changes.get("widths", (32, 64))
    return LdmShape(
        **{
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "widths": widths,
            "layers": 1,
            "attention": (False,) * len(widths),
            "middle_attention": True,
            "quant_conv": True,
            "post_quant_conv": True,
            **changes,
        }
    )


SHAPES = {
    "sd": shape(),
    "sd3": shape(latent_channels=16, quant_conv=False, post_quant_conv=False),
    "deep": shape(widths=(32, 32, 64, 64), layers=2),
    "attention": shape(attention=(False, True)),
    "plain": shape(middle_attention=False, in_channels=1, out_channels=2, latent_channels=3),
}


def original_tensors(of: LdmShape, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random tensors of a network, attention as 1x1 convolutions."""
    torch.manual_seed(0)
    weights = AutoencoderKL.from_config(diffusers_config(of)).state_dict()
    tensors = {}
    for name, ours in name_table(of).items():
        tensor = weights[ours] + 0.02 * torch.randn(weights[ours].shape)
        if is_attention_matrix(name):
            tensor = tensor[:, :, None, None]
        tensors[name] = tensor.to(dtype).contiguous()
    return tensors


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Writes tensors as their authors do: safetensors, or a pickle with a `state_dict`."""
    if path.suffix == ".safetensors":
        save_file(dict(tensors), path)
    else:
        torch.save({"state_dict": dict(tensors), "epoch": 3, "global_step": 7}, path)
    return path

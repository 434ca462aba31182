"""One small interface to every autoencoder: LatentAutoencoder and the image ones of diffusers.

Legend: C latent channels, h w cells of the latent grid, f downscale. Latents here are raw: as the
network makes them, before any scaling.
"""

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from codec import identity, images
from codec.identity import CONFIG_FILE, ModelError
from codec.tiling import TILE_CELLS, map_tiles

# `_class_name` of config.json -> the module that defines the class. Nothing else is ever loaded.
AUTOENCODERS = {
    "LatentAutoencoder": "codec.autoencoder",
    "AutoencoderKL": "diffusers",
    "AutoencoderTiny": "diffusers",
    "AutoencoderDC": "diffusers",
    "VQModel": "diffusers",
}


def load_autoencoder(directory: Path) -> Any:
    """Loads the autoencoder of a model directory, from safetensors, in float32 on the CPU.

    Raises:
        ModelError: The directory lacks a part, or holds another kind of model or a damaged one.
    """
    class_name = identity.read_json(directory / CONFIG_FILE).get("_class_name")
    if not isinstance(class_name, str) or class_name not in AUTOENCODERS:
        raise ModelError(
            f"found a model of class {class_name!r} in {directory}, expected one of "
            f"{', '.join(AUTOENCODERS)}"
        )
    for path in identity.weight_files(directory):
        identity.stored_tensors(path)  # a damaged file is told apart from a wrong configuration
    model_class = getattr(importlib.import_module(AUTOENCODERS[class_name]), class_name)
    try:
        model, report = model_class.from_pretrained(
            directory,
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,  # the other way needs accelerate, which the base install lacks
            output_loading_info=True,
        )
    except (OSError, RuntimeError, SafetensorError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"found a configuration in {directory} that its weights do not fit ({reason}); "
            "expected both from one save_pretrained"
        ) from error
    if report["missing_keys"] or report["mismatched_keys"]:
        lacking = [*report["missing_keys"], *report["mismatched_keys"]]
        raise ModelError(
            f"found no fitting weights for {lacking[0]} and {len(lacking) - 1} others in "
            f"{directory}, expected them all; save the model again"
        )
    return model


def downscale_factor(model: Any) -> int:
    """Returns f: how many pixels a side one latent cell stands for."""
    config = model.config
    widths = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return 1 << (len(widths) - 1)


def encode_raw(model: Any, x: Tensor) -> Tensor:
    """Encodes to raw latents, deterministically (the posterior's mode where there is one).

    Args:
        model: Any autoencoder of `AUTOENCODERS`.
        x: (N, 3, H, W) in [-1, 1], in the model's dtype; sides multiples of f.

    Returns:
        (N, C, H/f, W/f) in the model's dtype.
    """
    output = model.encode(x)
    if hasattr(output, "latent_dist"):
        latents: Tensor = output.latent_dist.mode()
    else:
        latents = output.latents if hasattr(output, "latents") else output.latent
    return latents


def decode_raw(model: Any, raw_latents: Tensor) -> Tensor:
    """Decodes raw latents (N, C, h, w) to (N, 3, h * f, w * f), about [-1, 1], not clamped."""
    sample: Tensor = model.decode(raw_latents).sample
    return sample


def encode_pixels(model: Any, pixels: images.Pixels) -> NDArray[np.float32]:
    """Encodes one image of any size in bounded memory.

    Args:
        model: Any autoencoder; one without a known receptive field is run on the whole image.
        pixels: uint8 (H, W, 3), sides multiples of f.

    Returns:
        Raw latents, float32 (C, H/f, W/f).
    """
    factor, reference = downscale_factor(model), _reference(model)
    margin, tile = _tile(model, "encoder_margin", max(pixels.shape[:2]) // factor)

    def run(part: Tensor) -> Tensor:
        unit = images.to_unit(rearrange(part, "1 c h w -> h w c").numpy())
        x = torch.from_numpy(unit)[None].to(reference.device, reference.dtype)
        return encode_raw(model, x.contiguous(memory_format=torch.channels_last)).float().cpu()

    # torch warns of arrays that it may not write to, although nothing here writes
    writable = np.require(pixels, requirements="W")
    whole = rearrange(torch.from_numpy(writable), "h w c -> 1 c h w")
    latents = map_tiles(run, whole, in_scale=factor, out_scale=1, margin=margin, tile=tile)
    return latents[0].numpy()


def decode_pixels(model: Any, raw_latents: NDArray[np.float32]) -> images.Pixels:
    """Decodes one image of any size in bounded memory.

    Args:
        model: As for `encode_pixels`.
        raw_latents: float32 (C, h, w).

    Returns:
        uint8 (h * f, w * f, 3).
    """
    factor, reference = downscale_factor(model), _reference(model)
    margin, tile = _tile(model, "decoder_margin", max(raw_latents.shape[1:]))

    def run(part: Tensor) -> Tensor:
        z = part.to(reference.device, reference.dtype)
        sample = decode_raw(model, z.contiguous(memory_format=torch.channels_last))
        pixels = images.from_unit(sample[0].float().cpu().numpy())
        return rearrange(torch.from_numpy(pixels), "h w c -> 1 c h w")

    whole = torch.from_numpy(raw_latents)[None]
    decoded = map_tiles(run, whole, in_scale=1, out_scale=factor, margin=margin, tile=tile)
    return np.ascontiguousarray(rearrange(decoded, "1 c h w -> h w c").numpy())


def _reference(model: nn.Module) -> Tensor:
    """A weight, whose device and dtype the model's inputs must have."""
    return next(model.parameters())


def _tile(model: Any, margin_name: str, cells: int) -> tuple[int, int]:
    """Returns (margin, tile) in cells; without a known margin one tile takes the whole image."""
    margin = getattr(model, margin_name, None)
    return (0, cells) if margin is None else (margin // downscale_factor(model), TILE_CELLS)

"""One small interface to every autoencoder: LatentAutoencoder and the image ones of diffusers.

Legend: C latent channels, h w cells of the latent grid, f downscale. Latents here are raw: as the
network makes them, before any scaling.
"""

import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn

from codec import architectures, identity, images
from codec.architectures import AUTOENCODERS, read_config
from codec.codebooks import find_nearest
from codec.codes import Codes, Indices
from codec.identity import ModelError
from codec.tiling import TILE_CELLS, map_tiles


def load_autoencoder(directory: Path) -> Any:
    """Loads the autoencoder of a model directory, from safetensors, in float32 on the CPU.

    Raises:
        ModelError: The directory lacks a part, or holds another kind of model or a damaged one.
    """
    class_name = str(read_config(directory)["_class_name"])
    for path in identity.weight_files(directory):
        identity.stored_tensors(path)  # a damaged file is told apart from a wrong configuration
    model_class = getattr(importlib.import_module(AUTOENCODERS[class_name]), class_name)
    try:
        with _quiet_about_extras():
            model, report = model_class.from_pretrained(
                directory,
                use_safetensors=True,
                local_files_only=True,
                low_cpu_mem_usage=False,  # else it needs accelerate, which the base install lacks
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


@contextmanager
def _quiet_about_extras() -> Iterator[None]:
    """AutoencoderTiny saves a setting that diffusers then finds superfluous, in several lines."""
    logger = logging.getLogger("diffusers.configuration_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def downscale_factor(model: Any) -> int:
    """Returns f: how many pixels a side one latent cell stands for."""
    return architectures.downscale_factor(model.config)


def encode_raw(model: Any, x: Tensor) -> Tensor:
    """Encodes to raw latents, deterministically (the posterior's mode where there is one).

    Args:
        model: Any autoencoder of `AUTOENCODERS`.
        x: (N, 3, H, W) in [-1, 1], in the model's dtype; sides multiples of f.

    Returns:
        (N, C, H/f, W/f) in the model's dtype.
    """
    return output_latents(model.encode(x))


def output_latents(output: Any) -> Tensor:
    """Returns the latents in what `encode` of any autoencoder gives, as `encode_raw` does."""
    if hasattr(output, "latent_dist"):
        latents: Tensor = output.latent_dist.mode()
    else:
        latents = output.latents if hasattr(output, "latents") else output.latent
    return latents


def decode_raw(model: Any, raw_latents: Tensor) -> Tensor:
    """Decodes raw latents (N, C, h, w) to (N, 3, h * f, w * f), about [-1, 1], not clamped."""
    if "num_vq_embeddings" in model.config:  # VQModel
        return _decode_codes(model, raw_latents)
    sample: Tensor = model.decode(raw_latents).sample
    return sample


def _decode_codes(model: Any, raw_latents: Tensor) -> Tensor:
    """VQModel's `decode`, which takes any latents to their nearest codes, but exact for codes.

    Its own search goes by sums of squares, which take near codes for one another.
    """
    vectors = rearrange(raw_latents, "n c h w -> (n h w) c")
    indices = find_nearest(vectors.float(), model.quantize.embedding.weight.float())
    shape = rearrange(raw_latents, "n c h w -> n h w c").shape
    quantised = model.quantize.get_codebook_entry(indices, shape)
    spatial = quantised if model.config.norm_type == "spatial" else None
    sample: Tensor = model.decoder(model.post_quant_conv(quantised), spatial)
    return sample


def encode_pixels(model: Any, pixels: images.Pixels) -> NDArray[np.float32]:
    """Encodes one image of any size in bounded memory.

    Args:
        model: Any autoencoder; one without a known receptive field is run on the whole image.
        pixels: uint8 (H, W, 3), sides multiples of f.

    Returns:
        Raw latents, float32 (C, H/f, W/f).
    """
    latents = _encode_tiles(model, pixels, lambda x: encode_raw(model, x).float())
    return latents[0].numpy()


def _encode_tiles(model: Any, pixels: images.Pixels, encode: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns on the CPU what `encode` makes of (1, 3, H, W), tile by tile."""
    factor, reference = downscale_factor(model), _reference(model)
    margin, tile = _tile(model, "encoder_margin", max(pixels.shape[:2]) // factor)

    def run(part: Tensor) -> Tensor:
        unit = images.to_unit(rearrange(part, "1 c h w -> h w c").numpy())
        x = torch.from_numpy(unit)[None].to(reference.device, reference.dtype)
        return encode(x.contiguous(memory_format=torch.channels_last)).cpu()

    # torch warns of arrays that it may not write to, although nothing here writes
    writable = np.require(pixels, requirements="W")
    whole = rearrange(torch.from_numpy(writable), "h w c -> 1 c h w")
    return map_tiles(run, whole, in_scale=factor, out_scale=1, margin=margin, tile=tile)


def encode_indices(model: Any, codes: Codes, pixels: images.Pixels) -> Indices:
    """Encodes one image of any size to the indices of codes, in bounded memory.

    Args:
        model: An autoencoder with codebooks.
        codes: `codes_of` it.
        pixels: uint8 (H, W, 3), sides multiples of f and the codes' coarsest stride.

    Returns:
        int32 indices of each codebook, coarse to fine.
    """

    def run(x: Tensor) -> Tensor:
        output = model.encode(x)
        if hasattr(output, "indices"):
            found = output.indices
        else:
            found = codes.search(output.latents.float().cpu())
        # Every codebook at the latents' own grid, as tiles want it: (1, codebooks, h, w).
        return torch.stack(
            [
                grid.repeat_interleave(stride, 1).repeat_interleave(stride, 2)
                for grid, stride in zip(found, codes.strides, strict=True)
            ],
            dim=1,
        )

    whole = _encode_tiles(model, pixels, run)[0].to(torch.int32).numpy()
    return tuple(
        np.ascontiguousarray(grid[::stride, ::stride])
        for grid, stride in zip(whole, codes.strides, strict=True)
    )


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

"""The autoencoders that this package takes, and what their config.json says. No torch here."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codec.identity import CONFIG_FILE, ModelError, has_weights, read_json

# `_class_name` of config.json -> the module that defines the class. Nothing else is ever loaded.
AUTOENCODERS = {
    "LatentAutoencoder": "codec.autoencoder",
    "AutoencoderKL": "diffusers",
    "AutoencoderTiny": "diffusers",
    "AutoencoderDC": "diffusers",
    "VQModel": "diffusers",
}


def read_config(directory: Path) -> dict[str, object]:
    """Returns config.json of an autoencoder's directory.

    Raises:
        ModelError: There is none, or it is that of another kind of model.
    """
    config = read_json(directory / CONFIG_FILE)
    class_name = config.get("_class_name")
    if not isinstance(class_name, str) or class_name not in AUTOENCODERS:
        raise ModelError(
            f"found a model of class {class_name!r} in {directory}, expected one of "
            f"{', '.join(AUTOENCODERS)}"
        )
    return config


def is_autoencoder(directory: Path) -> bool:
    """Whether a directory holds an autoencoder, as far as its files' names and class tell.

    Raises:
        ModelError: Its config.json is damaged.
    """
    if not (directory / CONFIG_FILE).is_file() or not has_weights(directory):
        return False
    return read_json(directory / CONFIG_FILE).get("_class_name") in AUTOENCODERS


def downscale_factor(config: Mapping[str, Any]) -> int:
    """Returns f: how many pixels a side one latent cell stands for."""
    widths = config.get("block_out_channels") or config["encoder_block_out_channels"]
    return 1 << (len(widths) - 1)


def latent_channels(config: Mapping[str, Any]) -> int:
    """Returns C; VQModel's codes may have other channels than its networks."""
    channels: int = config.get("vq_embed_dim") or config["latent_channels"]
    return channels


def codebook_sizes(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the number of codes of each codebook, coarse to fine; none for continuous latents."""
    if "num_vq_embeddings" in config:  # VQModel
        return (config["num_vq_embeddings"],)
    match config.get("bottleneck", "gaussian"):
        case "vq":
            return (config["codebook_size"],)
        case "vq2":
            return (config["codebook_size"],) * 2
        case "fsq":
            return (math.prod(config["fsq_levels"]),)
    return ()

"""The network that a configuration asks for."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from torch import nn

from codec.autoencoder import LatentAutoencoder
from codec.backbone import load_autoencoder
from codec.catalog import model_directory
from codec.errors import LatentCodecError
from train.samples.pool import open_sources
from train.sections import ModelConfig, TrainConfig


class BuildError(LatentCodecError):
    """The network that a configuration asks for cannot be made or trained as asked."""


def build_model(config: TrainConfig) -> nn.Module:
    """A new network, or the weights that `model.init_from` names; float32 on the CPU."""
    settings = config.model
    if settings.init_from is not None:
        model = load_autoencoder(model_directory(settings.init_from))
    elif settings.architecture == "autoencoder_kl":
        model = stable_diffusion_autoencoder(settings)
    else:
        keys = ("architecture", "init_from", "freeze_encoder")
        arguments = {k: v for k, v in settings.model_dump().items() if k not in keys}
        model = LatentAutoencoder(**arguments)
    if settings.freeze_encoder:
        _freeze_encoder(model)
    if config.run.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return cast(nn.Module, model.train())


def stable_diffusion_autoencoder(settings: ModelConfig) -> AutoencoderKL:
    """Diffusers' AutoencoderKL in the shape of Stable Diffusion's (arXiv:2112.10752).

    Raises:
        BuildError: the levels do not all have the same number of blocks.
    """
    layers = set(settings.encoder_layers)
    if len(layers) != 1:
        raise BuildError(
            f"found encoder_layers {list(settings.encoder_layers)} for architecture "
            "autoencoder_kl, expected the same number of blocks at every level"
        )
    levels = len(settings.block_out_channels)
    return AutoencoderKL(
        latent_channels=settings.latent_channels,
        block_out_channels=settings.block_out_channels,
        layers_per_block=layers.pop(),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        sample_size=512,
    )


def check_classes(config: TrainConfig, classes: Sequence[str]) -> None:
    """See that a conditional network has a row for every class of the data.

    Raises:
        BuildError: it has fewer.
    """
    rows = config.model.num_classes
    if rows is not None and rows < len(classes):
        raise BuildError(
            f"found {len(classes)} classes in the data ({', '.join(classes)}), but "
            f"model.num_classes {rows}: expected at least as many"
        )


def last_layer(model: nn.Module) -> nn.Parameter:
    """The kernel of the decoder's last convolution."""
    decoder = cast(nn.Module, model.decoder)
    convolutions = [part for part in decoder.modules() if isinstance(part, nn.Conv2d)]
    return convolutions[-1].weight


def describe(config: TrainConfig) -> str:
    """What a run would train on and train: images, parameters, shapes. Nothing is written."""
    source = open_sources(config.data)
    model: Any = build_model(config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    side = config.data.crop_size
    with torch.no_grad():
        encoded = model.encode(torch.zeros(1, 3, side, side))
    posterior = getattr(encoded, "latent_dist", None)
    shape = (encoded.latents if posterior is None else posterior.mean).shape[1:]
    return (
        f"{len(source)} images; {total:,} parameters, {trained:,} of them trained; a crop of "
        f"{side}x{side} pixels gives latents of {shape[1]}x{shape[2]}x{shape[0]}"
    )


def _freeze_encoder(model: Any) -> None:
    for name in ("encoder", "bottleneck", "quant_conv", "quantize"):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            part.requires_grad_(False)

"""The network that a configuration asks for."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers import AutoencoderKL
from torch import nn

from codec.autoencoder import LatentAutoencoder
from codec.backbone import encode_raw, load_autoencoder
from codec.catalog import model_directory
from codec.errors import LatentCodecError
from train.samples.pool import open_sources
from train.sections import ModelConfig, TrainConfig


class BuildError(LatentCodecError):
    """The network that a configuration asks for cannot be made or trained as asked."""


def build_model(config: TrainConfig) -> nn.Module:
    """A new network, or the weights that `model.init_from` names; float32 on the CPU.

    Raises:
        BuildError: the settings make no network.
    """
    settings = config.model
    try:
        model = _make(settings)
    except ValueError as error:
        raise BuildError(f"the settings of model make no network: {error}") from error
    if settings.freeze_encoder:
        _freeze_encoder(model)
    if config.run.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return cast(nn.Module, model.train())


def _make(settings: ModelConfig) -> Any:
    if settings.init_from is not None:
        return load_autoencoder(model_directory(settings.init_from))
    if settings.architecture == "autoencoder_kl":
        return stable_diffusion_autoencoder(settings)
    keys = ("architecture", "init_from", "freeze_encoder")
    return LatentAutoencoder(**{k: v for k, v in settings.model_dump().items() if k not in keys})


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


def check_classes(model: Any, classes: Sequence[str]) -> None:
    """See that a conditional network has a row for every class of the data, and gets labels.

    Raises:
        BuildError: it has fewer, or there are no labels.
    """
    rows = model.config.get("num_classes")
    if rows is None or 0 < len(classes) <= rows:
        return
    found = f"{len(classes)} classes in the data ({', '.join(classes)})" if classes else "no labels"
    raise BuildError(
        f"found {found}, but the network is conditioned on {rows} classes: expected from 1 to "
        f"{rows}; check data.labels and model.num_classes"
    )


@torch.no_grad()
def latent_shape(model: Any, config: TrainConfig) -> tuple[int, ...]:
    """Shape (C, h, w) of the latents of one training crop.

    Raises:
        BuildError: the network does not take crops of that size, or makes codes of what a setting
            rounds.
    """
    side = config.data.crop_size
    reference = next(model.parameters())
    x = torch.zeros(1, 3, side, side, device=reference.device, dtype=reference.dtype)
    try:
        latents = encode_raw(model, x)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise BuildError(
            f"the network does not take crops of data.crop_size {side}: {reason}"
        ) from error
    if config.regularizer.quantize_step is not None and getattr(model, "quantizers", ()):
        raise BuildError(
            "found regularizer.quantize_step with a network whose latents are codes: expected null"
        )
    return tuple(latents.shape[1:])


def check_teacher(model: Any, teacher: Any, config: TrainConfig) -> None:
    """See that student and teacher have latents of one shape.

    Raises:
        BuildError: they differ in channels or downscale.
    """
    found, expected = latent_shape(model, config), latent_shape(teacher, config)
    if found != expected:
        raise BuildError(
            f"found latents of shape {found} (channels, rows, columns) for the student and "
            f"{expected} for distillation.teacher: give the student the teacher's "
            "model.latent_channels and as many levels of model.block_out_channels"
        )


def last_layer(model: nn.Module) -> nn.Parameter:
    """The kernel of the decoder's last convolution."""
    decoder = cast(nn.Module, model.decoder)
    convolutions = [part for part in decoder.modules() if isinstance(part, nn.Conv2d)]
    return convolutions[-1].weight


def describe(config: TrainConfig) -> str:
    """What a run would train on and train: images, parameters, shapes. Nothing is written.

    Raises:
        LatentCodecError: the run could not start.
    """
    source = open_sources(config.data)
    model: Any = build_model(config)
    check_classes(model, source.classes)
    channels, rows, columns = latent_shape(model, config)
    if config.distillation.teacher is not None:
        teacher = load_autoencoder(model_directory(config.distillation.teacher))
        check_teacher(model, teacher, config)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    side = config.data.crop_size
    return (
        f"{len(source)} images; {total:,} parameters, {trained:,} of them trained; a crop of "
        f"{side}x{side} pixels gives latents of {rows}x{columns}x{channels}"
    )


def _freeze_encoder(model: Any) -> None:
    for name in ("encoder", "bottleneck", "quant_conv", "quantize"):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            part.requires_grad_(False)

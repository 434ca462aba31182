"""From a configuration to the denoiser, its process and the latents that it learns."""

from typing import Any

import torch
from accelerate import Accelerator

from codec.prior.denoiser import DenoiserShape, build_denoiser
from codec.prior.directory import PriorError
from codec.prior.process import Process
from train.entropy.frozen import FrozenCodec
from train.prior.latents import ImageLatents, PriorData
from train.prior.sections import ObjectiveConfig, PriorConfig
from train.prior.shard_latents import ShardLatents


def open_data(config: PriorConfig, frozen: FrozenCodec, accelerator: Accelerator) -> PriorData:
    """The latents that a configuration names."""
    if config.data.shards is not None:
        return ShardLatents(config, frozen, accelerator)
    return ImageLatents(config, frozen, accelerator)


def make_process(config: ObjectiveConfig) -> Process:
    """The forward process that a configuration names."""
    return Process.of(config.objective, config.noise_schedule, config.zero_terminal_snr)


def make_denoiser(
    config: PriorConfig,
    shape: tuple[int, int, int],
    num_classes: int,
    embedding_shape: tuple[int, int] | None,
) -> Any:
    """The denoiser that a configuration describes, with random weights of the run's seed.

    Args:
        config: of the run.
        shape: (C, h, w) of the latents.
        num_classes: how many there are; 0 for none.
        embedding_shape: (L, D) of texts, or None.

    Raises:
        PriorError: the sizes do not go together.
    """
    channels, h, w = shape
    if h != w:
        raise PriorError(f"found latents of {w}x{h} cells, expected squares")
    settings = config.prior
    torch.manual_seed(config.run.seed)
    model = build_denoiser(
        DenoiserShape(
            architecture=settings.architecture,
            channels=channels,
            sample_size=h,
            widths=settings.widths,
            layers=settings.layers,
            head_width=settings.head_width,
            attention=settings.attention,
            patch_size=settings.patch_size,
            dropout=settings.dropout,
            num_classes=num_classes or None,
            embedding_width=None if embedding_shape is None else embedding_shape[1],
        )
    )
    return model.to(memory_format=torch.channels_last)

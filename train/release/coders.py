"""Entropy coders fitted to latents of whole images, one fit for all qualities, or to codes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from codec import quantizer
from codec.codes import Codes
from codec.entropy import SymbolCoder
from codec.entropy.channel_coder import ChannelCoder
from codec.entropy.context import MAX_CHANNELS
from codec.entropy.fit import fit
from codec.entropy.index_coder import IndexCoder
from codec.entropy.index_tables import Indices
from train.entropy.frozen_codes import code_vectors
from train.entropy.index_fit import quick_index_coder
from train.release.folders import ExportError

FIT_QUALITIES = (1, 15, 30, 40, 50, 60, 70, 85, 100)

Latents = Sequence[NDArray[np.float32]]  # (C, h, w) of each image


def fit_one_step(latents: Latents, quality_50_step: float) -> SymbolCoder:
    """A coder of raw latents that have one step for all channels, in their own units."""
    scales = [2 ** ((50 - quality) / 12) for quality in FIT_QUALITIES]
    return fit(latents, [max(1, round(quality_50_step * scale * 2**16)) for scale in scales])


def fit_channel_steps(latents: Latents, quality_50_step: float) -> ChannelCoder:
    """A coder of raw latents that have a step for each channel, in units of its deviation.

    Raises:
        ExportError: there are more channels than coders are fitted for.
        QuantizerError: a latent is not finite.
    """
    check_channels(len(latents[0]))
    deviations = quantizer.measure_deviations(latents)
    units = np.array(deviations)[:, None, None] / 2**16
    relative = [(image / units).astype(np.float32) for image in latents]
    return ChannelCoder(fit_one_step(relative, quality_50_step), deviations)


def fit_codes(images: Sequence[Indices], codes: Codes) -> IndexCoder:
    """A coder of the indices of images, learned from them as far as they go in a minute."""
    return quick_index_coder(images, code_vectors(codes))


def check_channels(num_channels: int) -> None:
    """Raises ExportError where there are more channels than coders are fitted for."""
    if num_channels > MAX_CHANNELS:
        raise ExportError(
            f"found {num_channels} latent channels, expected at most {MAX_CHANNELS} to fit tables: "
            "use the model as it is, its files bring their own"
        )


def refuse_quality(quality_50_step: float | None, default_quality: int | None) -> None:
    """Raises ExportError where a quality scale is given for a model of codes."""
    if quality_50_step is not None or default_quality is not None:
        raise ExportError(
            "found --step or --default-quality, expected neither: the model has codes, which files "
            "hold exactly"
        )

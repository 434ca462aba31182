"""Held-out figures: what whole images cost under the context model, and under simpler ones.

Every process measures its share of the images; sums are merged, the same on all.

Legend: C latent channels, h w cells of the latent grid, Q qualities.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from codec import quantizer
from codec.bitstream import STEPS_PER_UNIT
from codec.entropy import LatentCoder, SymbolCoder
from codec.entropy.fit import fit
from eval.latents.entropy import order0_bits
from train.entropy.frozen import FrozenCodec, Latents
from train.entropy.held_out import encode_held_out
from train.entropy.latents import LatentDataset
from train.entropy.model import ContextModel
from train.entropy.sections import EntropyConfig

FITTED = 48
"""Training latents that a linear coder is fitted to, where the codec has none."""
METRIC = "val/bits_per_symbol"
"""The figure that the kept best checkpoint has."""

Sums = dict[tuple[str, float], float]  # bits by coder and quality


class RateValidation:
    """Measures bits of held-out images at several qualities.

    Args:
        latents: raw latents (C, h, w) of the images.
        steps: quantiser steps by quality, in units of 2**-16.
        coders: others to compare with, by the name that their figures get.
    """

    def __init__(
        self,
        latents: Sequence[Latents],
        steps: Mapping[float, int],
        coders: Mapping[str, LatentCoder],
    ) -> None:
        self.latents = latents
        self.steps = dict(steps)
        self.coders = dict(coders)
        self._others: dict[str, float] | None = None

    @torch.no_grad()
    def measure(self, model: ContextModel, accelerator: Accelerator) -> dict[str, float]:
        """Figures by logged name, in bits a symbol over all images; call it on every process.

        `val/bits_per_symbol_q<quality>` of the context model, and with another coder's name in
        front of `bits`; without the quality the mean over qualities. `order0` is the entropy of
        each image's own symbols, channel by channel.
        """
        share = self.latents[accelerator.process_index :: accelerator.num_processes]
        device = next(model.parameters()).device
        steps = torch.tensor([step / STEPS_PER_UNIT for step in self.steps.values()], device=device)
        sums: Sums = defaultdict(float)
        for image in share:
            rounded = [_round(image, step) for step in self.steps.values()]
            bits = model(torch.from_numpy(np.stack(rounded)).to(device), steps)  # (Q, C, h, w)
            for quality, value in zip(self.steps, bits.tolist(), strict=True):
                sums["", quality] += value
        if self._others is None:  # they never change
            self._others = self._figures(self._measure_others(share))
        return {**self._figures(sums), **self._others}

    def _measure_others(self, share: Sequence[Latents]) -> Sums:
        """Bits of this process's images."""
        sums: Sums = defaultdict(float)
        for image in share:
            for quality, step in self.steps.items():
                symbols = quantizer.quantize(image, step)
                sums["order0_", quality] += order0_bits(symbols)
                for name, coder in self.coders.items():
                    sums[f"{name}_", quality] += coder.estimate_bits(symbols, step)
        return sums

    def _figures(self, sums: Sums) -> dict[str, float]:
        """Bits a symbol over all processes, by logged name."""
        parts = gather_object([dict(sums)])
        num_symbols = sum(image.size for image in self.latents)
        figures: dict[str, float] = {}
        for name in sorted({name for part in parts for name, _ in part}):
            rates = [
                math.fsum(part.get((name, quality), 0.0) for part in parts) / num_symbols
                for quality in self.steps
            ]
            figures[f"val/{name}bits_per_symbol"] = math.fsum(rates) / len(rates)
            for quality, rate in zip(self.steps, rates, strict=True):
                figures[f"val/{name}bits_per_symbol_q{quality:g}"] = rate
        return figures


def make_validation(
    config: EntropyConfig, frozen: FrozenCodec, dataset: LatentDataset, accelerator: Accelerator
) -> RateValidation | None:
    """The held-out set that the configuration names, or None.

    Raises:
        DataError: there is no such image, or none can be read.
    """
    latents = encode_held_out(config, frozen, accelerator)
    if latents is None:
        return None
    steps = {
        quality: quantizer.step_from_quality(quality, dataset.quality_50_step)
        for quality in config.run.validation_qualities
    }
    return RateValidation(latents, steps, _coders(frozen, dataset, list(steps.values())))


def _coders(
    frozen: FrozenCodec, dataset: LatentDataset, steps: Sequence[int]
) -> dict[str, LatentCoder]:
    """A linear coder, and the codec's own if it is another one."""
    present = frozen.one_step_coder()
    if isinstance(present, SymbolCoder):
        return {"linear": present}
    fitted: dict[str, LatentCoder] = {"linear": fit(dataset.latents[:FITTED], steps)}
    return fitted if present is None else {**fitted, "present": present}


def _round(image: Latents, step: int) -> Latents:
    return quantizer.dequantize(quantizer.quantize(image, step), step)

"""Rate-aware training: the encoder pays for the bits of its latents.

A context model (`train.entropy.model`, the differentiable twin of the one that codes files) learns
the latents of every batch beside the codec, with an optimizer of its own. While the encoder learns,
the twin is held still and what it estimates is a term of the loss: gradients reach the latents both
as what is coded and as what the others are predicted from. Rounding has no gradient; uniform noise
of a step's width stands for it (Balle et al., arXiv:1611.01704), or the gradient goes straight
through.

Shapes: B batch, C latent channels, h w latent grid. Latents are raw, in float32.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from codec import quantizer
from codec.architectures import codebook_sizes
from codec.bitstream import STEPS_PER_UNIT
from codec.catalog import model_directory
from codec.checkpoint import CODEC_FILE, read_info
from codec.entropy.channel_coder import CHANNELS_VERSION
from codec.entropy.storage import read_version
from codec.errors import LatentCodecError
from codec.identity import ENTROPY_FILE
from train.build import latent_shape
from train.data import CropDataset, to_unit
from train.entropy.model import ContextModel
from train.forward import TrainingForward
from train.held_out import HeldOut
from train.opponent import Opponent
from train.schedules import ramp
from train.sections import RateConfig, TrainConfig

BETAS = (0.9, 0.99)
MAX_NORM = 1.0
"""Of the twin's gradient, in bits a symbol; only a spike is longer."""
MEASURED_CROPS = 64
"""Training crops over which the deviations of the latents are measured."""
MEASURED_AT_ONCE = 8


class RateError(LatentCodecError):
    """The bits of these latents cannot be charged as configured."""


class Quantised(NamedTuple):
    """Latents of a batch as the twin sees them.

    Attributes:
        latents: float32 (B, C, h, w), rounded or noisy, with the encoder's gradient.
        steps: float32 (B,), in raw latent units.
        pixels: of one image.
    """

    latents: Tensor
    steps: Tensor
    pixels: int


class RateNetwork(nn.Module):
    """The twin, in float32 under any autocast.

    Its latents are measured in deviations, which are 1 until `Rate.prepare` measures them.
    """

    def __init__(self, latent_channels: int, config: RateConfig) -> None:
        super().__init__()
        self.twin = ContextModel([1.0] * latent_channels, config.rate_units, config.rate_head_units)

    def forward(self, latents: Tensor, steps: Tensor) -> Tensor:
        """Bits (B,) of latents (B, C, h, w) at steps (B,)."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.twin(latents.float(), steps)


class Rate:
    """The twin with its optimizer, and what it charges the encoder.

    Args:
        config: the rate section.
        latent_channels: C.
        step: around which each sample's quantiser step is drawn, in raw latent units.
        measure: gives the standard deviation (C,) of each channel of the codec's latents.
        accelerator: of the run.
        seed: of the twin's initial values; other random numbers are left as they are.

    Attributes:
        step_size: as `step`.
    """

    def __init__(
        self,
        config: RateConfig,
        latent_channels: int,
        step: float,
        measure: Callable[[], Tensor],
        accelerator: Accelerator,
        seed: int,
    ) -> None:
        self.config = config
        self.step_size = step
        self.opponent = Opponent(
            partial(RateNetwork, latent_channels, config),
            accelerator,
            seed=seed,
            learning_rate=config.rate_learning_rate,
            betas=BETAS,
        )
        # In float32 nothing underflows, and a scale that no gradient limits grows without end.
        self.opponent.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=False)
        self._measure = measure
        self._is_measured = False

    @property
    def network(self) -> RateNetwork:
        """The plain network."""
        network = self.opponent.network
        assert isinstance(network, RateNetwork)
        return network

    @property
    def has_learned(self) -> bool:
        """Whether the twin has taken a step."""
        return self.opponent.steps > 0

    def active(self, images: int) -> bool:
        """Whether the twin learns at this place in the run."""
        return images >= self.config.rate_start - self.config.rate_warmup

    def weight(self, images: int) -> float:
        """What a bit a pixel costs the encoder at this place in the run."""
        config = self.config
        return config.rate_weight * ramp(images, start=config.rate_start, length=config.rate_ramp)

    def prepare(self) -> None:
        """Measure the deviations, once: right before the twin's first step."""
        if not self._is_measured:
            deviations = self._measure().clamp(min=self.step_size)  # a channel may not vary yet
            self.network.twin.deviations.copy_(deviations)
            self._is_measured = True

    def quantise(
        self, latents: Tensor, generators: Sequence[torch.Generator], pixels: int
    ) -> Quantised:
        """Latents as the twin sees them, at a step drawn for each sample.

        Args:
            latents: (B, C, h, w), not yet rounded.
            generators: random numbers of each sample.
            pixels: of one image.
        """
        config, device = self.config, latents.device
        steps = draw_steps(self.step_size, config.rate_step_range, generators).to(device)
        if config.rate_quantization == "round":
            return Quantised(round_through(latents, steps), steps, pixels)
        return Quantised(add_noise(latents, steps, generators), steps, pixels)

    def encoder_term(self, quantised: Quantised) -> Tensor:
        """Estimated bits a pixel, scalar; gradients flow to the latents alone."""
        with self.opponent.frozen():
            bits = self.network(quantised.latents, quantised.steps)
        return bits.mean() / quantised.pixels

    def learn(self, quantised: Quantised, share: float, synchronise: bool) -> dict[str, Tensor]:
        """Add one batch's gradients to the twin; none reach the codec.

        Args:
            quantised: latents of the batch.
            share: the batch's part of the optimizer step.
            synchronise: whether it is the step's last batch.

        Returns:
            Figures of this process's batch by logged name.
        """
        latents = quantised.latents.detach()
        with self.opponent.learning(synchronise):
            bits = self.opponent.wrapped(latents, quantised.steps).mean()
            per_symbol = bits / latents[0].numel()
            self.opponent.backward(per_symbol * share)
        return {
            "loss/rate_bpp": bits.detach() / quantised.pixels,
            "rate/bits_per_symbol": per_symbol.detach(),
        }

    def clip(self) -> Tensor:
        """The norm of the twin's gradient, after which it is clipped."""
        return nn.utils.clip_grad_norm_(self.network.parameters(), MAX_NORM)

    def step(self) -> None:
        """Move the twin once."""
        self.opponent.step(self.config.rate_learning_rate)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.opponent.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Network with its deviations, optimizer, steps."""
        return {**self.opponent.state_dict(), "is_measured": self._is_measured}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.opponent.load_state_dict(state)
        self._is_measured = state["is_measured"]


def draw_steps(step: float, factor: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Quantiser steps (B,), log-uniform from step / factor to step * factor."""
    draws = torch.stack([torch.rand((), generator=generator) for generator in generators])
    return step * factor ** (2 * draws - 1)


def add_noise(latents: Tensor, steps: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Latents (B, C, h, w) with uniform noise of a step's width; arXiv:1611.01704, section 3."""
    parts = [torch.rand(latents.shape[1:], generator=generator) for generator in generators]
    noise = torch.stack(parts).to(latents.device) - 0.5
    return latents.float() + noise * steps[:, None, None, None]


def round_through(latents: Tensor, steps: Tensor) -> Tensor:
    """Latents (B, C, h, w) rounded to whole steps (B,), with the gradient of doing nothing."""
    latents, widths = latents.float(), steps[:, None, None, None]
    rounded = torch.round(latents / widths) * widths
    return latents + (rounded - latents).detach()


def make_rate(
    config: TrainConfig, accelerator: Accelerator, forward: TrainingForward, dataset: CropDataset
) -> Rate:
    """The twin for a run's codec.

    Raises:
        RateError: latents are codes or single vectors, or no step follows from the settings.
    """
    model = forward.model
    channels, rows, columns = latent_shape(model, config)
    if codebook_sizes(model.config) or (rows, columns) == (1, 1):
        kind = "codes" if codebook_sizes(model.config) else "a single vector"
        raise RateError(
            f"found rate.rate_weight above 0 with a network whose latents are {kind}, expected "
            "continuous latents on a grid: set rate.rate_weight to 0"
        )
    return Rate(
        config.rate,
        channels,
        rate_step(config, model),
        partial(latent_deviations, forward, dataset, accelerator.device),
        accelerator,
        config.run.seed,
    )


def rate_step(config: TrainConfig, model: Any) -> float:
    """The quantiser step that bits are charged at, in raw latent units.

    Where `rate.rate_step` is null that of `regularizer.quantize_step`, else of the codec that is
    fine-tuned at its default quality, else the one with the variance of the posterior's noise.

    Raises:
        RateError: none follows from the settings.
    """
    given = config.rate.rate_step or config.regularizer.quantize_step
    if given is None and config.model.init_from is not None:
        given = codec_step(model_directory(config.model.init_from))
    if given is not None:
        return given
    deviation = model.config.get("posterior_std")
    if deviation is None:
        raise RateError(
            "found rate.rate_step null and no step that follows from the network (its posterior's "
            "deviation is learned), expected one: set rate.rate_step, in raw latent units"
        )
    return float(deviation) * math.sqrt(12)


def codec_step(directory: Path) -> float | None:
    """The step of a codec's files at its default quality; None where they have no single one."""
    if not (directory / CODEC_FILE).is_file():
        return None
    info = read_info(directory)
    if info.quality_50_step is None or info.default_quality is None:
        return None
    if read_version(directory / ENTROPY_FILE) == CHANNELS_VERSION:
        return None
    step = quantizer.step_from_quality(info.default_quality, info.quality_50_step)
    return step / STEPS_PER_UNIT


@torch.no_grad()
def latent_deviations(
    forward: TrainingForward, dataset: CropDataset, device: torch.device
) -> Tensor:
    """Standard deviation (C,) of each latent channel over the first training crops."""
    batch = dataset.batch(range(MEASURED_CROPS))
    found = []
    for start in range(0, MEASURED_CROPS, MEASURED_AT_ONCE):
        part = slice(start, start + MEASURED_AT_ONCE)
        labels = {"class_labels": batch.labels[part].to(device)} if forward.is_conditional else {}
        encoded = forward.model.encode(to_unit(batch.pixels[part], device), **labels)
        found.append(unrounded(encoded).float())
    return torch.cat(found).std(dim=(0, 2, 3))


@torch.no_grad()
def rate_figures(
    model: Any, rate: Rate, held_out: HeldOut, accelerator: Accelerator
) -> dict[str, float]:
    """What the twin estimates for held-out images; call it on every process.

    `val/context_bpp`: mean bits a pixel of each image's latents, rounded to `rate.step_size`.
    """
    total, twin = 0.0, rate.network
    for part in held_out.shares(model, accelerator):
        with accelerator.autocast():
            latents = unrounded(model.encode(part.x, **part.labels)).float()
        steps = torch.full((len(latents),), rate.step_size, device=latents.device)
        total += float(twin(round_through(latents, steps), steps).sum())
    pixels = len(held_out) * held_out.pixels_an_image
    return {"val/context_bpp": math.fsum(gather_object([total])) / pixels}


def unrounded(encoded: Any) -> Tensor:
    """The latents that files round, of what `encode` of an autoencoder returned."""
    has_posterior = hasattr(encoded, "latent_dist")
    latents: Tensor = encoded.latent_dist.mean if has_posterior else encoded.latents
    return latents

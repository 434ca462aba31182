"""One optimizer step of a diffusion prior.

Time, noise and whether the condition is left out follow from the run's seed and the sample's number
alone. Legend: B batch, C channels, h w latent grid.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from codec.prior.denoiser import Condition, num_classes_of, predict
from codec.prior.process import Process
from train.prior.latents import PriorBatch
from train.prior.sections import ObjectiveConfig
from train.randomness import UNIT_DROPOUT, sample_generators, seeded
from train.single_loss import SingleLossStepper


class Draws(NamedTuple):
    """What is random about a batch.

    Attributes:
        times: float32 (B,), 0 to 1000.
        noise: float32 (B, C, h, w).
        dropped: bool (B,), whether the condition is left out.
    """

    times: Tensor
    noise: Tensor
    dropped: Tensor


class PriorForward(nn.Module):
    """The denoiser as the training calls it, so that processes can share its gradients.

    Args:
        denoiser: of diffusers.
    """

    def __init__(self, denoiser: Any) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self, noisy: Tensor, times: Tensor, labels: Tensor | None, embeddings: Tensor | None
    ) -> Tensor:
        """What the denoiser says, (B, C, h, w); arguments as for `codec.prior.denoiser`."""
        return predict(self.denoiser, noisy, times, Condition(labels, embeddings))


class PriorStepper(SingleLossStepper):
    """Makes optimizer steps of a `PriorForward`; `process` is set beside."""

    NAME = "loss/denoising"
    process: Process

    def loss(self, batch: PriorBatch) -> Tensor:
        """Mean weighted squared error of what is predicted."""
        config, device = self.config, self.accelerator.device
        draws = draw(batch, self.process, config.objective, config.run.seed, self._dropout)
        times, noise, latents = (
            part.to(device) for part in (draws.times, draws.noise, batch.latents)
        )
        noisy = self.process.mix(latents, noise, times)
        condition = drop(self.averaged, batch, draws.dropped, device)
        with seeded(config.run.seed, int(batch.indices[0]), UNIT_DROPOUT):
            found = self.wrapped(noisy, times, condition.labels, condition.embeddings)
        target = self.process.target(latents, noise, times)
        errors = (found.float() - target).square().mean((1, 2, 3))
        if config.objective.time_weighting == "min_snr":
            errors = errors * self.process.min_snr_weights(times, config.objective.min_snr_gamma)
        return errors.mean()

    @property
    def _dropout(self) -> float:
        settings = self.config.prior
        return 0.0 if settings.condition == "none" else float(settings.condition_dropout)


def draw(
    batch: PriorBatch, process: Process, config: ObjectiveConfig, seed: int, dropout: float
) -> Draws:
    """Random numbers of a batch, sample by sample."""
    places, noises, dropped = [], [], []
    for generator in sample_generators(seed, batch.indices):
        uniform, drop_at = torch.rand(2, generator=generator, dtype=torch.float64)
        normal = torch.randn((), generator=generator, dtype=torch.float64)
        if config.time_weighting == "logit_normal":
            uniform = torch.sigmoid(config.logit_mean + config.logit_std * normal)
        places.append(uniform)
        dropped.append(drop_at < dropout)
        noises.append(torch.randn(batch.latents.shape[1:], generator=generator))
    return Draws(process.times(torch.stack(places)), torch.stack(noises), torch.stack(dropped))


def drop(denoiser: Any, batch: PriorBatch, dropped: Tensor, device: torch.device) -> Condition:
    """The condition of a batch, left out for some of it."""
    labels = embeddings = None
    if (count := num_classes_of(denoiser)) is not None:
        labels = torch.where(dropped, count, batch.labels).to(device)
    if batch.embeddings.numel():
        keep = ~dropped[:, None, None]
        embeddings = (batch.embeddings * keep).to(device)
    return Condition(labels, embeddings)

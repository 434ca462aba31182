"""What a batch goes through while training, as one module.

Accelerate wraps this module, so every pass of the network runs through the wrapper: under several
processes that is what averages the gradients.

Shapes: B batch, C latent channels, h w latent grid, H W pixels, f downscale.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.randomness import sample_noise
from train.sections import TrainConfig


class ForwardOutput(NamedTuple):
    """What the objective needs; a tuple of tensors, for Accelerate casts those to float32.

    Attributes:
        target: (B, 3, H', W') what the reconstruction should be: the images, or those scaled and
            turned like the latents.
        reconstruction: (B, 3, H', W').
        mean: (B, C, h, w) of the posterior; None for discrete latents.
        logvar: (B, C, h, w) its log-variance, or None.
        latents: (B, C, h, w) the sample of the posterior, or the quantised latents.
        commitment: scalar, of a learned codebook, or None.
    """

    target: Tensor
    reconstruction: Tensor
    mean: Tensor | None
    logvar: Tensor | None
    latents: Tensor
    commitment: Tensor | None


@dataclass(frozen=True, slots=True)
class LatentTransform:
    """A scaling and a turn that latents and images undergo alike (EQ-VAE, arXiv:2502.09509).

    Attributes:
        scale: of each side, at most 1.
        turns: quarter turns, 0 to 3.
    """

    scale: float
    turns: int

    def apply(self, latents: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """Both transformed; the images' sides stay f times the latents'."""
        factor = images.shape[-1] // latents.shape[-1]
        rows, columns = (max(1, round(side * self.scale)) for side in latents.shape[-2:])
        scaled = (
            _resize(latents, (rows, columns)),
            _resize(images, (rows * factor, columns * factor)),
        )
        turned = [torch.rot90(part, self.turns, dims=(-2, -1)) for part in scaled]
        return turned[0], turned[1]


class TrainingForward(nn.Module):
    """Encode, draw latents, disturb them as configured, decode.

    Args:
        model: LatentAutoencoder or another diffusers autoencoder.
        config: the run's configuration.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        super().__init__()
        self.model: Any = model
        self.settings = config.regularizer
        self.encoder_is_frozen = config.model.freeze_encoder
        self.is_conditional = getattr(model, "config", {}).get("num_classes") is not None
        loss = config.loss
        self.logvar = nn.Parameter(torch.tensor(loss.logvar_init)) if loss.learned_logvar else None

    def forward(
        self,
        x: Tensor,
        generators: list[torch.Generator],
        class_labels: Tensor | None = None,
        transform: LatentTransform | None = None,
        teacher_latents: Tensor | None = None,
    ) -> ForwardOutput:
        """Run one batch.

        Args:
            x: (B, 3, H, W) in [-1, 1].
            generators: random numbers of each sample's latents.
            class_labels: int64 (B,), for a conditional model.
            transform: scale and turn latents and images alike.
            teacher_latents: (B, C, h, w) decode these instead of the model's own.
        """
        labels = {"class_labels": class_labels} if self.is_conditional else {}
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_is_frozen):
            encoded = self.model.encode(x, **labels)
        posterior = getattr(encoded, "latent_dist", None)
        mean = logvar = None
        if posterior is not None:
            mean, logvar = posterior.mean, posterior.logvar
            latents = mean if self._is_noiseless else posterior.sample(generators)
        else:
            latents = encoded.latents
        target, decoded_from = x, latents if teacher_latents is None else teacher_latents
        decoded_from = self._disturb(decoded_from, generators)
        if transform is not None:
            decoded_from, target = transform.apply(decoded_from, target)
        reconstruction = self.model.decode(decoded_from, **labels).sample
        commitment = getattr(encoded, "commitment", None)
        return ForwardOutput(target, reconstruction, mean, logvar, latents, commitment)

    @property
    def _is_noiseless(self) -> bool:
        return self.settings.quantize_step is not None

    def _disturb(self, latents: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Add noise, or round to the files' step, with a straight-through gradient."""
        if self.settings.latent_noise > 0:
            latents = latents + self.settings.latent_noise * sample_noise(latents, generators)
        if (step := self.settings.quantize_step) is not None:
            rounded = torch.round(latents.float() / step) * step
            latents = latents + (rounded - latents).detach().to(latents.dtype)
        return latents


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x.float(), size, mode="bilinear", antialias=True, align_corners=False)

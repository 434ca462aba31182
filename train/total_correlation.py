"""FactorVAE's penalty: the total correlation of the latents, as a discriminator estimates it.

The discriminator tells latents of images from latents whose channels were shuffled between images;
its log-odds are the logarithm of the density ratio q(z) / prod q(z_j), whose mean under q is the
total correlation (arXiv:1802.05983, section 3).

Shapes: z (B, C, 1, 1), vector latents.
"""

from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from codec.errors import LatentCodecError
from train.opponent import Opponent
from train.sections import LossConfig

BETAS = (0.5, 0.9)
"""Of the discriminator's Adam; arXiv:1802.05983, appendix A."""
SLOPE = 0.2


class TotalCorrelationError(LatentCodecError):
    """The total correlation of these latents cannot be estimated."""


class LatentDiscriminator(nn.Module):
    """An MLP from latents (B, C) to logits (B, 2): joint, shuffled; float32 under any autocast."""

    def __init__(self, latent_channels: int, channels: int, num_layers: int) -> None:
        super().__init__()
        widths = [latent_channels, *[channels] * num_layers]
        hidden = [
            part
            for width_in, width in pairwise(widths)
            for part in (nn.Linear(width_in, width), nn.LeakyReLU(SLOPE))
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], 2))

    def forward(self, vectors: Tensor) -> Tensor:
        """Logits of vectors (B, C)."""
        with torch.autocast(vectors.device.type, enabled=False):
            return self.layers(vectors.float())


class TotalCorrelation:
    """The discriminator with its optimizer.

    Args:
        config: the loss section.
        latent_channels: C.
        accelerator: of the run.
        seed: of the discriminator's initial values; other random numbers are left as they are.
    """

    def __init__(
        self, config: LossConfig, latent_channels: int, accelerator: Accelerator, seed: int
    ) -> None:
        self.config = config
        self.opponent = Opponent(
            partial(LatentDiscriminator, latent_channels, config.tc_channels, config.tc_layers),
            accelerator,
            seed=seed,
            learning_rate=config.tc_learning_rate,
            betas=BETAS,
        )

    @property
    def network(self) -> nn.Module:
        """The plain discriminator."""
        return self.opponent.network

    def generator_term(self, z: Tensor) -> Tensor:
        """The estimate of the total correlation in nats, for the codec to minimise; scalar.

        Raises:
            TotalCorrelationError: latents are not 1x1.
        """
        with self.opponent.frozen():
            logits = self.network(as_vectors(z))
        return (logits[:, 0] - logits[:, 1]).mean()

    def discriminator_backward(
        self, z: Tensor, permute_generator: torch.Generator, share: float, synchronise: bool
    ) -> dict[str, Tensor]:
        """Add one batch's gradients to the discriminator; none reach the codec.

        The shuffled latents are those of the same batch. The paper takes a second batch; here no
        image would be left out for it, and the discriminator judges each vector by itself.

        Args:
            z: latents of the batch.
            permute_generator: random numbers of the shuffle, on the CPU.
            share: the batch's part of the optimizer step.
            synchronise: whether it is the step's last batch.

        Returns:
            Figures of this process's batch by logged name.

        Raises:
            TotalCorrelationError: latents are not 1x1, or there is nothing to shuffle with.
        """
        joint = as_vectors(z.detach())
        shuffled = permute_dims(joint, permute_generator)
        count = len(joint)
        with self.opponent.learning(synchronise):
            logits = self.opponent.wrapped(torch.cat([joint, shuffled]))
            kinds = torch.arange(2, device=z.device).repeat_interleave(count)
            loss = F.cross_entropy(logits, kinds)
            self.opponent.backward(loss * share)
        accuracy = (logits.argmax(dim=1) == kinds).float().mean()
        return {"tc/discriminator": loss.detach(), "tc/accuracy": accuracy}

    def step(self) -> None:
        """Move the discriminator once."""
        self.opponent.step(self.config.tc_learning_rate)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.opponent.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer, gradient scaler and steps."""
        return self.opponent.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.opponent.load_state_dict(state)


def as_vectors(z: Tensor) -> Tensor:
    """Vector latents (B, C, 1, 1) as (B, C), float32.

    Raises:
        TotalCorrelationError: latents are not 1x1.
    """
    if z.shape[2:] != (1, 1):
        raise TotalCorrelationError(
            f"found latents of {z.shape[3]}x{z.shape[2]} positions, expected 1x1, for the total "
            "correlation is that of one vector an image: make data.crop_size equal to the model's "
            "downscale, or set loss.tc_weight to 0"
        )
    return z.flatten(1).float()


def permute_dims(vectors: Tensor, generator: torch.Generator) -> Tensor:
    """Each channel shuffled over the batch on its own (arXiv:1802.05983, algorithm 1).

    Args:
        vectors: (B, C).
        generator: on the CPU, so that the shuffle is the same on every device.

    Raises:
        TotalCorrelationError: there are not two vectors to shuffle.
    """
    if len(vectors) < 2:
        raise TotalCorrelationError(
            f"found a batch of {len(vectors)}, expected at least 2 to shuffle latents between "
            "images: raise run.batch_size"
        )
    order = torch.rand(vectors.shape, generator=generator).argsort(dim=0)
    return vectors.gather(0, order.to(vectors.device))

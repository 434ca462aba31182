"""The adversary: the PatchGAN discriminator in training, and how much it counts for the codec.

Codec and discriminator see the same batch: first `generator_terms` for the codec's loss, then
`discriminator_backward` on the same images.

Shapes: x images and y reconstructions (B, 3, H, W), about [-1, 1].
"""

import math
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from train.discriminator import (
    DiscriminatorError,
    PatchDiscriminator,
    advance_spectral,
    discriminator_loss,
    feature_distance,
    generator_loss,
    r1_penalty,
)
from train.opponent import Opponent
from train.sections import AdversarialConfig

RATIO_DELTA = 1e-6
"""Keeps the gradients' ratio finite; arXiv:2012.09841, equation 7."""


class Adversary:
    """The discriminator with its optimizer and its weight in the codec's loss.

    Args:
        config: the adversarial section.
        accelerator: of the run.
        seed: of the discriminator's initial values; other random numbers are left as they are.

    Attributes:
        weight: what `disc_weight` is multiplied by. 1 unless `disc_adaptive`; then the ratio of the
            previous step's gradients, and 0 as long as none was measured.

    Raises:
        DiscriminatorError: batch norm where processes cannot share their statistics.
    """

    def __init__(self, config: AdversarialConfig, accelerator: Accelerator, seed: int) -> None:
        check_norm(config, accelerator.num_processes, accelerator.device)
        self.config = config
        self.accelerator = accelerator
        self.opponent = Opponent(
            partial(build_discriminator, config, accelerator.num_processes),
            accelerator,
            seed=seed,
            learning_rate=config.disc_learning_rate,
            betas=(config.disc_beta1, config.disc_beta2),
        )
        self.weight = 0.0 if config.disc_adaptive else 1.0
        self._slopes: Tensor | None = None  # (2, *last layer): reconstruction's, adversarial

    @property
    def network(self) -> nn.Module:
        """The plain discriminator."""
        return self.opponent.network

    def active(self, images: int) -> bool:
        """Whether the discriminator learns at this place in the run."""
        return images >= self.config.disc_start - self.config.disc_warmup

    def counts(self, images: int) -> bool:
        """Whether the codec hears it."""
        return images >= self.config.disc_start

    def generator_terms(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The codec's terms, unweighted; gradients flow to y alone.

        Batch norm sees real and reconstructed images together, as when the discriminator learns.
        """
        config, count = self.config, len(y)
        is_matching = config.feature_matching_weight > 0
        needs_real = is_matching or config.disc_norm == "batch"
        with self.opponent.frozen():
            logits, features = self.network(torch.cat([x.detach(), y]) if needs_real else y)
        terms = {"adv/generator": generator_loss(logits[-count:], config.disc_loss)}
        if is_matching:
            real, fake = ([layer[part] for layer in features] for part in _halves(count))
            terms["adv/feature_matching"] = feature_distance(real, fake)
        return terms

    def measure_ratio(
        self,
        reconstruction_loss: Tensor,
        adversarial_loss: Tensor,
        last_layer: nn.Parameter,
        share: float,
    ) -> None:
        """Add one batch's gradients at the decoder's last layer; nothing unless `disc_adaptive`.

        Leaves the graph and all `.grad` as they are.

        Args:
            reconstruction_loss: weighted sum of the reconstruction terms, with LPIPS.
            adversarial_loss: `adv/generator`, unweighted.
            last_layer: kernel of the decoder's last convolution.
            share: the batch's part of the optimizer step.
        """
        if not self.config.disc_adaptive:
            return
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()  # fp16 gradients would underflow
        slopes = torch.stack(
            [
                torch.autograd.grad(loss * scale, last_layer, retain_graph=True)[0].float()
                for loss in (reconstruction_loss, adversarial_loss)
            ]
        )
        slopes = slopes * (share / scale)
        self._slopes = slopes if self._slopes is None else self._slopes + slopes

    def finish_ratio(self) -> None:
        """Set the next step's weight from the gradients of all batches and processes.

        |gradient of reconstruction| / (|gradient of adversarial| + delta), arXiv:2012.09841,
        equation 7, at most `disc_adaptive_max`. Gradients that overflowed in fp16 change nothing.
        """
        if self._slopes is None:
            return
        slopes = self.accelerator.reduce(self._slopes, "mean")
        reconstruction, adversarial = slopes.flatten(1).norm(dim=1).tolist()
        if math.isfinite(reconstruction + adversarial):
            ratio = reconstruction / (adversarial + RATIO_DELTA)
            self.weight = min(ratio, self.config.disc_adaptive_max)
        self._slopes = None

    def discriminator_backward(
        self, x: Tensor, y: Tensor, share: float, synchronise: bool
    ) -> dict[str, Tensor]:
        """Add one batch's gradients to the discriminator; none reach the codec.

        Args:
            x: images.
            y: reconstructions.
            share: the batch's part of the optimizer step.
            synchronise: whether it is the step's last batch.

        Returns:
            Figures of this process's batch by logged name; `adv/r1`, unweighted, only in the steps
            that compute it.
        """
        config, count = self.config, len(x)
        with self.opponent.learning(synchronise):
            logits = self.opponent.wrapped(torch.cat([x, y]).detach()).logits.float()
            real, fake = (logits[part] for part in _halves(count))
            loss = discriminator_loss(real, fake, config.disc_loss)
            figures = {
                "adv/discriminator": loss,
                "adv/logits_real": real.mean(),
                "adv/logits_fake": fake.mean(),
                "adv/accuracy_real": (real > 0).float().mean(),
                "adv/accuracy_fake": (fake < 0).float().mean(),
            }
            if config.r1_weight > 0 and self.opponent.steps % config.r1_every == 0:
                # Lazy, as in StyleGAN2 (arXiv:1912.04958): as much heavier as it is rarer.
                figures["adv/r1"] = r1_penalty(self._judge, x)
                loss = loss + 0.5 * config.r1_weight * config.r1_every * figures["adv/r1"]
            self.opponent.backward(loss * share)
        return {name: value.detach() for name, value in figures.items()}

    def step(self, factor: float) -> None:
        """Move the discriminator once, at `factor` times its learning rate."""
        self.opponent.step(self.config.disc_learning_rate * factor)
        advance_spectral(self.network)

    def zero_grad(self) -> None:
        """Forget the gradients, also those that an abandoned step measured."""
        self.opponent.zero_grad()
        self._slopes = None

    def state_dict(self) -> dict[str, Any]:
        """Network, optimizer, gradient scaler, steps and weight."""
        return {**self.opponent.state_dict(), "weight": self.weight}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.opponent.load_state_dict(state)
        self.weight = state["weight"]

    def _judge(self, images: Tensor) -> Tensor:
        """Logits in float32: the class's own forward, for Accelerate replaces the object's."""
        return PatchDiscriminator.forward(self.network, images).logits


def build_discriminator(config: AdversarialConfig, num_processes: int) -> nn.Module:
    """A new discriminator; batch norms share their statistics between processes."""
    network = PatchDiscriminator(config.disc_channels, config.disc_layers, config.disc_norm)
    if config.disc_norm == "batch" and num_processes > 1:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    return network


def check_norm(config: AdversarialConfig, num_processes: int, device: torch.device) -> None:
    """Refuse batch norm where torch cannot keep it equal to the large batch's.

    Raises:
        DiscriminatorError: several processes on CPU, or with R1, which SyncBatchNorm has no
            second derivative for.
    """
    if config.disc_norm != "batch" or num_processes == 1:
        return
    if device.type == "cpu" or config.r1_weight > 0:
        place = "on CPU" if device.type == "cpu" else "and r1_weight above 0"
        raise DiscriminatorError(
            f"found adversarial.disc_norm batch with {num_processes} processes {place}, expected a "
            "norm that works without shared statistics there: set adversarial.disc_norm to group"
        )


def _halves(count: int) -> tuple[slice, slice]:
    """Real and reconstructed images in a joint batch."""
    return slice(None, count), slice(count, None)

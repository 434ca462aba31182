"""The generator's loss: every term of a batch, weighted in one place.

The terms themselves are plain functions in `train.losses`, `train.adversary`, `train.rate` and
`train.total_correlation`; which weight each has at which moment is decided here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from eval.lpips import load_lpips
from train.adversary import Adversary
from train.build import check_teacher, last_layer
from train.data import CropDataset, to_unit
from train.distill import Teacher
from train.forward import ForwardOutput, TrainingForward
from train.losses import (
    NATS_PER_BIT,
    LossTerms,
    charged_kl,
    kl_per_channel,
    reconstruction_terms,
    with_logvar,
)
from train.rate import Quantised, Rate, make_rate
from train.schedules import RateController, kl_factor, ramp
from train.sections import LossConfig, TrainConfig
from train.total_correlation import TotalCorrelation

TEACHER_CROPS = 64
"""Training crops over which the variance of a teacher's latents is measured."""
RECONSTRUCTION = ("l1", "l2", "charbonnier", "multiscale", "gradient", "wavelet")


@dataclass(frozen=True, slots=True)
class Share:
    """Where a batch stands in its optimizer step.

    Attributes:
        images_seen: before the step; schedules depend on it.
        weight: the batch's part of the step, 1 / gradient_accumulation_steps.
        pixel_values: values of one image, which the evidence lower bound divides by.
    """

    images_seen: int
    weight: float
    pixel_values: int


class Objective:
    """Weights the terms of a batch, and moves the weights that depend on what was measured.

    Args:
        config: the run's configuration.
        accelerator: of the run.
        perceptual: maps two image batches to a distance each; needed when it has a weight.
        logvar: the learned log-variance, or None.
        last_layer: the decoder's last kernel, where gradients are compared.
        adversary: the discriminator, or None.
        total_correlation: FactorVAE's discriminator, or None.
        teacher: of a distillation, or None.
        rate: the context model that charges for bits, or None.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        *,
        perceptual: nn.Module | None,
        logvar: nn.Parameter | None,
        last_layer: nn.Parameter,
        adversary: Adversary | None,
        total_correlation: TotalCorrelation | None,
        teacher: Teacher | None,
        rate: Rate | None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.perceptual = perceptual
        self.logvar = logvar
        self.last_layer = last_layer
        self.adversary = adversary
        self.total_correlation = total_correlation
        self.teacher = teacher
        self.rate = rate
        loss = config.loss
        self.controller = RateController(loss) if loss.kl_target is not None else None
        self._rates: list[Tensor] = []

    def active_rate(self, images_seen: int) -> Rate | None:
        """The context model where it is at work, at this place in the run."""
        return self.rate if self.rate is not None and self.rate.active(images_seen) else None

    def quantise(
        self, output: ForwardOutput, generators: Sequence[torch.Generator], share: Share
    ) -> Quantised | None:
        """The latents as the context model sees them, where it is at work."""
        rate = self.active_rate(share.images_seen)
        if rate is None:
            return None
        latents = output.latents if output.mean is None else output.mean
        return rate.quantise(latents, generators, share.pixel_values // 3)

    def terms(
        self,
        output: ForwardOutput,
        share: Share,
        teacher_latents: Tensor | None = None,
        quantised: Quantised | None = None,
    ) -> LossTerms:
        """The weighted sum for one batch, and each term unweighted under its logged name."""
        loss = self.config.loss
        total, terms = self._reconstruction(output, share.images_seen)
        total = total + self._adversarial(output, total, share, terms)
        if self.logvar is not None:
            terms["loss/logvar"] = self.logvar
        if output.mean is not None and output.logvar is not None:
            total = total + self._kl(output.mean, output.logvar, share, terms)
        if output.commitment is not None:
            terms["loss/commitment"] = output.commitment
            total = total + loss.commitment_weight * output.commitment
        if self.total_correlation is not None:
            terms["loss/tc"] = self.total_correlation.generator_term(output.latents)
            total = total + loss.tc_weight * terms["loss/tc"]
        if self.teacher is not None:
            assert teacher_latents is not None
            terms["loss/latent"] = self._latent_error(output, teacher_latents)
            total = total + self.config.distillation.latent_weight * terms["loss/latent"]
        if quantised is not None:
            total = total + self._rate(quantised, share, terms)
        return LossTerms(total, {name: term.detach() for name, term in terms.items()})

    def finish_step(self) -> dict[str, float]:
        """Move the weights that follow measurements; call once after each optimizer step."""
        figures = {}
        if self.adversary is not None:
            self.adversary.finish_ratio()
            figures["adv/weight"] = self.adversary.weight
        if self.controller is not None and self._rates:
            rate = self.accelerator.reduce(torch.stack(self._rates).mean(), "mean")
            self.controller.update(float(rate))
            figures["loss/kl_weight"] = self.controller.weight
            self._rates.clear()
        return figures

    def _reconstruction(
        self, output: ForwardOutput, images_seen: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction and perceptual terms, weighted, under the learned log-variance."""
        loss = self.config.loss
        reconstruction = output.reconstruction.float()
        terms = reconstruction_terms(output.target, reconstruction, loss)
        weights = {name: getattr(loss, f"{name}_weight") for name in RECONSTRUCTION}
        total = reconstruction.new_zeros(())
        for name, weight in weights.items():
            if weight > 0:
                total = total + weight * terms[f"loss/{name}"]
        weight = perceptual_weight(loss, images_seen)
        if weight > 0:
            assert self.perceptual is not None
            terms["loss/lpips"] = self.perceptual(reconstruction, output.target).float().mean()
            total = total + weight * terms["loss/lpips"]
        if self.logvar is not None:
            total = with_logvar(total, self.logvar)
        return total, terms

    def _adversarial(
        self, output: ForwardOutput, reconstruction: Tensor, share: Share, terms: dict[str, Tensor]
    ) -> Tensor | float:
        """The discriminator's verdict, weighted; its ratio is measured for the next step."""
        adversary, settings = self.adversary, self.config.adversarial
        if adversary is None or not adversary.active(share.images_seen):
            return 0.0
        if not adversary.counts(share.images_seen) and not settings.disc_adaptive:
            return 0.0
        found = adversary.generator_terms(output.target, output.reconstruction)
        adversary.measure_ratio(
            reconstruction, found["adv/generator"], self.last_layer, share.weight
        )
        if not adversary.counts(share.images_seen):
            return 0.0
        terms.update(found)
        total = settings.disc_weight * adversary.weight * found["adv/generator"]
        if "adv/feature_matching" in found:
            total = total + settings.feature_matching_weight * found["adv/feature_matching"]
        return total

    def _kl(self, mean: Tensor, logvar: Tensor, share: Share, terms: dict[str, Tensor]) -> Tensor:
        """The charged rate times its weight at this moment."""
        loss = self.config.loss
        rate = kl_per_channel(mean, logvar).mean()
        terms["loss/kl"] = rate
        weight = loss.kl_weight * kl_factor(share.images_seen, loss)
        if self.controller is not None:
            weight = self.controller.weight
            in_unit = rate.detach() / (NATS_PER_BIT if loss.kl_target_unit == "bits" else 1.0)
            self._rates.append(in_unit)
        return weight * charged_kl(mean, logvar, loss, share.pixel_values)

    def _rate(self, quantised: Quantised, share: Share, terms: dict[str, Tensor]) -> Tensor | float:
        """The charged bits times their weight at this moment; the twin logs the bits themselves."""
        assert self.rate is not None
        weight = self.rate.weight(share.images_seen)
        terms["rate/weight"] = torch.tensor(weight)
        return weight * self.rate.encoder_term(quantised) if weight > 0 else 0.0

    def _latent_error(self, output: ForwardOutput, teacher_latents: Tensor) -> Tensor:
        """Squared error of the student's latents in units of the teacher's variance."""
        assert self.teacher is not None
        assert self.teacher.variance is not None
        student = output.latents if output.mean is None else output.mean
        error = (student.float() - teacher_latents).square().mean()
        return error / self.teacher.variance


def make_objective(
    config: TrainConfig, accelerator: Accelerator, forward: TrainingForward, dataset: CropDataset
) -> Objective:
    """The loss with its networks: LPIPS, discriminators, a teacher, a context model."""
    loss, seed, device = config.loss, config.run.seed, accelerator.device
    adversary = correlation = teacher = perceptual = rate = None
    if config.adversarial.disc_weight > 0 or config.adversarial.feature_matching_weight > 0:
        adversary = Adversary(config.adversarial, accelerator, seed)
    if loss.tc_weight > 0:
        correlation = TotalCorrelation(loss, config.model.latent_channels, accelerator, seed)
    if config.distillation.teacher is not None:
        teacher = Teacher(config.distillation.teacher, device)
        check_teacher(forward.model, teacher.model, config)
        teacher.measure(to_unit(dataset.batch(range(TEACHER_CROPS)).pixels, device))
    if config.rate.rate_weight > 0:
        rate = make_rate(config, accelerator, forward, dataset)
    if loss.perceptual_weight > 0:
        perceptual = load_lpips(loss.perceptual_net, loss.perceptual_backbone)
        perceptual = perceptual.to(device, memory_format=torch.channels_last)
    return Objective(
        config,
        accelerator,
        perceptual=perceptual,
        logvar=forward.logvar,
        last_layer=last_layer(forward.model),
        adversary=adversary,
        total_correlation=correlation,
        teacher=teacher,
        rate=rate,
    )


def perceptual_weight(loss: LossConfig, images_seen: int) -> float:
    """LPIPS's weight at a place in the run."""
    factor = ramp(images_seen, start=loss.perceptual_start, length=loss.perceptual_ramp)
    return loss.perceptual_weight * factor

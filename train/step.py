"""One optimizer step: the batches of a step through the codec and its adversaries.

Codec and discriminators see the same batches. Gradients of all batches and processes are averaged
before anything moves; codebooks then move once, from all latents of the step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from train.data import Batch, to_unit
from train.forward import LatentTransform, TrainingForward
from train.meter import Meter
from train.objective import Objective, Share
from train.randomness import (
    CODEBOOK_START,
    CODEBOOK_UPDATE,
    EQUIVARIANCE,
    PERMUTATION,
    sample_generators,
    seeded,
    stream,
)
from train.schedules import warmup_cosine
from train.sections import TrainConfig

OPPONENTS = (
    "adv/discriminator",
    "adv/r1",
    "tc/discriminator",
    "rate/bits_per_symbol",
    "rate/gradient_norm",
)
"""Of the other networks that learn: these must stay finite like the codec's own loss."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        terms: each figure's mean over the step's batches, under its logged name.
        total: the weighted loss.
        gradient_norm: before clipping.
        is_finite: whether loss and gradient are; otherwise nothing was changed.
    """

    terms: dict[str, Tensor]
    total: Tensor
    gradient_norm: Tensor
    is_finite: bool


class Stepper:
    """Makes optimizer steps.

    Args:
        config: the run's configuration.
        accelerator: of the run.
        forward: the plain training module.
        objective: weights the terms.
        optimizer: over the trained parameters, already prepared.
        ema: of the model's parameters.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        forward: TrainingForward,
        objective: Objective,
        optimizer: AcceleratedOptimizer,
        ema: EMAModel,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.forward = forward
        self.objective = objective
        self.optimizer = optimizer
        self.ema = ema
        self.wrapped: nn.Module = accelerator.prepare_model(forward)
        self.quantizers: list[Any] = list(getattr(forward.model, "quantizers", []))
        for quantizer in self.quantizers:
            quantizer.collecting = not config.model.freeze_encoder

    def run(self, batches: Iterator[Batch], images_seen: int, meter: Meter) -> StepResult:
        """One optimizer step over `gradient_accumulation_steps` batches."""
        count = self.config.run.gradient_accumulation_steps
        rate_factor = self._set_learning_rate(images_seen)
        if (rate := self.objective.active_rate(images_seen)) is not None:
            rate.prepare()
        self._zero_gradients()
        sums: dict[str, Tensor] = {}
        for number in range(count):
            with meter.waiting():
                batch = next(batches)
            is_last = number == count - 1
            for name, value in self._batch(batch, images_seen, count, is_last).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value / count
        norm = self._clip()
        if rate is not None:
            sums["rate/gradient_norm"] = rate.clip()
        total = sums.pop("loss/total")
        is_finite = self._all_finite(total, norm, sums)
        if is_finite:
            self._update(images_seen, rate_factor)
            sums |= {name: torch.tensor(v) for name, v in self.objective.finish_step().items()}
        return StepResult(sums, total, norm, is_finite)

    def initialise_codebooks(self, batches: Iterator[Batch]) -> None:
        """Start codebooks from clusters of latents, coarse to fine (k-means)."""
        if not self.config.codebook.kmeans_init:
            return
        for number, quantizer in enumerate(self.quantizers):
            if quantizer.initialised or not quantizer.collecting:
                continue
            wanted = 2 * self.config.model.codebook_size
            vectors = torch.empty(0, device=self.accelerator.device)
            while len(vectors) < wanted:
                x, batch = self._to_device(next(batches))
                with torch.no_grad(), self.accelerator.autocast():
                    self.wrapped(x, sample_generators(0, batch.indices), self._labels(batch))
                pending = [part.take_pending() for part in self.quantizers]
                found = self.accelerator.gather(pending[number][0])
                vectors = torch.cat([vectors.reshape(-1, found.shape[1]), found])
            with seeded(self.config.run.seed, 0, CODEBOOK_START + number):
                quantizer.initialise(vectors[:wanted])  # as many for any size of batch

    def _batch(
        self, batch: Batch, images_seen: int, count: int, is_last: bool
    ) -> dict[str, Tensor]:
        """Gradients of one batch for the codec and its adversaries; figures by logged name."""
        accelerator, objective = self.accelerator, self.objective
        x, batch = self._to_device(batch)
        share = Share(images_seen, 1 / count, x[0].numel())
        generators = sample_generators(self.config.run.seed, batch.indices)
        teacher = objective.teacher
        teacher_latents = None if teacher is None else teacher.latents(x)
        transform = self._transform(images_seen)
        with self._synchronised(is_last):
            with accelerator.autocast():
                output = self.wrapped(
                    x, generators, self._labels(batch), transform, teacher_latents
                )
                quantised = objective.quantise(output, generators, share)
                loss = objective.terms(output, share, teacher_latents, quantised)
            accelerator.backward(loss.total / count)
        figures = {**loss.terms, "loss/total": loss.total.detach()}
        real, fake = output.target.detach(), output.reconstruction.detach()
        if objective.adversary is not None and objective.adversary.active(images_seen):
            figures |= objective.adversary.discriminator_backward(real, fake, 1 / count, is_last)
        if (correlation := objective.total_correlation) is not None:
            permute = torch.Generator().manual_seed(
                stream(self.config.run.seed, int(batch.indices[0]), PERMUTATION)
            )
            latents = output.latents.detach()
            figures |= correlation.discriminator_backward(latents, permute, 1 / count, is_last)
        if quantised is not None:
            assert objective.rate is not None
            figures |= objective.rate.learn(quantised, 1 / count, is_last)
        return figures

    def _update(self, images_seen: int, rate_factor: float) -> None:
        """Everything that learns moves once."""
        self.optimizer.step()
        if self.optimizer.step_was_skipped:  # fp16 overflowed, and its scaler starts smaller
            for quantizer in self.quantizers:
                quantizer.take_pending()
            return
        self.ema.step(self.forward.model.parameters())
        adversary, correlation = self.objective.adversary, self.objective.total_correlation
        if adversary is not None and adversary.active(images_seen):
            adversary.step(rate_factor)
        if correlation is not None:
            correlation.step()
        if (rate := self.objective.active_rate(images_seen)) is not None:
            rate.step()
        for number, quantizer in enumerate(self.quantizers):
            if not quantizer.collecting:
                continue
            vectors, indices = map(self.accelerator.gather, quantizer.take_pending())
            average_use = len(vectors) / len(quantizer.usage)
            codebook = self.config.codebook
            restart_below = codebook.restart_below * average_use
            quantizer.configure(decay=codebook.decay, restart_below=restart_below)
            with seeded(self.config.run.seed, images_seen, CODEBOOK_UPDATE + number):
                quantizer.update(vectors, indices)

    def _zero_gradients(self) -> None:
        self.optimizer.zero_grad()
        objective = self.objective
        for opponent in (objective.adversary, objective.total_correlation, objective.rate):
            if opponent is not None:
                opponent.zero_grad()

    def _clip(self) -> Tensor:
        """The norm of the codec's gradient, after which it is clipped."""
        norm: Tensor | None = self.accelerator.clip_grad_norm_(
            self.forward.parameters(), self.config.optimizer.max_grad_norm
        )
        assert norm is not None
        return norm

    def _all_finite(self, total: Tensor, norm: Tensor, sums: dict[str, Tensor]) -> bool:
        """Whether every process can go on; a gradient scaler deals with its own overflows."""
        losses = [total, *(sums[name] for name in OPPONENTS if name in sums)]
        is_good = torch.stack([torch.isfinite(loss) for loss in losses]).all()
        if self.accelerator.scaler is None:
            is_good &= torch.isfinite(norm)
        return bool(self.accelerator.reduce(is_good.float(), "mean") == 1)

    def _set_learning_rate(self, images_seen: int) -> float:
        settings = self.config.optimizer
        factor = warmup_cosine(
            images_seen,
            warmup=settings.warmup_images,
            total=self.config.run.max_images,
            final=settings.final_learning_rate,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor
        return factor

    def _to_device(self, batch: Batch) -> tuple[Tensor, Batch]:
        device = self.accelerator.device
        return to_unit(batch.pixels, device), batch._replace(labels=batch.labels.to(device))

    def _labels(self, batch: Batch) -> Tensor | None:
        return batch.labels if self.forward.is_conditional else None

    def _transform(self, images_seen: int) -> LatentTransform | None:
        """The scaling and turn of a step: the same for all its batches and processes."""
        settings = self.config.regularizer
        rng = np.random.default_rng((self.config.run.seed, images_seen, EQUIVARIANCE))
        if rng.random() >= settings.equivariance_probability:
            return None
        scale = float(rng.uniform(settings.equivariance_min_scale, 1.0))
        turns = int(rng.integers(4)) if settings.equivariance_rotate else 0
        return LatentTransform(scale, turns)

    @contextmanager
    def _synchronised(self, is_last: bool) -> Iterator[None]:
        """Processes exchange gradients in a step's last batch only."""
        if is_last:
            yield
        else:
            with self.accelerator.no_sync(self.wrapped):
                yield

"""One optimizer step of an entropy model: the mean bits of a symbol, over all batches of a step.

Gradients of all batches and processes are averaged before anything moves. Everything is float32.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from train.entropy.index_crops import IndexBatch
from train.entropy.latents import LatentBatch
from train.entropy.sections import CoderConfig
from train.meter import Meter
from train.schedules import warmup_cosine
from train.step import StepResult

Batch = LatentBatch | IndexBatch  # what a model takes, and how many symbols that are


class EntropyStepper:
    """Makes optimizer steps.

    Args:
        config: the run's configuration.
        accelerator: of the run.
        model: the plain network; it gives the bits (B,) of a batch.
        optimizer: over its parameters, already prepared.
        ema: of its parameters.
    """

    def __init__(
        self,
        config: CoderConfig,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        ema: EMAModel,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer
        self.ema = ema
        self.wrapped: nn.Module = accelerator.prepare_model(model)

    def run(self, batches: Iterator[Batch], images_seen: int, meter: Meter) -> StepResult:
        """One optimizer step over `gradient_accumulation_steps` batches."""
        count = self.config.run.gradient_accumulation_steps
        self._set_learning_rate(images_seen)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=self.accelerator.device)
        for number in range(count):
            with meter.waiting():
                batch = next(batches)
            is_last = number == count - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.wrapped):
                loss = self._bits_per_symbol(batch) / count
                self.accelerator.backward(loss)
            total += loss.detach()
        norm = self.accelerator.clip_grad_norm_(
            self.model.parameters(), self.config.optimizer.max_grad_norm
        )
        assert norm is not None
        is_good = torch.isfinite(total) & torch.isfinite(norm)
        is_finite = bool(self.accelerator.reduce(is_good.float(), "mean") == 1)
        if is_finite:
            self.optimizer.step()
            self.ema.step(self.model.parameters())
        return StepResult({"loss/bits_per_symbol": total}, total, norm, is_finite)

    def _bits_per_symbol(self, batch: Batch) -> Tensor:
        bits: Tensor = self.wrapped(*(part.to(self.accelerator.device) for part in batch))
        return bits.sum() / batch.num_symbols

    def _set_learning_rate(self, images_seen: int) -> None:
        settings = self.config.optimizer
        factor = warmup_cosine(
            images_seen,
            warmup=settings.warmup_images,
            total=self.config.run.max_images,
            final=settings.final_learning_rate,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * factor

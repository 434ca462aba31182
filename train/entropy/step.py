"""One optimizer step of the context model: the mean bits of a symbol, over all batches of a step.

Gradients of all batches and processes are averaged before anything moves. Everything is float32.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from train.entropy.latents import LatentBatch
from train.entropy.model import ContextModel
from train.entropy.sections import EntropyConfig
from train.meter import Meter
from train.schedules import warmup_cosine
from train.step import StepResult


class EntropyStepper:
    """Makes optimizer steps.

    Args:
        config: the run's configuration.
        accelerator: of the run.
        model: the plain context model.
        optimizer: over its parameters, already prepared.
        ema: of its parameters.
    """

    def __init__(
        self,
        config: EntropyConfig,
        accelerator: Accelerator,
        model: ContextModel,
        optimizer: AcceleratedOptimizer,
        ema: EMAModel,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer
        self.ema = ema
        self.wrapped: nn.Module = accelerator.prepare_model(model)

    def run(self, batches: Iterator[LatentBatch], images_seen: int, meter: Meter) -> StepResult:
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

    def _bits_per_symbol(self, batch: LatentBatch) -> Tensor:
        latents, steps = (part.to(self.accelerator.device) for part in batch)
        bits: Tensor = self.wrapped(latents, steps)
        return bits.sum() / latents.numel()

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

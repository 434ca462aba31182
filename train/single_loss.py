"""One optimizer step of a network with one loss, over all batches of a step.

Gradients of all batches and processes are averaged before anything moves.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from train.meter import Meter
from train.schedules import warmup_cosine
from train.step import StepResult


class SingleLossStepper(ABC):
    """Makes optimizer steps.

    Args:
        config: the run's configuration; its sections `run` and `optimizer` are used.
        accelerator: of the run.
        model: the plain module that is called with a batch.
        optimizer: over its parameters, already prepared.
        ema: of the parameters of `averaged`.
        averaged: the network whose parameters are averaged, if not the module itself.
    """

    NAME: str
    """What the loss is called in the log."""

    def __init__(
        self,
        config: Any,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: AcceleratedOptimizer,
        ema: EMAModel,
        averaged: nn.Module | None = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.model = model
        self.optimizer = optimizer
        self.ema = ema
        self.averaged = model if averaged is None else averaged
        self.wrapped: nn.Module = accelerator.prepare_model(model)

    @abstractmethod
    def loss(self, batch: Any) -> Tensor:
        """The mean loss of a batch, by `wrapped`."""

    def run(self, batches: Iterator[Any], images_seen: int, meter: Meter) -> StepResult:
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
                loss = self.loss(batch) / count
                self.accelerator.backward(loss)
            total += loss.detach()
        norm = self.accelerator.clip_grad_norm_(
            self.averaged.parameters(), self.config.optimizer.max_grad_norm
        )
        assert norm is not None
        is_good = torch.isfinite(total) & torch.isfinite(norm)
        is_finite = bool(self.accelerator.reduce(is_good.float(), "mean") == 1)
        if is_finite:
            self.optimizer.step()
            self.ema.step(self.averaged.parameters())
        return StepResult({self.NAME: total}, total, norm, is_finite)

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

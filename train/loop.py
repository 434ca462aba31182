"""The loop of a run: steps until the budget is spent, the log, held-out figures, checkpoints.

What is trained, on what and how a step goes belongs to the trainers that build on it.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from torch import Tensor

from codec.errors import LatentCodecError
from train.bookkeeping import RunLog
from train.meter import Meter
from train.records import save_config
from train.saved_state import SavedState
from train.state import Progress, latest_good
from train.step import StepResult
from train.stopping import StopSignals


class TrainingError(LatentCodecError):
    """The training cannot go on; what was reached is saved."""


class TrainingData(Protocol):
    """What a run trains on."""

    unreadable: dict[str, str]

    def fingerprint(self) -> dict[str, Any]:
        """`num_images`, `sources`, and `sha256` of what they are."""


class StepMaker(Protocol):
    """Makes optimizer steps."""

    def run(self, batches: Iterator[Any], images_seen: int, meter: Meter) -> StepResult: ...


class TrainingLoop:
    """Runs a training. A trainer sets the attributes, then calls `run`.

    Attributes:
        config: the whole configuration; its section `run` has the budget.
        run_dir: the run's folder.
        accelerator: of the run.
        dataset: what it trains on.
        model: the plain network.
        ema: average of its parameters.
        optimizer: over its parameters.
        state: what checkpoints hold.
        stepper: makes the steps.
        progress: how far the run is.
        validation: measures held-out images; None if there are none.
    """

    LOWER: ClassVar = "optimizer.learning_rate"
    """What to lower where the loss is not finite."""

    config: Any
    run_dir: Path
    accelerator: Accelerator
    dataset: TrainingData
    model: Any
    ema: EMAModel
    optimizer: torch.optim.Optimizer
    state: SavedState
    stepper: StepMaker
    progress: Progress
    validation: object | None

    def __init__(self) -> None:
        self.stop = StopSignals()
        self._validated_at = -1
        self._started = time.monotonic()

    def run(self) -> Progress:
        """Train until the budget is spent or a signal asks to stop; saved in either case.

        Raises:
            TrainingError: the loss is not finite; the last good state is in the newest checkpoint.
        """
        run, accelerator = self.config.run, self.accelerator
        if accelerator.is_main_process:
            save_config(self.config, self.run_dir, self.dataset.fingerprint())
        if self.progress.steps == 0:
            self._prepare()
        meter, saved_at = Meter(), time.monotonic()
        self._started = time.monotonic() - self.progress.seconds
        next_validation = self._next_validation()
        with (
            closing(self._batches()) as batches,
            RunLog(self.run_dir, self.config, accelerator) as log,
            self.stop,
        ):
            while self.progress.images_seen < run.max_images:
                must_stop, must_save = self._agreed(saved_at)
                if must_stop:
                    break
                if must_save:
                    with meter.logging():
                        self._save()
                    saved_at = time.monotonic()
                result = self.stepper.run(batches, self.progress.images_seen, meter)
                if not result.is_finite:
                    raise self._non_finite(result)
                with meter.logging():
                    self._advance()
                    self._record(result, meter, log)
                if self.validation is not None and self.progress.images_seen >= next_validation:
                    next_validation = self._next_validation()
                    with meter.paused():
                        self._validate(log)
            self._flush(meter, log)
            self._save()
            if self.validation is not None and self._validated_at != self.progress.images_seen:
                self._validate(log)
        return self.progress

    def validate(self) -> dict[str, float]:
        """Figures of the averaged weights on the held-out images."""
        raise NotImplementedError

    @property
    def images_per_step(self) -> int:
        """Images over all processes and accumulated batches of an optimizer step."""
        run = self.config.run
        per_process = run.batch_size * run.gradient_accumulation_steps
        return int(per_process * self.accelerator.num_processes)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model has its averaged weights inside, and is in evaluation mode."""
        self.ema.store(self.model.parameters())
        self.ema.copy_to(self.model.parameters())
        self.model.eval()
        try:
            yield
        finally:
            self.model.train()
            self.ema.restore(self.model.parameters())

    def _batches(self) -> Generator[Any, None, None]:
        """This process's batches from the place that the run has reached."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """What a run does once, before its first step."""

    def _warnings(self, figures: dict[str, float]) -> Sequence[str]:
        """What is wrong, as far as figures tell."""
        del figures
        return ()

    def _show(self, log: RunLog) -> None:
        """Write what a validation found beside its figures; called on all processes."""

    def _advance(self) -> None:
        self.progress = Progress(
            self.progress.images_seen + self.images_per_step,
            self.progress.steps + 1,
            time.monotonic() - self._started,
        )

    def _record(self, result: StepResult, meter: Meter, log: RunLog) -> None:
        """Add a step to the log; a line of it now and then."""
        figures: dict[str, Tensor | float] = {
            **result.terms,
            "loss/total": result.total,
            "optim/gradient_norm": result.gradient_norm,
            "optim/learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        meter.add(figures)
        log.advance(self.progress)
        if self.progress.steps % self.config.run.log_every == 0:
            self._flush(meter, log)

    def _flush(self, meter: Meter, log: RunLog) -> None:
        if meter.steps:
            figures = meter.flush(self.accelerator)
            unreadable: dict[str, str] = {}
            for found in gather_object([dict(self.dataset.unreadable)]):
                unreadable |= found
            figures["data/unreadable"] = float(len(unreadable))
            log.write(self.progress, figures)
            skipped = [f"skipped {key}: {reason}" for key, reason in unreadable.items()]
            log.warn(self.progress, [*self._warnings(figures), *skipped])

    def _validate(self, log: RunLog) -> None:
        """Held-out figures, pictures and warnings; the best weights so far are kept."""
        self._validated_at = self.progress.images_seen
        figures = self.validate()
        log.write(self.progress, figures)
        log.warn(self.progress, self._warnings(figures))
        self._show(log)
        if self.accelerator.is_main_process:
            self.state.keep_if_best(figures, self.progress)
        self.accelerator.wait_for_everyone()

    def _next_validation(self) -> int:
        every: int = self.config.run.validation_every
        return (self.progress.images_seen // every + 1) * every

    def _agreed(self, saved_at: float) -> tuple[bool, bool]:
        """Whether to stop (a signal, the clock) and whether to save, on all processes alike.

        Clocks differ between processes; one that saves alone would wait for the others forever.
        """
        run, steps = self.config.run, self.progress.steps
        is_spent = run.max_minutes is not None and self.progress.seconds > 60 * run.max_minutes
        must_stop = self.stop.received or (is_spent and steps > 0)
        must_save = time.monotonic() - saved_at > 60 * run.checkpoint_minutes
        if self.accelerator.num_processes == 1:
            return must_stop, must_save
        flags = torch.tensor([must_stop, must_save], device=self.accelerator.device)
        stop, save = (self.accelerator.reduce(flags.float(), "sum") > 0).tolist()
        return stop, save

    def _non_finite(self, result: StepResult) -> TrainingError:
        """Save the state before the step, if it is good, and say what happened."""
        if self.state.is_finite():
            self._save()
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in result.terms.items())
        newest = latest_good(self.run_dir)
        place, advice = "nothing good was saved", "and start again in another run.output_dir"
        if newest is not None:
            place, advice = f"the last good state is {newest}", "and run again with --resume"
        return TrainingError(
            f"the loss or its gradient is not finite after {self.progress.images_seen} images "
            f"({values}); {place}: lower {self.LOWER} {advice}"
        )

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            self.state.save(self.progress)
        self.accelerator.wait_for_everyone()

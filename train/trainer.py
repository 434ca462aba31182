"""A training run under Accelerate: builds everything, steps until the budget is spent, saves.

The loop reads as the algorithm: a step, the log, now and then held-out figures and a checkpoint.
What a step does is in `train.step`; what is written, in `train.bookkeeping` and `train.state`.
"""

import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from torch import Tensor

from codec.errors import LatentCodecError
from train.bookkeeping import RunLog
from train.build import build_model, check_classes, latent_shape
from train.data import Batch, CropDataset
from train.disentangled import disentanglement_figures, has_factors
from train.distill import distillation_figures
from train.forward import TrainingForward
from train.health import health_warnings
from train.meter import Meter
from train.objective import make_objective
from train.optimizer import make_optimizer
from train.records import save_config
from train.run_state import RunState, find_checkpoint
from train.samples.loader import make_loader
from train.samples.pool import open_sources
from train.sections import TrainConfig
from train.state import Progress, latest_good
from train.step import Stepper, StepResult
from train.stopping import StopSignals
from train.trackers import tracker_names
from train.validation import make_validation


class TrainingError(LatentCodecError):
    """The training cannot go on; what was reached is saved."""


class Trainer:
    """One run: builds everything from the configuration, then `run()`.

    Args:
        config: the whole configuration.
        resume: continue from the newest whole checkpoint of `run.output_dir`.

    Raises:
        ResumeError: there are checkpoints and `resume` is false, or none and it is true.
    """

    def __init__(self, config: TrainConfig, *, resume: bool = False) -> None:
        self.config = config
        self.run_dir = Path(config.run.output_dir)
        checkpoint = find_checkpoint(self.run_dir, resume)
        if config.run.mixed_precision == "fp16" and not torch.cuda.is_available():
            raise TrainingError(
                "found run.mixed_precision fp16 and no GPU, expected one: use bf16 or no"
            )
        self.accelerator = Accelerator(
            mixed_precision=config.run.mixed_precision,
            cpu=not torch.cuda.is_available(),
            log_with=tracker_names(config) or None,
            project_dir=self.run_dir,
        )
        self.dataset = CropDataset(open_sources(config.data), config.data, config.run.seed)
        torch.manual_seed(config.run.seed)
        self.model: Any = build_model(config)
        check_classes(self.model, self.dataset.classes)
        latent_shape(self.model, config)
        self.model.to(self.accelerator.device, memory_format=torch.channels_last)
        forward = TrainingForward(self.model, config).to(self.accelerator.device)
        self.optimizer = make_optimizer(forward, config.optimizer)
        self.ema = EMAModel(
            self.model.parameters(),
            decay=config.optimizer.ema_decay,
            use_ema_warmup=True,
            power=config.optimizer.ema_power,
        )
        self.objective = make_objective(config, self.accelerator, forward, self.dataset)
        parts = {"optimizer": self.optimizer, "scaler": self.accelerator.scaler}
        self.state = RunState(config, self.run_dir, self.model, self.ema, self.objective, parts)
        self.progress = Progress(0, 0, 0.0)
        if checkpoint is not None:
            self.progress = self.state.restore(checkpoint)
        if config.run.compile:
            compile_network(self.model)
        self.stepper = Stepper(
            config,
            self.accelerator,
            forward,
            self.objective,
            self.accelerator.prepare_optimizer(self.optimizer),
            self.ema,
        )
        self.validation = make_validation(
            config,
            getattr(self.model.config, "posterior_std", None),
            self.objective.perceptual,
            self.dataset.classes,
        )
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
            with closing(self._batches()) as first:
                self.stepper.initialise_codebooks(first)
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
                if self.validation and self.progress.images_seen >= next_validation:
                    next_validation = self._next_validation()
                    with meter.paused():
                        self._validate(log)
            self._flush(meter, log)
            self._save()
            if self.validation and self._validated_at != self.progress.images_seen:
                self._validate(log)
        return self.progress

    @property
    def images_per_step(self) -> int:
        """Images over all processes and accumulated batches of an optimizer step."""
        run = self.config.run
        per_process = run.batch_size * run.gradient_accumulation_steps
        return int(per_process * self.accelerator.num_processes)

    def validate(self) -> dict[str, float]:
        """Figures of the averaged weights on the held-out images."""
        assert self.validation is not None
        with self.averaged():
            figures = self.validation.measure(self.model, self.accelerator)
            if (teacher := self.objective.teacher) is not None:
                held_out = self.validation.held_out
                figures |= distillation_figures(self.model, teacher, held_out, self.accelerator)
            if has_factors(self.config):
                figures |= disentanglement_figures(self.model, self.config, self.accelerator)
        return figures

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
            log.warn(self.progress, [*health_warnings(figures, self.config), *skipped])

    def _validate(self, log: RunLog) -> None:
        """Held-out figures, pictures and warnings; the best weights so far are kept."""
        assert self.validation is not None
        self._validated_at = self.progress.images_seen
        figures = self.validate()
        log.write(self.progress, figures)
        log.details(self.progress, self.validation.details)
        log.warn(self.progress, health_warnings(figures, self.config))
        with self.averaged():
            pictures = self.validation.pictures(self.model, self.accelerator)
        log.pictures(self.progress, pictures)
        if self.accelerator.is_main_process:
            self.state.keep_if_best(figures, self.progress)
        self.accelerator.wait_for_everyone()

    def _batches(self) -> Generator[Batch, None, None]:
        """This process's batches from the place that the run has reached."""
        yield from make_loader(
            self.dataset,
            self.progress.images_seen,
            self.config.run.batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            device=self.accelerator.device,
        )

    def _next_validation(self) -> int:
        every = self.config.run.validation_every
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
            f"({values}); {place}: lower optimizer.learning_rate (or that of the discriminator) "
            f"{advice}"
        )

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            self.state.save(self.progress)
        self.accelerator.wait_for_everyone()


def compile_network(model: Any) -> None:
    """Compile encoder and decoder; names of parameters stay."""
    # The adaptive weight walks the graph twice, which buffers given away would not survive.
    torch._functorch.config.donated_buffer = False
    model.encoder.compile()
    model.decoder.compile()

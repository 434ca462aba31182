"""The training loop of an autoencoder under Accelerate.

The loop body reads as the algorithm: a batch, the reconstruction, the loss, a step, the average.
What is written (log, checkpoints, validation) hangs on it in `train.bookkeeping`.
"""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from codec.autoencoder import LatentAutoencoder
from codec.catalog import model_directory
from codec.errors import LatentCodecError
from eval.lpips import load_lpips
from train.bookkeeping import Meter, RunLog, save_config
from train.config import MAX_ACCUMULATION, TrainConfig
from train.data import CropDataset, find_training_images, make_loader, to_unit
from train.losses import LossTerms, autoencoder_loss
from train.optimizer import make_optimizer
from train.schedules import warmup_cosine
from train.state import (
    Progress,
    ResumeError,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from train.validation import Validation, make_validation

MAX_PROCESSES = 4096


class TrainingError(LatentCodecError):
    """The training cannot go on; what was reached is saved."""


class Trainer:
    """One run: builds everything from the configuration, then `run()`.

    Args:
        config: the whole configuration.
        resume: continue from the newest checkpoint of `run.output_dir`.

    Raises:
        ResumeError: there are checkpoints and `resume` is false, or none and it is true.
    """

    def __init__(self, config: TrainConfig, *, resume: bool = False) -> None:
        self.config = config
        self.run_dir = Path(config.run.output_dir)
        checkpoints = list_checkpoints(self.run_dir)
        check_resume(self.run_dir, checkpoints, resume)
        self.accelerator = Accelerator(
            mixed_precision=config.run.mixed_precision, cpu=not torch.cuda.is_available()
        )
        torch.manual_seed(config.run.seed)
        self.model = build_model(config)
        self.model.to(self.accelerator.device, memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.ema = EMAModel(
            self.model.parameters(),
            decay=config.optimizer.ema_decay,
            use_ema_warmup=True,
            power=config.optimizer.ema_power,
        )
        self.progress = Progress(0, 0, 0.0)
        if resume:
            self.progress = load_checkpoint(checkpoints[-1], self.model, self.ema, self.optimizer)
        self.perceptual = self._load_perceptual()
        self.dataset = CropDataset(find_training_images(config.data), config.data, config.run.seed)
        self.validation: Validation | None = make_validation(
            config, self.model.config.posterior_std, self.perceptual
        )
        self.wrapped: nn.Module = self.accelerator.prepare_model(self.model)
        self.interrupted = False

    def run(self) -> Progress:
        """Train until the budget is spent or a signal asks to stop; saved in either case.

        Raises:
            TrainingError: the loss is not finite; the last good state is in the newest checkpoint.
        """
        run = self.config.run
        if self.accelerator.is_main_process:
            save_config(self.config, self.run_dir)
        accelerator, log = self.accelerator, RunLog(self.run_dir, self.config, self.accelerator)
        meter = Meter()
        started, saved_at = time.monotonic() - self.progress.seconds, time.monotonic()
        next_validation = self._next_validation()
        batches = self._batches()
        with log, self._signals():
            while self.progress.images_seen < run.max_images and not self.interrupted:
                terms, norm = self._step(batches, meter)
                self.progress = Progress(
                    self.progress.images_seen + self.images_per_step,
                    self.progress.steps + 1,
                    time.monotonic() - started,
                )
                if not self._all_finite(terms, norm):
                    raise self._non_finite(terms)
                meter.add(terms, norm, self.optimizer.param_groups[0]["lr"])
                log.advance(self.progress)
                if self.progress.steps % run.log_every == 0:
                    log.write(self.progress, meter.flush(accelerator))
                if self.validation and self.progress.images_seen >= next_validation:
                    next_validation = self._next_validation()
                    log.write(self.progress, self.validate())
                if time.monotonic() - saved_at > 60 * run.checkpoint_minutes:
                    self._save()
                    saved_at = time.monotonic()
                if run.max_minutes and self.progress.seconds > 60 * run.max_minutes:
                    break
            if meter.steps:
                log.write(self.progress, meter.flush(accelerator))
            self._save()
            if self.validation:
                log.write(self.progress, self.validate())
        return self.progress

    def validate(self) -> dict[str, float]:
        """Figures of the averaged weights on the held-out images."""
        assert self.validation is not None
        self.ema.store(self.model.parameters())
        self.ema.copy_to(self.model.parameters())
        try:
            return self.validation.measure(self.model, self.accelerator)
        finally:
            self.ema.restore(self.model.parameters())

    @property
    def images_per_step(self) -> int:
        """Images over all processes and accumulated batches of an optimizer step."""
        run = self.config.run
        per_process = run.batch_size * run.gradient_accumulation_steps
        return int(per_process * self.accelerator.num_processes)

    def _step(self, batches: Iterator[Tensor], meter: "Meter") -> tuple[LossTerms, float]:
        """One optimizer step over `gradient_accumulation_steps` batches."""
        config, accelerator = self.config, self.accelerator
        rate = config.optimizer.learning_rate * warmup_cosine(
            self.progress.images_seen,
            warmup=config.optimizer.warmup_images,
            total=config.run.max_images,
            final=config.optimizer.final_learning_rate,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        count = config.run.gradient_accumulation_steps
        for number in range(count):
            with meter.waiting():
                batch = next(batches)
            x = to_unit(batch, accelerator.device)
            noise = self._noise_generator(number)
            synchronise = number == count - 1
            with _maybe_no_sync(accelerator, self.wrapped, synchronise), accelerator.autocast():
                output = self.wrapped(x, sample_posterior=True, generator=noise)
                terms = autoencoder_loss(
                    x,
                    output.sample,
                    output.latent_dist,
                    config.loss,
                    self.perceptual,
                    self.progress.images_seen,
                )
                accelerator.backward(terms.total / count)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.max_grad_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.ema.step(self.model.parameters())
        return terms, float(norm)

    def _noise_generator(self, number: int) -> torch.Generator:
        """Random numbers of one batch's latent noise, from the seed and the place in the run."""
        place = self.progress.images_seen * MAX_ACCUMULATION + number
        place = place * MAX_PROCESSES + self.accelerator.process_index
        generator = torch.Generator(device=self.accelerator.device)
        return generator.manual_seed((self.config.run.seed << 48) ^ place)

    def _batches(self) -> Iterator[Tensor]:
        loader = make_loader(
            self.dataset,
            self.progress.images_seen,
            self.config.run.batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        return iter(loader)

    def _load_perceptual(self) -> nn.Module | None:
        loss = self.config.loss
        if loss.perceptual_weight == 0:
            return None
        distance = load_lpips(loss.perceptual_net, loss.perceptual_backbone)
        return distance.to(self.accelerator.device, memory_format=torch.channels_last)

    def _next_validation(self) -> int:
        every = self.config.run.validation_every
        return (self.progress.images_seen // every + 1) * every

    def _all_finite(self, terms: LossTerms, norm: float) -> bool:
        good = torch.isfinite(terms.total.detach()) & math.isfinite(norm)
        flags = self.accelerator.gather(good.float().reshape(1))
        return bool(flags.min() > 0)

    def _non_finite(self, terms: LossTerms) -> TrainingError:
        values = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.terms.items())
        newest = list_checkpoints(self.run_dir)
        place = f"the last good state is {newest[-1]}" if newest else "nothing was saved yet"
        return TrainingError(
            f"the loss or its gradient is not finite after {self.progress.images_seen} images "
            f"({values}); {place}: lower optimizer.learning_rate and run again with --resume"
        )

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            save_checkpoint(
                self.run_dir,
                self.model,
                self.ema,
                self.optimizer,
                self.progress,
                total_limit=self.config.run.checkpoints_total_limit,
            )
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM finish the step, save and end the run; a second one kills."""

        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            self.interrupted = True
            signal.signal(number, previous[number])

        watched = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.getsignal(number) for number in watched}
        for number in watched:
            signal.signal(number, stop)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def build_model(config: TrainConfig) -> LatentAutoencoder:
    """A new model, or the weights that `model.init_from` names."""
    arguments = config.model.model_dump()
    source = arguments.pop("init_from")
    if source is None:
        return LatentAutoencoder(**arguments)
    return LatentAutoencoder.from_pretrained(
        model_directory(source), torch_dtype=torch.float32, use_safetensors=True
    )


def check_resume(run_dir: Path, checkpoints: list[Path], resume: bool) -> None:
    """Refuse to start over silently, and to resume from nothing."""
    if checkpoints and not resume:
        raise ResumeError(
            f"{run_dir} already holds {checkpoints[-1].name}: add --resume to continue it, or "
            "choose another run.output_dir"
        )
    if resume and not checkpoints:
        raise ResumeError(f"found no complete checkpoint in {run_dir}: start without --resume")


@contextmanager
def _maybe_no_sync(accelerator: Accelerator, model: nn.Module, synchronise: bool) -> Iterator[None]:
    if synchronise:
        yield
    else:
        with accelerator.no_sync(model):
            yield

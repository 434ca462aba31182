"""Training an autoencoder under Accelerate: everything that a configuration asks for.

The loop is in `train.loop`; what a step does, in `train.step`; what is written, in
`train.bookkeeping` and `train.state`.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from train.bookkeeping import RunLog
from train.build import build_model, check_classes, latent_shape
from train.data import Batch, CropDataset
from train.disentangled import disentanglement_figures, has_factors
from train.distill import distillation_figures
from train.forward import TrainingForward
from train.health import health_warnings
from train.loop import TrainingError, TrainingLoop
from train.objective import make_objective
from train.optimizer import make_optimizer
from train.rate import rate_figures
from train.run_state import check_output_dir, find_checkpoint, make_state
from train.samples.loader import make_loader
from train.samples.pool import open_sources
from train.sections import TrainConfig
from train.state import Progress
from train.step import Stepper
from train.trackers import tracker_names
from train.validation import Validation, make_validation


class Trainer(TrainingLoop):
    """One run: builds everything from the configuration, then `run()`.

    Args:
        config: the whole configuration.
        resume: continue from the newest whole checkpoint of `run.output_dir`.

    Raises:
        OutputDirError: `run.output_dir` cannot be written to.
        ResumeError: there are checkpoints and `resume` is false, or none and it is true.
    """

    LOWER = "optimizer.learning_rate (or that of the discriminator)"

    config: TrainConfig
    dataset: CropDataset
    validation: Validation | None

    def __init__(self, config: TrainConfig, *, resume: bool = False) -> None:
        super().__init__()
        self.config = config
        self.run_dir = Path(config.run.output_dir)
        check_output_dir(self.run_dir)
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
        self.state = make_state(config, self.run_dir, self.model, self.ema, self.objective, parts)
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
        if self.validation is not None and self.objective.rate is not None:
            self.validation.step = self.objective.rate.step_size

    def validate(self) -> dict[str, float]:
        """Figures of the averaged weights on the held-out images."""
        assert self.validation is not None
        with self.averaged():
            figures = self.validation.measure(self.model, self.accelerator)
            if (teacher := self.objective.teacher) is not None:
                held_out = self.validation.held_out
                figures |= distillation_figures(self.model, teacher, held_out, self.accelerator)
            if (rate := self.objective.rate) is not None and rate.has_learned:
                held_out = self.validation.held_out
                figures |= rate_figures(self.model, rate, held_out, self.accelerator)
            if has_factors(self.config):
                figures |= disentanglement_figures(self.model, self.config, self.accelerator)
        return figures

    def _prepare(self) -> None:
        with closing(self._batches()) as first:
            self.stepper.initialise_codebooks(first)

    def _warnings(self, figures: dict[str, float]) -> Sequence[str]:
        return health_warnings(figures, self.config)

    def _show(self, log: RunLog) -> None:
        assert self.validation is not None
        log.details(self.progress, self.validation.details)
        with self.averaged():
            pictures = self.validation.pictures(self.model, self.accelerator)
        log.pictures(self.progress, pictures)

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


def compile_network(model: Any) -> None:
    """Compile encoder and decoder; names of parameters stay."""
    # The adaptive weight walks the graph twice, which buffers given away would not survive.
    torch._functorch.config.donated_buffer = False
    model.encoder.compile()
    model.decoder.compile()

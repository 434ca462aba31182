"""Training the entropy model: a context model learns the quantised latents of a frozen autoencoder.

The images are encoded once, at the start. The loop, its log and its checkpoints are those of every
training, see `train.loop`; what a step does is in `train.entropy.step`.
"""

from collections.abc import Generator, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from train.entropy.frozen import open_codec
from train.entropy.latents import LatentBatch, LatentDataset
from train.entropy.model import ContextModel
from train.entropy.sections import EntropyConfig
from train.entropy.step import EntropyStepper
from train.entropy.validation import METRIC, RateValidation, make_validation
from train.loop import TrainingLoop
from train.run_state import check_output_dir, find_checkpoint
from train.samples.pool import open_sources
from train.saved_state import SavedState
from train.state import Progress
from train.trackers import tracker_names


class EntropyTrainer(TrainingLoop):
    """One run: encodes the images, builds everything from the configuration, then `run()`.

    Args:
        config: the whole configuration.
        resume: continue from the newest whole checkpoint of `run.output_dir`.

    Raises:
        OutputDirError: `run.output_dir` cannot be written to.
        ResumeError: there are checkpoints and `resume` is false, or none and it is true.
    """

    config: EntropyConfig
    dataset: LatentDataset
    validation: RateValidation | None

    def __init__(self, config: EntropyConfig, *, resume: bool = False) -> None:
        super().__init__()
        self.config = config
        self.run_dir = Path(config.run.output_dir)
        check_output_dir(self.run_dir)
        checkpoint = find_checkpoint(self.run_dir, resume)
        self.accelerator = Accelerator(
            mixed_precision="no",
            cpu=not torch.cuda.is_available(),
            log_with=tracker_names(config) or None,
            project_dir=self.run_dir,
        )
        frozen = open_codec(config.entropy.codec, self.accelerator.device)
        self.dataset = LatentDataset(config, frozen, self.accelerator)
        self.validation = make_validation(config, frozen, self.dataset, self.accelerator)
        torch.manual_seed(config.run.seed)
        self.model = ContextModel(
            list(self.dataset.deviations), config.entropy.units, config.entropy.head_units
        ).to(self.accelerator.device)
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
        )
        self.ema = EMAModel(
            self.model.parameters(),
            decay=settings.ema_decay,
            use_ema_warmup=True,
            power=settings.ema_power,
        )
        self.state = SavedState(
            self.run_dir,
            self.model,
            self.ema,
            {"optimizer": self.optimizer},
            total_limit=config.run.checkpoints_total_limit,
            best=(METRIC, -1),
        )
        self.progress = Progress(0, 0, 0.0)
        if checkpoint is not None:
            self.progress = self.state.restore(checkpoint)
        self.stepper = EntropyStepper(
            config,
            self.accelerator,
            self.model,
            self.accelerator.prepare_optimizer(self.optimizer),
            self.ema,
        )

    def validate(self) -> dict[str, float]:
        """Bits of the held-out images under the averaged weights, and under simpler coders."""
        assert self.validation is not None
        with self.averaged():
            return self.validation.measure(self.model, self.accelerator)

    def _batches(self) -> Generator[LatentBatch, None, None]:
        accelerator = self.accelerator
        yield from self.dataset.batches(
            self.progress.images_seen, accelerator.process_index, accelerator.num_processes
        )

    def _warnings(self, figures: dict[str, float]) -> Sequence[str]:
        del figures
        return self.dataset.notes


def describe(config: EntropyConfig) -> str:
    """What a run would encode and train. Nothing is encoded or written.

    Raises:
        LatentCodecError: the run could not start.
    """
    settings = config.entropy
    frozen = open_codec(settings.codec)
    source = open_sources(config.data.images(frozen.factor))
    model = ContextModel([1.0] * frozen.num_channels, settings.units, settings.head_units)
    parameters = sum(p.numel() for p in model.parameters())
    side = config.data.latent_crop
    return (
        f"{len(source)} images; {parameters:,} parameters; crops of {side}x{side}x"
        f"{frozen.num_channels} latents of {frozen.info.name}, {side * frozen.factor} pixels a "
        f"side, at qualities {settings.min_quality:g} to {settings.max_quality:g}"
    )

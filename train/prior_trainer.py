"""Training a diffusion prior: it learns the latents of a frozen autoencoder.

The loop, its log and its checkpoints are those of every training, see `train.loop`; what a step
does is in `train.prior.step`.
"""

from collections.abc import Generator
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from train.bookkeeping import RunLog
from train.entropy.frozen import open_codec
from train.loop import TrainingLoop
from train.optimizer import make_optimizer
from train.prior.build import make_denoiser, make_process, open_data
from train.prior.latents import PriorBatch, PriorData, image_settings
from train.prior.sections import PriorConfig
from train.prior.step import PriorForward, PriorStepper
from train.prior.validation import METRIC, PriorValidation, make_prior_validation
from train.run_state import check_output_dir, find_checkpoint
from train.samples.pool import open_sources
from train.saved_state import SavedState
from train.state import Progress
from train.trackers import tracker_names


class PriorTrainer(TrainingLoop):
    """One run: encodes the images, builds everything from the configuration, then `run()`.

    Args:
        config: the whole configuration.
        resume: continue from the newest whole checkpoint of `run.output_dir`.

    Raises:
        OutputDirError: `run.output_dir` cannot be written to.
        ResumeError: there are checkpoints and `resume` is false, or none and it is true.
    """

    config: PriorConfig
    dataset: PriorData
    validation: PriorValidation | None

    def __init__(self, config: PriorConfig, *, resume: bool = False) -> None:
        super().__init__()
        self.config = config
        self.run_dir = Path(config.run.output_dir)
        check_output_dir(self.run_dir)
        checkpoint = find_checkpoint(self.run_dir, resume)
        self.accelerator = Accelerator(
            mixed_precision=config.run.mixed_precision,
            cpu=not torch.cuda.is_available(),
            log_with=tracker_names(config) or None,
            project_dir=self.run_dir,
        )
        frozen = open_codec(config.prior.codec, self.accelerator.device)
        self.dataset = open_data(config, frozen, self.accelerator)
        process = make_process(config.objective)
        self.validation = make_prior_validation(
            config, frozen, self.dataset, process, self.accelerator
        )
        self.model = make_denoiser(
            config,
            self.dataset.shape,
            len(self.dataset.class_names),
            self.dataset.embedding_shape,
        ).to(self.accelerator.device)
        self.model.train()
        self.optimizer = make_optimizer(self.model, config.optimizer)
        self.ema = EMAModel(
            self.model.parameters(),
            decay=config.optimizer.ema_decay,
            use_ema_warmup=True,
            power=config.optimizer.ema_power,
        )
        self.state = SavedState(
            self.run_dir,
            self.model,
            self.ema,
            {"optimizer": self.optimizer, "scaler": self.accelerator.scaler},
            total_limit=config.run.checkpoints_total_limit,
            best=(METRIC, -1),
        )
        self.progress = Progress(0, 0, 0.0)
        if checkpoint is not None:
            self.progress = self.state.restore(checkpoint)
        self.stepper = PriorStepper(
            config,
            self.accelerator,
            PriorForward(self.model),
            self.accelerator.prepare_optimizer(self.optimizer),
            self.ema,
            averaged=self.model,
        )
        self.stepper.process = process

    def validate(self) -> dict[str, float]:
        """Errors on held-out latents under the averaged weights."""
        assert self.validation is not None
        with self.averaged():
            return self.validation.measure(self.model, self.accelerator)

    def _show(self, log: RunLog) -> None:
        assert self.validation is not None
        with self.averaged():
            pictures = self.validation.pictures(self.model, self.accelerator)
        log.pictures(self.progress, pictures)

    def _batches(self) -> Generator[PriorBatch, None, None]:
        accelerator = self.accelerator
        yield from self.dataset.batches(
            self.progress.images_seen, accelerator.process_index, accelerator.num_processes
        )


def describe(config: PriorConfig) -> str:
    """What a run would train. Nothing is encoded or written.

    Raises:
        LatentCodecError: the run could not start.
    """
    from codec.shards import LatentDataset

    frozen = open_codec(config.prior.codec)
    if config.data.shards is not None:
        dataset = LatentDataset(config.data.shards, rank=0, world_size=1)
        count, names = dataset.manifest.num_records, tuple(dataset.label_ids)
        ((h, _),) = dataset.manifest.grids
        side = h
        what = f"{count} records of {config.data.shards}"
    else:
        pool = open_sources(image_settings(config.data))
        names, side = pool.classes, config.data.size // frozen.factor
        what = f"{len(pool)} images"
    classes = len(names) if config.prior.condition == "class" else 0
    texts = (1, 64) if config.prior.condition == "embeddings" else None
    model = make_denoiser(config, (frozen.num_channels, side, side), classes, texts)
    known = f", {classes} classes" if classes else ""
    return (
        f"{what}{known}; {sum(p.numel() for p in model.parameters()):,} parameters; latents of "
        f"{side}x{side}x{frozen.num_channels} of {frozen.info.name}"
    )

"""Training an entropy model: it learns the latents, or the codes, of a frozen autoencoder.

The images are encoded once, at the start. The loop, its log and its checkpoints are those of every
training, see `train.loop`; what a step does is in `train.entropy.step`.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import nn

from train.entropy.dataset import EncodedDataset
from train.entropy.frozen import open_codec
from train.entropy.frozen_codes import open_codes
from train.entropy.index_build import build_index_model, make_index_validation
from train.entropy.index_crops import IndexDataset
from train.entropy.index_model import IndexModel
from train.entropy.index_validation import IndexValidation
from train.entropy.latents import LatentDataset
from train.entropy.model import ContextModel
from train.entropy.sections import CoderConfig, EntropyConfig, IndexConfig
from train.entropy.step import Batch, EntropyStepper
from train.entropy.validation import METRIC, RateValidation, make_validation
from train.loop import TrainingLoop
from train.run_state import check_output_dir, find_checkpoint
from train.samples.pool import open_sources
from train.saved_state import SavedState
from train.state import Progress
from train.trackers import tracker_names


@dataclass(frozen=True, slots=True)
class Parts:
    """What is trained, on what.

    Attributes:
        dataset: crops of latents or codes.
        validation: measures held-out images; None if there are none.
        model: the network, untrained.
    """

    dataset: EncodedDataset
    validation: Any
    model: nn.Module


class EntropyTrainer(TrainingLoop):
    """One run: encodes the images, builds everything from the configuration, then `run()`.

    Args:
        config: the whole configuration.
        resume: continue from the newest whole checkpoint of `run.output_dir`.

    Raises:
        OutputDirError: `run.output_dir` cannot be written to.
        ResumeError: there are checkpoints and `resume` is false, or none and it is true.
    """

    config: CoderConfig
    dataset: EncodedDataset
    validation: RateValidation | IndexValidation | None

    def __init__(self, config: CoderConfig, *, resume: bool = False) -> None:
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
        make = _index_parts if isinstance(config, IndexConfig) else _latent_parts
        parts = make(config, self.accelerator)
        self.dataset, self.validation = parts.dataset, parts.validation
        self.model = parts.model.to(self.accelerator.device)
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

    def _batches(self) -> Generator[Batch, None, None]:
        accelerator = self.accelerator
        yield from self.dataset.batches(
            self.progress.images_seen, accelerator.process_index, accelerator.num_processes
        )

    def _warnings(self, figures: dict[str, float]) -> Sequence[str]:
        del figures
        return self.dataset.notes


def _latent_parts(config: EntropyConfig, accelerator: Accelerator) -> Parts:
    frozen = open_codec(config.entropy.codec, accelerator.device)
    dataset = LatentDataset(config, frozen, accelerator)
    validation = make_validation(config, frozen, dataset, accelerator)
    torch.manual_seed(config.run.seed)
    settings = config.entropy
    model = ContextModel(list(dataset.deviations), settings.units, settings.head_units)
    return Parts(dataset, validation, model)


def _index_parts(config: IndexConfig, accelerator: Accelerator) -> Parts:
    frozen = open_codes(config.indices.codec, accelerator.device)
    dataset = IndexDataset(config, frozen, accelerator)
    validation = make_index_validation(config, frozen, dataset, accelerator)
    torch.manual_seed(config.run.seed)
    return Parts(dataset, validation, build_index_model(config.indices, frozen.codes, dataset))


def describe(config: CoderConfig) -> str:
    """What a run would encode and train. Nothing is encoded or written.

    Raises:
        LatentCodecError: the run could not start.
    """
    if isinstance(config, IndexConfig):
        return _describe_indices(config)
    settings = config.entropy
    frozen = open_codec(settings.codec)
    model = ContextModel([1.0] * frozen.num_channels, settings.units, settings.head_units)
    side = config.data.latent_crop
    return (
        f"{_amounts(config, frozen.factor, model)}; crops of {side}x{side}x{frozen.num_channels} "
        f"latents of {frozen.info.name}, {side * frozen.factor} pixels a side, at qualities "
        f"{settings.min_quality:g} to {settings.max_quality:g}"
    )


def _describe_indices(config: IndexConfig) -> str:
    frozen = open_codes(config.indices.codec)
    model = IndexModel(frozen.codes.sizes, config.indices)
    side, sizes = config.data.latent_crop, " and ".join(f"{size:,}" for size in frozen.codes.sizes)
    return (
        f"{_amounts(config, frozen.factor, model)}; crops of {side}x{side} latents of "
        f"{frozen.info.name}, {side * frozen.factor} pixels a side, of {sizes} codes"
    )


def _amounts(config: CoderConfig, factor: int, model: nn.Module) -> str:
    images = len(open_sources(config.data.images(factor)))
    return f"{images} images; {sum(p.numel() for p in model.parameters()):,} parameters"

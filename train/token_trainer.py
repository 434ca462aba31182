"""Training a token prior: a transformer learns the codes of a frozen autoencoder.

The images are encoded once, at the start. The loop, its log and its checkpoints are those of every
training, see `train.loop`; what a step does is in `train.prior.token_step`.
"""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from codec.prior.directory import PriorInfo
from codec.prior.token_layout import TokenLayout
from codec.prior.token_model import new_model
from codec.prior.tokens import TokenPrior, layout_of
from codec.shards import LatentDataset
from eval.latents.pictures import tiled
from train.bookkeeping import RunLog
from train.loop import TrainingLoop
from train.prior.token_codes import held_out_tokens, open_token_codec, training_tokens
from train.prior.token_dataset import TokenBatch, TokenDataset
from train.prior.token_sections import TokenPriorConfig, TokensConfig
from train.prior.token_step import TokenForward, TokenStepper, parameter_groups
from train.prior.token_validation import METRIC, TokenValidation, simple_coders
from train.run_state import check_output_dir, find_checkpoint
from train.samples.pool import open_sources
from train.saved_state import SavedState
from train.state import Progress
from train.trackers import tracker_names

PICTURES_A_ROW = 5


class TokenTrainer(TrainingLoop):
    """One run: encodes the images, builds everything from the configuration, then `run()`.

    Args:
        config: the whole configuration.
        resume: continue from the newest whole checkpoint of `run.output_dir`.

    Raises:
        OutputDirError: `run.output_dir` cannot be written to.
        ResumeError: there are checkpoints and `resume` is false, or none and it is true.
        LatentCodecError: the codec or the images cannot be used, or transformers is not installed.
    """

    config: TokenPriorConfig
    dataset: TokenDataset
    validation: TokenValidation | None

    def __init__(self, config: TokenPriorConfig, *, resume: bool = False) -> None:
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
        self.frozen = open_token_codec(config.tokens.codec, self.accelerator.device)
        data = training_tokens(config, self.frozen, self.accelerator)
        self.dataset = TokenDataset(data, config.run.seed, config.tokens.label_dropout)
        self.validation = self._make_validation()
        torch.manual_seed(config.run.seed)
        self.model: Any = build_token_model(config.tokens, data.layout)
        self.model.to(self.accelerator.device)
        self.forward = TokenForward(self.model, data.layout)
        settings = config.optimizer
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, settings.weight_decay),
            lr=settings.learning_rate,
            betas=(settings.beta1, settings.beta2),
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
        self.stepper = TokenStepper(
            config,
            self.accelerator,
            self.forward,
            self.accelerator.prepare_optimizer(self.optimizer),
            self.ema,
            averaged=self.model,
        )

    def validate(self) -> dict[str, float]:
        """Bits of the held-out images under the averaged weights, and under simpler coders."""
        assert self.validation is not None
        with self.averaged():
            return self.validation.measure(self.forward, self.accelerator)

    def _make_validation(self) -> TokenValidation | None:
        data, size = self.dataset.data, self.config.data.size
        held_out = held_out_tokens(self.config, data, self.frozen, self.accelerator)
        if held_out is None:
            return None
        images = [data.layout.to_indices(tokens) for tokens in data.tokens]
        return TokenValidation(held_out, size * size, simple_coders(self.frozen, images))

    def _batches(self) -> Generator[TokenBatch, None, None]:
        accelerator = self.accelerator
        yield from self.dataset.batches(
            self.progress.images_seen,
            self.config.run.batch_size,
            accelerator.process_index,
            accelerator.num_processes,
        )

    def _show(self, log: RunLog) -> None:
        count = self.config.run.validation_samples
        if not count or not self.accelerator.is_main_process:
            return
        prior = TokenPrior(self.model, self._info(), self.frozen.codec, self.dataset.data.layout)
        num_classes = len(self.dataset.data.class_names)
        labels = [i % num_classes if num_classes else None for i in range(count)]
        guided = num_classes and self.config.tokens.label_dropout > 0
        guidance = self.config.run.sample_guidance if guided else 1.0
        with self.averaged(), self.accelerator.autocast():
            pixels = list(prior.sample(labels, range(count), guidance=guidance))
        rows = [pixels[i : i + PICTURES_A_ROW] for i in range(0, count, PICTURES_A_ROW)]
        log.pictures(self.progress, {"samples": tiled(rows)})

    def _info(self) -> PriorInfo:
        """The run as a prior."""
        info, data = self.frozen.info, self.dataset.data
        return PriorInfo(
            directory=self.run_dir,
            name=self.run_dir.name,
            kind="tokens",
            codec=info.name,
            latent_id=info.latent_id,
            class_names=data.class_names,
            size=(self.config.data.size, self.config.data.size),
            license_name="none yet",
            summary="a run",
        )


def build_token_model(settings: TokensConfig, layout: TokenLayout) -> Any:
    """The untrained network that a configuration asks for."""
    return new_model(
        layout,
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        dropout=settings.dropout,
        has_null_class=not layout.num_classes or settings.label_dropout > 0,
    )


def describe(config: TokenPriorConfig) -> str:
    """What a run would encode and train. Nothing is encoded or written.

    Raises:
        LatentCodecError: the run could not start.
    """
    frozen, size = open_token_codec(config.tokens.codec), config.data.size
    if config.data.shards is not None:
        manifest = LatentDataset(config.data.shards).manifest
        count = manifest.num_records
        num_classes = len(manifest.label_ids()) if config.tokens.labels else 0
    else:
        pool = open_sources(config.data.images(labels=config.tokens.labels))
        count, num_classes = len(pool), len(pool.classes)
    layout = layout_of(frozen.codec, (size, size), num_classes)
    model = build_token_model(config.tokens, layout)
    sizes = " and ".join(f"{number:,}" for number in layout.sizes)
    return (
        f"{count} images of {num_classes} classes; "
        f"{sum(p.numel() for p in model.parameters()):,} parameters; {layout.length} tokens an "
        f"image of {size}x{size} pixels, codes of {frozen.info.name}, of {sizes}"
    )

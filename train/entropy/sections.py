"""The configuration of an entropy model's training: every setting, its default and its bounds.

Progress, warm-up and schedules are counted in crops seen; `run` calls them images, as everywhere.
"""

from typing import Self

from pydantic import Field, model_validator

from train.sections import MAX_ACCUMULATION, DataConfig, Section

MAX_UNITS = 1024
"""What `codec.entropy.context_storage` takes."""
SOURCES = ("folders", "lists", "webdataset", "datasets", "image_column", "factors", "exclude")
"""Settings of `EncodedDataConfig` that mean what they mean in `DataConfig`."""


class ContextConfig(Section):
    """The context model and the latents that it learns; see `train.entropy.model`."""

    codec: str = Field(
        "kl-f8d4",
        description="embedded name or directory of the autoencoder whose latents are coded; it "
        "stays as it is",
    )
    units: int = Field(64, ge=1, le=MAX_UNITS, description="hidden units")
    head_units: int = Field(24, ge=1, le=MAX_UNITS, description="of the head of each channel")
    min_quality: float = Field(
        10.0, ge=1, le=100, description="each crop's quality is drawn between this and max_quality"
    )
    max_quality: float = Field(85.0, ge=1, le=100)

    @model_validator(mode="after")
    def _qualities_are_in_order(self) -> Self:
        if self.min_quality > self.max_quality:
            raise ValueError(
                f"entropy.min_quality {self.min_quality:g} is above entropy.max_quality "
                f"{self.max_quality:g}: exchange them"
            )
        return self


class IndicesConfig(Section):
    """The model of codes and the indices that it learns; see `train.entropy.index_model`."""

    codec: str = Field(
        "runs/vq-f8-codec",
        description="embedded name or directory of the autoencoder whose codes are coded; it stays "
        "as it is",
    )
    values: int = Field(8, ge=1, le=64, description="numbers that stand for a code around it")
    units: int = Field(64, ge=1, le=MAX_UNITS, description="hidden units")
    features: int = Field(48, ge=1, le=MAX_UNITS, description="weights of each decision")


class EncodedDataConfig(Section):
    """Which images are encoded once, and how large crops of what they become are."""

    folders: tuple[str, ...] = Field((), description="folders of images, read recursively")
    lists: tuple[str, ...] = Field(
        (), description="text files with one image path a line, relative to the file"
    )
    webdataset: tuple[str, ...] = Field((), description="WebDataset tar files (glob patterns)")
    datasets: tuple[str, ...] = Field(
        (), description="Parquet files (glob patterns) or Hugging Face dataset directories"
    )
    image_column: str = Field("image", description="of datasets")
    factors: int = Field(
        0, ge=0, description="images rendered from known factors, instead of photographs"
    )
    exclude: tuple[str, ...] = Field(
        (), description="text files with one image name a line that are never trained on"
    )
    latent_crop: int = Field(
        40, ge=8, description="side of a crop, in latent cells; images with fewer are left out"
    )
    flip: bool = Field(True, description="encode a mirrored copy of each image too")
    cache_gib: float = Field(
        4.0, gt=0, description="latents are kept while they fit in this; further images are not"
    )

    def images(self, factor: int) -> DataConfig:
        """Where the images come from; rendered ones have the size of a crop.

        Args:
            factor: the autoencoder's downscale.
        """
        settings = {name: getattr(self, name) for name in SOURCES}
        return DataConfig(**settings, crop_size=max(16, self.latent_crop * factor))


class LatentDataConfig(EncodedDataConfig):
    """Which images are encoded once, and how crops are drawn from their latents."""

    transpose: bool = Field(True, description="exchange rows and columns of half of the crops")


class EntropyOptimizerConfig(Section):
    """AdamW, warm-up and cosine."""

    learning_rate: float = Field(3e-3, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    warmup_images: int = Field(400, ge=0)
    final_learning_rate: float = Field(
        0.01, ge=0, le=1, description="share of the rate left at the end"
    )
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.998, ge=0, lt=1)
    ema_power: float = Field(
        0.75, gt=0, description="warm-up of the decay: 1 - (1 + step) ** -power"
    )


class CoderRunConfig(Section):
    """Budget, reproducibility and what is written when; always in float32."""

    output_dir: str = Field(
        "runs/indices-vq-f8", description="checkpoints, log and configuration go here"
    )
    seed: int = Field(0, ge=0, lt=2**15)
    batch_size: int = Field(4, ge=1, description="crops a step and process")
    gradient_accumulation_steps: int = Field(1, ge=1, le=MAX_ACCUMULATION)
    max_images: int = Field(21_600, ge=1, description="crops to train on; the schedule ends here")
    max_minutes: float | None = Field(None, gt=0, description="stop, saved, after this long")
    checkpoint_minutes: float = Field(5.0, gt=0)
    checkpoints_total_limit: int = Field(2, ge=1)
    log_every: int = Field(100, ge=1, description="steps between lines of the log")
    trackers: tuple[str, ...] = Field(
        ("tensorboard",), description="Accelerate's trackers, such as tensorboard or wandb"
    )
    validation_folder: str | None = Field(None, description="held-out images for validation")
    validation_names: str | None = Field(
        None, description="text file that names the held-out images"
    )
    validation_images: int = Field(32, ge=1)
    validation_every: int = Field(4_000, ge=1, description="crops between validations")


class EntropyRunConfig(CoderRunConfig):
    """The same for a context model of latents, which have a quality."""

    output_dir: str = Field(
        "runs/context-f8d4", description="checkpoints, log and configuration go here"
    )
    validation_qualities: tuple[float, ...] = Field(
        (20.0, 35.0, 50.0, 65.0), min_length=1, description="at which held-out images are measured"
    )

    @model_validator(mode="after")
    def _qualities_are_on_the_scale(self) -> Self:
        wrong = [quality for quality in self.validation_qualities if not 1 <= quality <= 100]
        if wrong:
            raise ValueError(
                f"run.validation_qualities: found {wrong[0]:g}; qualities go from 1 to 100"
            )
        return self


class EntropyConfig(Section):
    """Everything that `latent-codec-train` needs to train an entropy model of latents."""

    entropy: ContextConfig
    data: LatentDataConfig
    optimizer: EntropyOptimizerConfig = EntropyOptimizerConfig()
    run: EntropyRunConfig = EntropyRunConfig()


class IndexConfig(Section):
    """Everything that `latent-codec-train` needs to train an entropy model of codes."""

    indices: IndicesConfig
    data: EncodedDataConfig
    optimizer: EntropyOptimizerConfig = EntropyOptimizerConfig()
    run: CoderRunConfig = CoderRunConfig()


CoderConfig = EntropyConfig | IndexConfig

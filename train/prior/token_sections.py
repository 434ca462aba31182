"""The configuration of a token prior's training: every setting, its default and its bounds."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from train.entropy.sections import CoderRunConfig, EntropyOptimizerConfig
from train.sections import DataConfig, Section

SOURCES = ("folders", "lists", "webdataset", "datasets", "image_column", "label_column", "exclude")
"""Settings of `TokenDataConfig` that mean what they mean in `DataConfig`."""


class TokensConfig(Section):
    """The transformer, and whose codes it learns; see `codec.prior.token_model`."""

    codec: str = Field(
        "runs/vq-f16-clothing-codec",
        description="embedded name or directory of the autoencoder whose codes are learned (vq, "
        "fsq or vq2); it stays as it is",
    )
    labels: bool = Field(
        True, description="learn classes: name of the folder, .cls of a tar, label_column"
    )
    label_dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="share of samples that are shown without their class, which guidance and "
        "samples of any class need",
    )
    width: int = Field(192, ge=8, description="of the residual stream; a multiple of heads")
    layers: int = Field(6, ge=1, description="blocks")
    heads: int = Field(3, ge=1, description="of attention")
    dropout: float = Field(0.1, ge=0, lt=1, description="of blocks and embeddings")

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"found tokens.width {self.width}, expected a multiple of tokens.heads {self.heads}"
            )
        return self


class TokenDataConfig(Section):
    """Which images are encoded once, or whose codes a dataset has already."""

    folders: tuple[str, ...] = Field((), description="folders of images, read recursively")
    lists: tuple[str, ...] = Field(
        (), description="text files with one image path a line, relative to the file"
    )
    webdataset: tuple[str, ...] = Field((), description="WebDataset tar files (glob patterns)")
    datasets: tuple[str, ...] = Field(
        (), description="Parquet files (glob patterns) or Hugging Face dataset directories"
    )
    image_column: str = Field("image", description="of datasets")
    label_column: str = Field("label", description="of datasets; read only if tokens.labels is set")
    exclude: tuple[str, ...] = Field(
        (), description="text files with one image name a line that are never trained on"
    )
    shards: str | None = Field(
        None,
        description="in place of images: a dataset that latent-codec dataset has made with this "
        "codec; it has its own mirrored copies, or none",
    )
    size: int = Field(
        256, ge=16, description="images are cut to the square in their middle, scaled to this side"
    )
    flip: bool = Field(True, description="learn a mirrored copy of each image too")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        images = any((self.folders, self.lists, self.webdataset, self.datasets, self.exclude))
        if images and self.shards is not None:
            raise ValueError("found data.shards beside images: expected one or the other")
        return self

    def images(self, *, labels: bool) -> DataConfig:
        """Where the images come from."""
        settings = {name: getattr(self, name) for name in SOURCES}
        return DataConfig(**settings, labels=labels)


class TokenOptimizerConfig(EntropyOptimizerConfig):
    """AdamW, warm-up and cosine; matrices alone decay."""

    learning_rate: float = Field(1.5e-3, gt=0)
    beta2: float = Field(0.95, ge=0, lt=1)
    weight_decay: float = Field(0.05, ge=0)
    warmup_images: int = Field(1_000, ge=0)


class TokenRunConfig(CoderRunConfig):
    """Budget, precision, reproducibility and what is written when; an image is a sequence."""

    output_dir: str = Field("runs/tokens", description="checkpoints, log and configuration go here")
    batch_size: int = Field(8, ge=1, description="sequences a step and process")
    mixed_precision: Literal["no", "bf16"] = Field("bf16", description="weights stay float32")
    max_images: int = Field(
        24_000, ge=1, description="sequences to train on; the schedule ends here"
    )
    log_every: int = Field(100, ge=1, description="steps between lines of the log")
    validation_images: int = Field(256, ge=1, description="at most, spread evenly")
    validation_every: int = Field(5_000, ge=1, description="sequences between validations")
    validation_samples: int = Field(
        10, ge=0, description="pictures that a validation samples, of one class after another"
    )
    sample_guidance: float = Field(
        2.0, ge=1, description="of those pictures, if classes are learned"
    )

    @field_validator("mixed_precision", mode="before")
    @classmethod
    def _yaml_reads_no_as_false(cls, value: object) -> object:
        return "no" if value is False else value


class TokenPriorConfig(Section):
    """Everything that `latent-codec-train` needs to train a token prior."""

    tokens: TokensConfig
    data: TokenDataConfig
    optimizer: TokenOptimizerConfig = TokenOptimizerConfig()
    run: TokenRunConfig = TokenRunConfig()

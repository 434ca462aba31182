"""The configuration of a training run: typed, strict, complete.

Every field is documented and validated where it is declared. An unknown key is an error that
suggests the nearest known one. Progress, warm-up and schedules are counted in images seen, not in
steps, so that they mean the same at any batch size and number of processes.
"""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from codec.errors import LatentCodecError

MAX_ACCUMULATION = 64


class ConfigError(LatentCodecError):
    """A configuration file or an override cannot be used."""


class Section(BaseModel):
    """A part of the configuration; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The arguments of `codec.autoencoder.LatentAutoencoder`, or weights to start from."""

    latent_channels: int = Field(4, ge=1)
    block_out_channels: tuple[int, ...] = (24, 48, 96, 192)
    encoder_layers: tuple[int, ...] = (0, 0, 2, 4)
    decoder_layers: tuple[int, ...] = (0, 0, 2, 4)
    decoder_block_out_channels: tuple[int, ...] | None = None
    posterior_std: float | None = Field(0.14, gt=0)
    init_from: str | None = Field(
        None,
        description="embedded name or directory that a fine-tuning starts from; the shape is then "
        "that model's, and the fields above are not used",
    )


class DataConfig(Section):
    """Which images are trained on, and how crops are drawn from them."""

    folders: tuple[str, ...] = Field(
        min_length=1, description="folders of images, read recursively"
    )
    exclude: tuple[str, ...] = Field(
        (), description="text files with one image name a line that are never trained on"
    )
    crop_size: int = Field(128, ge=16, description="side of a training crop, in pixels")
    min_scale: float = Field(
        0.5,
        gt=0,
        le=1,
        description="crops are read at 1 to 1/min_scale times their size and scaled down",
    )
    flip: bool = Field(True, description="mirror half of the crops")
    num_workers: int = Field(
        0, ge=0, description="loader processes; 0 loads in the training process"
    )
    cache_gib: float = Field(
        4.0, ge=0, description="decoded images are kept in memory while they fit in this"
    )


class LossConfig(Section):
    """Weights of the terms; 0 leaves one out. L1 and L2 are means over pixel values."""

    l1_weight: float = Field(1.0, ge=0)
    l2_weight: float = Field(0.0, ge=0)
    perceptual_weight: float = Field(0.25, ge=0, description="LPIPS")
    perceptual_net: Literal["squeeze", "alex", "vgg"] = "squeeze"
    perceptual_backbone: str | None = Field(
        None, description="file of its ImageNet backbone; null: LATENT_CODEC_LPIPS, or a download"
    )
    perceptual_start: int = Field(0, ge=0, description="images seen before LPIPS first counts")
    perceptual_ramp: int = Field(
        0, ge=0, description="images over which its weight then grows to full"
    )
    kl_weight: float = Field(
        1e-4,
        ge=0,
        description="KL to a unit Gaussian, mean over latent elements; bounds the latents",
    )


class OptimizerConfig(Section):
    """AdamW (or Muon for the convolution kernels), warm-up and cosine."""

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    warmup_images: int = Field(2_000, ge=0)
    final_learning_rate: float = Field(
        0.01, ge=0, le=1, description="share of the rate left at the end"
    )
    max_grad_norm: float = Field(1.0, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    ema_power: float = Field(
        0.75, gt=0, description="warm-up of the decay: 1 - (1 + step) ** -power"
    )


class RunConfig(Section):
    """Budget, precision, reproducibility and what is written when."""

    output_dir: str = Field(
        "runs/kl-f8d4", description="checkpoints, log and configuration go here"
    )
    seed: int = Field(0, ge=0, lt=2**15)
    batch_size: int = Field(16, ge=1, description="crops a step and process")
    gradient_accumulation_steps: int = Field(1, ge=1, le=MAX_ACCUMULATION)
    mixed_precision: Literal["no", "bf16"] = "bf16"
    max_images: int = Field(200_000, ge=1, description="crops to train on; the schedule ends here")
    max_minutes: float | None = Field(None, gt=0, description="stop, saved, after this long")
    checkpoint_minutes: float = Field(5.0, gt=0)
    checkpoints_total_limit: int = Field(2, ge=1)
    log_every: int = Field(50, ge=1, description="steps between lines of the log")
    validation_folder: str | None = Field(None, description="held-out images for validation")
    validation_names: str | None = Field(
        None, description="text file that names the held-out images"
    )
    validation_images: int = Field(32, ge=1)
    validation_every: int = Field(20_000, ge=1, description="images between validations")


class TrainConfig(Section):
    """Everything that a run of `latent-codec-train` needs."""

    model: ModelConfig = ModelConfig()
    data: DataConfig
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file and apply `section.key=value` overrides.

    Args: path: YAML with the sections of `TrainConfig`. overrides: such as `run.max_minutes=5` or
        `data.folders=[photos]`; values are read as YAML. A key
            that only one section has may be given without the section.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, or a value does not fit.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            values = yaml.safe_load(stream)
    except FileNotFoundError as error:
        raise ConfigError(f"found no file {path}, expected a YAML configuration") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds no sections, expected {', '.join(TrainConfig.model_fields)}"
        )
    for override in overrides:
        _apply(values, override)
    return parse_config(_expand(values, str(path)), str(path))


def parse_config(values: dict[str, Any], source: str) -> TrainConfig:
    """Validate a nested dictionary; errors name the key, the value found and what was expected."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            message = f"found the unknown key {where}{_nearest(where)}"
        else:
            message = f"{where}: found {first['input']!r}; {first['msg'].lower()}"
        raise ConfigError(f"{source}: {message}") from error


def known_keys() -> list[str]:
    """Every `section.key`."""
    return [
        f"{section}.{key}"
        for section, field in TrainConfig.model_fields.items()
        for key in field.annotation.model_fields  # type: ignore[union-attr]
    ]


def _expand(value: Any, source: str) -> Any:
    """Replace environment variables such as ${LATENT_CODEC_SHARED} in every string."""
    if isinstance(value, dict):
        return {key: _expand(item, source) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, source) for item in value]
    if not isinstance(value, str) or "$" not in value:
        return value
    expanded = os.path.expandvars(value)
    if "$" in expanded:
        raise ConfigError(
            f"{source}: found {value!r}, but that variable is not set: set it, or give the "
            "setting as key=value"
        )
    return expanded


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"found the override {override!r}, expected key=value")
    if "." not in key:
        matches = [known for known in known_keys() if known.split(".")[1] == key]
        if len(matches) != 1:
            raise ConfigError(f"found the unknown key {key}{_nearest(key)}")
        key = matches[0]
    section, _, name = key.partition(".")
    if key not in known_keys():
        raise ConfigError(f"found the unknown key {key}{_nearest(key)}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: {text!r} is not a YAML value: {_one_line(error)}") from error
    part = values.setdefault(section, {}) or {}
    values[section] = {**part, name: value}


def _nearest(key: str) -> str:
    candidates = [*known_keys(), *TrainConfig.model_fields]
    short = {name.split(".")[-1]: name for name in candidates}
    close = difflib.get_close_matches(key, candidates, n=1) or [
        short[name] for name in difflib.get_close_matches(key.split(".")[-1], list(short), n=1)
    ]
    return f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(candidates)}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

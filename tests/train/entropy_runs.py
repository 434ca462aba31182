"""Configurations of entropy models' runs that take a second."""

from pathlib import Path
from typing import Any

from train.config import parse_config
from train.entropy.sections import EntropyConfig, IndexConfig


def entropy_config(
    run_dir: Path, photos: Path, codec: Path, **sections: dict[str, Any]
) -> EntropyConfig:
    """Four steps on the latents of a codec; `run={"max_images": 4}` replaces settings."""
    values: dict[str, dict[str, Any]] = {
        "entropy": {"codec": str(codec), "units": 6, "head_units": 3},
        "data": {"folders": [str(photos)], "latent_crop": 8},
        "optimizer": {"warmup_images": 0, "learning_rate": 1e-2},
        "run": {
            "output_dir": str(run_dir),
            "batch_size": 2,
            "max_images": 8,
            "log_every": 1,
            "validation_qualities": [30.0, 50.0],
        },
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    config = parse_config(values, "test")
    assert isinstance(config, EntropyConfig)
    return config


def index_config(
    run_dir: Path, photos: Path, codec: Path, **sections: dict[str, Any]
) -> IndexConfig:
    """Four steps on the codes of an autoencoder, as `entropy_config`."""
    values: dict[str, dict[str, Any]] = {
        "indices": {"codec": str(codec), "values": 3, "units": 6, "features": 4},
        "data": {"folders": [str(photos)], "latent_crop": 8},
        "optimizer": {"warmup_images": 0, "learning_rate": 1e-2},
        "run": {
            "output_dir": str(run_dir),
            "batch_size": 2,
            "max_images": 8,
            "log_every": 1,
        },
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    config = parse_config(values, "test")
    assert isinstance(config, IndexConfig)
    return config

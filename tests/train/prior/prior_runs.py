"""Configurations of diffusion priors' runs that take seconds, and images to train on."""

from pathlib import Path
from typing import Any

import PIL.Image

from tests.conftest import make_pixels
from train.config import parse_config
from train.prior.sections import PriorConfig


def write_images(folder: Path, count: int = 4, size: int = 72) -> Path:
    """So many images of each of two classes, as folders."""
    for number, name in enumerate(("hat", "shoe")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = make_pixels(size, size + 8 * i, 10 * number + i)
            PIL.Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def prior_config(
    run_dir: Path, photos: Path | None, codec: Path, **sections: dict[str, Any]
) -> PriorConfig:
    """Four steps on latents of 8x8 cells; `run={"max_images": 4}` replaces settings."""
    values: dict[str, dict[str, Any]] = {
        "prior": {"codec": str(codec), "widths": [16, 32], "head_width": 16, "attention": [1]},
        "data": {"folders": [] if photos is None else [str(photos)], "size": 64},
        "objective": {},
        "optimizer": {"warmup_images": 0, "learning_rate": 2e-3},
        "run": {
            "output_dir": str(run_dir),
            "batch_size": 4,
            "mixed_precision": "no",
            "max_images": 16,
            "log_every": 1,
            "time_bins": 3,
            "sample_steps": 2,
            "trackers": [],
        },
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    config = parse_config(values, "test")
    assert isinstance(config, PriorConfig)
    return config

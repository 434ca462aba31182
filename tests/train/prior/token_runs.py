"""Runs of token priors that take a second, and images in folders by class."""

from pathlib import Path
from typing import Any

import PIL.Image

from tests.conftest import make_pixels
from train.config import parse_config
from train.prior.token_sections import TokenPriorConfig

CLASSES = ("hat", "shoe")


def write_images(folder: Path, count: int, start: int = 0) -> Path:
    """Images of several sizes in a folder for each class."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(start, start + count):
            pixels = make_pixels(40 + 4 * number, 48, number + 10 * len(name))
            PIL.Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def token_config(
    run_dir: Path, images: Path, codec: Path, **sections: dict[str, Any]
) -> TokenPriorConfig:
    """Four steps on 16 codes an image; `run={"max_images": 4}` replaces settings."""
    values: dict[str, dict[str, Any]] = {
        "tokens": {"codec": str(codec), "width": 16, "layers": 2, "heads": 2},
        "data": {"folders": [str(images)], "size": 32},
        "optimizer": {"warmup_images": 0},
        "run": {
            "output_dir": str(run_dir),
            "batch_size": 2,
            "max_images": 8,
            "mixed_precision": "no",
            "log_every": 1,
            "validation_samples": 0,
        },
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    config = parse_config(values, "test")
    assert isinstance(config, TokenPriorConfig)
    return config

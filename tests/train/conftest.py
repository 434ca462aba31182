"""A folder of small images and the configuration of a run that takes a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from train.config import parse_config
from train.sections import TrainConfig


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors gain nothing from threads, and sums are the same on every machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, pixels: Callable[..., Any]) -> Path:
    """Six images of different sizes."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(6):
        image = PIL.Image.fromarray(pixels(48 + 8 * number, 64, number))
        image.save(folder / f"image{number}.png")
    return folder


@pytest.fixture
def make_config(photos: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """Makes a tiny configuration; `make_config(run={"max_images": 8})` replaces settings."""

    def make(**sections: dict[str, Any]) -> TrainConfig:
        values: dict[str, dict[str, Any]] = {
            "model": {
                "block_out_channels": [8, 8, 8, 16],
                "encoder_layers": [0, 0, 1, 1],
                "decoder_layers": [0, 0, 1, 1],
            },
            "data": {"folders": [str(photos)], "crop_size": 32},
            "loss": {"perceptual_weight": 0.0},
            "optimizer": {"warmup_images": 0},
            "run": {
                "output_dir": str(tmp_path / "run"),
                "batch_size": 2,
                "mixed_precision": "no",
                "max_images": 8,
                "log_every": 1,
            },
        }
        for name, section in sections.items():
            values[name] = {**values.get(name, {}), **section}
        return parse_config(values, "test")

    return make

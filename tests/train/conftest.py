"""A folder of small images and the configuration of a run that takes a second."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

from train.config import parse_config
from train.sections import TrainConfig
from train.state import list_checkpoints, load_checkpoint


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
def make_config(
    make_config_in: Callable[..., TrainConfig], tmp_path: Path
) -> Callable[..., TrainConfig]:
    """Makes a tiny configuration; `make_config(run={"max_images": 8})` replaces settings."""
    return partial(make_config_in, tmp_path)


@pytest.fixture(scope="session")
def make_config_in(photos: Path) -> Callable[..., TrainConfig]:
    """The same for fixtures that several tests share; the run is in a folder that they name."""

    def make(folder: Path, /, **sections: dict[str, Any]) -> TrainConfig:
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
                "output_dir": str(folder / "run"),
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


@pytest.fixture(scope="session")
def states() -> Callable[[Path], dict[str, torch.Tensor]]:
    """Reads all that a run's newest checkpoint holds, by name.

    Weights, average, codebook, optimizers, adversaries; what is no tensor by its hash.
    """

    def read(run_dir: Path) -> dict[str, torch.Tensor]:
        checkpoint = load_checkpoint(list_checkpoints(run_dir)[-1])
        return dict(_flatten("", [checkpoint.tensors, checkpoint.states]))

    return read


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, Mapping):
        value = value.items()
    elif isinstance(value, list | tuple):
        value = enumerate(value)
    else:
        yield prefix, value if isinstance(value, torch.Tensor) else torch.tensor(hash(value))
        return
    for name, part in value:
        yield from _flatten(f"{prefix}/{name}", part)


@pytest.fixture(scope="session")
def assert_same() -> Callable[[dict[str, torch.Tensor], dict[str, torch.Tensor]], None]:
    """Compares two such states, bit for bit."""

    def compare(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
        assert first.keys() == second.keys()
        assert [name for name in first if not torch.equal(first[name], second[name])] == []

    return compare

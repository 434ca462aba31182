"""Which held-out images a run is measured on, and how processes share them.

Shapes: N images, B batch, S side of an image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator
from torch import Tensor

from codec import images
from codec.images import Pixels
from train.data import to_unit
from train.samples.factors import FactorImages
from train.samples.sources import DataError, read_names
from train.sections import TrainConfig

BATCH = 8


class Part(NamedTuple):
    """A batch of held-out images on the device.

    Attributes:
        numbers: of the images in the set.
        levels: uint8 (B, 3, S, S).
        x: the same in [-1, 1], float32.
        labels: `class_labels` for encode and decode, if the model takes them; else empty.
    """

    numbers: list[int]
    levels: Tensor
    x: Tensor
    labels: dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Images of one size that were not trained on.

    Attributes:
        pixels: uint8 (N, 3, S, S).
        labels: int64 (N,), -1 where there is none.
        name: what the set is, for reports.
    """

    pixels: Tensor
    labels: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def num_dims(self) -> int:
        """Values of an image, 3 S S."""
        return self.pixels[0].numel()

    @property
    def pixels_an_image(self) -> int:
        """S S."""
        return self.pixels.shape[-2] * self.pixels.shape[-1]

    def shares(self, model: Any, accelerator: Accelerator) -> Iterator[Part]:
        """The images of this process, every n-th of n processes, in batches for a model."""
        share = range(accelerator.process_index, len(self), accelerator.num_processes)
        for start in range(0, len(share), BATCH):
            yield self.part(list(share[start : start + BATCH]), model, accelerator.device)

    def part(self, numbers: list[int], model: Any, device: torch.device) -> Part:
        """Images by number, with labels if the model is conditional."""
        levels = self.pixels[numbers].to(device)
        is_conditional = model.config.get("num_classes") is not None
        labels = {"class_labels": self.labels[numbers].to(device)} if is_conditional else {}
        return Part(numbers, levels, to_unit(levels, device), labels)


def load_held_out(config: TrainConfig, classes: Sequence[str]) -> HeldOut | None:
    """The set that the configuration names, or None.

    Images of `run.validation_folder`, spread evenly over those of `run.validation_names`; else,
    for a run on rendered images, those that follow the ones trained on.

    Args:
        config: the run's configuration.
        classes: names of the class labels in training, in the order of their numbers.

    Raises:
        DataError: there is no such image, or one is of a class that is not trained on.
    """
    if config.run.validation_folder is not None:
        return _from_folder(config, classes)
    return _rendered(config) if config.data.factors > 0 else None


def held_out_files(folder: str, names: str | None, count: int) -> list[Path]:
    """Images of `run.validation_folder`, at most `run.validation_images`, spread evenly.

    Args:
        folder: where they lie.
        names: text file with the file names that belong to the set; None for all.
        count: most that are taken.

    Raises:
        DataError: there is no such image.
    """
    files = images.find([folder])
    if names is not None:
        listed = read_names(names)
        files = [path for path in files if path.name in listed]
    if not files:
        raise DataError(
            f"found no held-out image in {folder}: check run.validation_folder and "
            "run.validation_names"
        )
    spread = np.linspace(0, len(files) - 1, min(count, len(files))).round()
    return [files[int(i)] for i in spread]


def _from_folder(config: TrainConfig, classes: Sequence[str]) -> HeldOut:
    run = config.run
    assert run.validation_folder is not None
    chosen = held_out_files(run.validation_folder, run.validation_names, run.validation_images)
    labels = [-1] * len(chosen)
    if config.data.labels:
        labels = [_label(path.parent.name, classes, str(path)) for path in chosen]
    crops = [_view(images.load(path).pixels, config) for path in chosen]
    return _held_out(crops, labels, f"{len(crops)} images of {run.validation_folder}")


def _rendered(config: TrainConfig) -> HeldOut:
    data, count = config.data, config.run.validation_images
    source = FactorImages(count=count, size=data.crop_size, start=data.factors)
    labels = [source.label(i) if data.labels else -1 for i in range(count)]
    name = f"rendered images {data.factors} to {data.factors + count - 1}"
    return _held_out([source.load(i) for i in range(count)], labels, name)


def _held_out(crops: Sequence[Pixels], labels: Sequence[int], name: str) -> HeldOut:
    pixels = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2)
    return HeldOut(pixels, torch.tensor(labels, dtype=torch.int64), name)


def _label(folder: str, classes: Sequence[str], path: str) -> int:
    if folder not in classes:
        raise DataError(
            f"found the held-out image {path} in a folder {folder}, expected the name of a class "
            f"that is trained on: {', '.join(classes)}; check run.validation_folder"
        )
    return classes.index(folder)


def _view(pixels: Pixels, config: TrainConfig) -> Pixels:
    """The centre square of twice the crop's side, edges repeated where the image is smaller.

    A network with vector latents has one place for what training shows it, whole crops: it gets
    the largest centre square, scaled to the crop's side.
    """
    size, model = config.data.crop_size, config.model
    factor = 2 ** (len(model.block_out_channels) - 1)
    has_vector_latents = model.init_from is None and size == factor
    if not has_vector_latents:
        return _centre(pixels, 2 * size)
    square = PIL.Image.fromarray(_centre(pixels, min(pixels.shape[:2])))
    return np.asarray(square.resize((size, size), PIL.Image.Resampling.BICUBIC))


def _centre(pixels: Pixels, side: int) -> Pixels:
    height, width = pixels.shape[:2]
    rows, columns = max(0, side - height), max(0, side - width)
    padded = np.pad(pixels, ((0, rows), (0, columns), (0, 0)), mode="edge")
    top, left = (padded.shape[0] - side) // 2, (padded.shape[1] - side) // 2
    return padded[top : top + side, left : left + side]

"""The training images of a configuration: its sources in a row, less what is excluded."""

import hashlib
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np

from codec.images import Pixels
from train.samples.factors import FactorImages
from train.samples.sources import (
    DataError,
    ImageSource,
    TarSource,
    folder_source,
    list_source,
    number_classes,
    read_names,
)
from train.samples.tables import TableSource
from train.sections import DataConfig


class ImagePool:
    """Sources as one.

    Args:
        sources: one or more; classes of the same name are one class.
        labels: whether labels are wanted; without, all are -1 and there are no classes.
    """

    def __init__(self, sources: Sequence[ImageSource], *, labels: bool = False) -> None:
        self.name = ", ".join(source.name for source in sources)
        self.sources = list(sources)
        self.classes = _join_classes(sources) if labels else ()
        places = {name: place for place, name in enumerate(self.classes)}
        self._places = [[places.get(name, -1) for name in source.classes] for source in sources]
        self._starts = np.cumsum([0, *(len(source) for source in sources)])
        self._kept = np.arange(self._starts[-1])

    def exclude(self, listing: str) -> None:
        """Leave out the images whose names are in a text file, one a line.

        Raises:
            DataError: the file is missing or excludes nothing.
        """
        names = read_names(listing)
        stays = [self.key(i).rpartition("/")[2] not in names for i in range(len(self))]
        if all(stays):
            raise DataError(
                f"none of the {len(names)} names in {listing} is in {self.name}: expected it to "
                "exclude images, check data.exclude and the sources of data"
            )
        self._kept = self._kept[stays]

    def __len__(self) -> int:
        return len(self._kept)

    def key(self, i: int) -> str:
        number, item = self._find(i)
        return self.sources[number].key(item)

    def size_bytes(self, i: int) -> int:
        number, item = self._find(i)
        return self.sources[number].size_bytes(item)

    def label(self, i: int) -> int:
        number, item = self._find(i)
        label = self.sources[number].label(item) if self.classes else -1
        return self._places[number][label] if label >= 0 else -1

    def load(self, i: int) -> Pixels:
        number, item = self._find(i)
        return self.sources[number].load(item)

    def fingerprint(self) -> dict[str, Any]:
        """What was trained on: `num_images`, `sources`, and `sha256` of all names and sizes.

        Nothing is decoded, so a change that keeps an image's name and its size in bytes is not
        seen. A folder's place does not count, only the last two parts of each name.
        """
        digest = hashlib.sha256()
        for i in range(len(self)):
            name = "/".join(self.key(i).split("/")[-2:])
            digest.update(f"{name}\0{self.size_bytes(i)}\n".encode("utf-8", "surrogateescape"))
        names = [source.name for source in self.sources]
        return {"num_images": len(self), "sources": names, "sha256": digest.hexdigest()}

    def _find(self, i: int) -> tuple[int, int]:
        """The source of image i, and the image's number in it."""
        place = int(self._kept[i])
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        return number, place - int(self._starts[number])


def open_sources(config: DataConfig) -> ImagePool:
    """Every image that a configuration names: folders, lists, tars, datasets, then exclusion.

    Raises:
        DataError: no source is given or left, one cannot be used, an exclude file is missing or
            excludes nothing, or labels are wanted where there are none.
        codec.images.ImageError: a folder does not exist or holds no image.
    """
    sources: list[ImageSource] = []
    if config.folders:
        sources.append(folder_source(config.folders))
    sources += [list_source(listing) for listing in config.lists]
    sources += [
        TarSource(path, labels=config.labels)
        for pattern in config.webdataset
        for path in _match(pattern)
    ]
    if config.datasets:
        label_column = config.label_column if config.labels else None
        sources += [
            TableSource(place, config.image_column, label_column) for place in config.datasets
        ]
    if config.factors:
        if sources:
            raise DataError(
                "found data.factors beside other sources: expected rendered images or photographs, "
                "so set data.factors to 0 or leave out the others"
            )
        sources.append(FactorImages(config.factors, config.crop_size))
    if not sources:
        raise DataError(
            "found no training images: set one of data.folders, data.lists, data.webdataset, "
            "data.datasets and data.factors"
        )
    pool = ImagePool(sources, labels=config.labels)
    for listing in config.exclude:
        pool.exclude(listing)
    if len(pool) == 0:
        raise DataError(f"no image is left in {pool.name}: check data.exclude")
    if config.labels and all(pool.label(i) < 0 for i in range(len(pool))):
        raise DataError(
            f"found no class label in {pool.name}: expected .cls members in a tar or labels in "
            "data.label_column, or set data.labels to false"
        )
    return pool


def _match(pattern: str) -> list[str]:
    paths = [pattern] if Path(pattern).is_file() else sorted(glob(pattern, recursive=True))
    if not paths:
        raise DataError(f"found no tar file for {pattern}: check data.webdataset")
    return paths


def _join_classes(sources: Sequence[ImageSource]) -> tuple[str, ...]:
    """The classes that all sources agree on, in their order, else all of them in a new order."""
    named = [source.classes for source in sources if source.classes]
    if len(set(named)) == 1:
        return named[0]
    return number_classes([name for classes in named for name in classes])[0]

"""Folders of images as sets: one size, read when they are asked for, classes by folder.

Legend: H W pixels.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from codec.dataset.items import Item
from codec.dataset.options import SourceOptions
from codec.dataset.preprocess import Preprocessing, load_item
from codec.dataset.sources import open_source
from codec.errors import LatentCodecError
from codec.images import Pixels
from codec.shards.records import ItemError


class ImageSetError(LatentCodecError):
    """A folder of images that cannot be measured."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images of a folder.

    Attributes:
        folder: where they lie.
        items: the images, sorted by name folder by folder.
        size: side in pixels of the centre squares that they are cut and scaled to; None leaves them
            as they are.
    """

    folder: Path
    items: tuple[Item, ...]
    size: int | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Pixels]:
        """Yield the pixels of all images in order, uint8 (H, W, 3)."""
        return (self.load(index) for index in range(len(self.items)))

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The class of each image: the name of the folder that it lies in."""
        return tuple(item.label for item in self.items)

    @property
    def fingerprint(self) -> str:
        """What changes when the images do: a hash over names, sizes and times of files."""
        lines = [str(self.size), *(f"{item.key}\0{item.stamp}" for item in self.items)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def load(self, index: int) -> Pixels:
        """Return the pixels of one image, uint8 (H, W, 3).

        Raises:
            ImageSetError: it cannot be read; a set with fewer images would be another set.
        """
        loaded = load_item(self.items[index], Preprocessing(size=self.size))
        if isinstance(loaded, ItemError):
            raise ImageSetError(f"{loaded.reason}; mend it or take it out of {self.folder}")
        return loaded[0][1]

    def pick(self, indices: Iterable[int]) -> "ImageSet":
        """Return the set of some of the images, in the order of `indices`."""
        return replace(self, items=tuple(self.items[index] for index in indices))


def open_images(folder: Path, size: int | None = None) -> ImageSet:
    """List the images below a folder.

    Args:
        folder: of images, or of folders of images that are classes.
        size: see `ImageSet`.

    Raises:
        LatentCodecError: the folder does not exist, or holds no image.
    """
    source = open_source(folder, SourceOptions(kind="folder", captions=False))
    items: list[Item] = []
    for found in source.iter_items():
        if isinstance(found, ItemError):
            raise ImageSetError(f"{found.reason}; mend it or take it out of {folder}")
        items.append(found)
    if not items:
        raise ImageSetError(f"found no images in {folder}, expected some; check the path")
    return ImageSet(folder, tuple(items), size)


def common_size(*sets: ImageSet) -> tuple[int, int]:
    """Return the (width, height) of all images of all sets, from their pixels.

    Raises:
        ImageSetError: they differ; figures over features of several sizes mean little.
    """
    first: tuple[int, int] | None = None
    for images in sets:
        for index, pixels in enumerate(images):
            size = (pixels.shape[1], pixels.shape[0])
            first = first or size
            if size != first:
                raise ImageSetError(
                    f"found images of {first[0]}x{first[1]} and of {size[0]}x{size[1]} pixels "
                    f"({images.items[index].source} in {images.folder}), expected one size; give "
                    "--size to compare centre squares"
                )
    assert first is not None
    return first

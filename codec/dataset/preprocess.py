"""From the bytes of an image file to the pixels that are encoded, and what became of them.

The pixels depend on the bytes, the item's key and the settings alone: never on the process, the
order of work or a generator's state.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
import PIL.Image

from codec import images
from codec.console import error_sentence
from codec.dataset.buckets import PreprocessingError, Size, bucket_sizes, nearest_bucket
from codec.dataset.items import Item
from codec.errors import LatentCodecError
from codec.images import MAX_PIXELS, Pixels
from codec.shards.records import ItemError, RecordInfo

__all__ = ["Preprocessing", "PreprocessingError", "center_square", "load_item", "prepare"]

Fit = Literal["crop", "fit"]
CropMode = Literal["center", "random"]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the original

# Pillow first averages blocks of pixels as long as the filter still gets three times those that it
# needs: 16 megapixels to 512x512 take 72 ms instead of 175, and the result is 55 dB apart.
_REDUCING_GAP = 3.0


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What is done with every image.

    Attributes:
        size: Side of the encoded square in pixels, or of the square whose area the buckets have;
            None encodes images as they are.
        fit: "crop" cuts to the wanted shape, then scales; "fit" scales the whole image so that its
            longer side is `size`, without cutting, and leaves smaller ones as they are.
        buckets: Cut each image to the nearest of the shapes of `bucket_sizes`, not to a square.
        bucket_multiple: What the sides of buckets are multiples of.
        crops: Records an image.
        crop_mode: Where the crops lie: "center", or "random" by seed and key.
        min_scale: Of random crops: their least side, in parts of the largest that fits. They are
            never so small that they are scaled up.
        flip: Add a mirrored copy of every crop.
        seed: Of random crops.
        max_pixels: Larger images are errors, found before anything is decoded.
        strict: Images of which something cannot be kept (alpha, further frames) are errors.
    """

    size: int | None = None
    fit: Fit = "crop"
    buckets: bool = False
    bucket_multiple: int = 64
    crops: int = 1
    crop_mode: CropMode = "center"
    min_scale: float = 0.5
    flip: bool = False
    seed: int = 0
    max_pixels: int = MAX_PIXELS
    strict: bool = False

    def __post_init__(self) -> None:
        for name, known in (("fit", Fit), ("crop_mode", CropMode)):
            if getattr(self, name) not in get_args(known):
                raise PreprocessingError(
                    f"found {name}={getattr(self, name)!r}, expected one of "
                    f"{', '.join(get_args(known))}"
                )
        self._check_range("size", self.size is None or 8 <= self.size <= 2**14, "8 to 16384")
        self._check_range("crops", 1 <= self.crops <= 1000, "1 to 1000")
        self._check_range("min_scale", 0 < self.min_scale <= 1, "a number above 0, at most 1")
        self._check_range("bucket_multiple", 8 <= self.bucket_multiple <= 2**10, "8 to 1024")
        self._check_range("max_pixels", 1 <= self.max_pixels <= MAX_PIXELS, f"1 to {MAX_PIXELS}")
        if self.crop_mode == "random" and (self.size is None or self.fit == "fit"):
            raise PreprocessingError(
                "found random crops of images that are encoded whole: give a size to crop to"
            )
        if self.crops > 1 and self.crop_mode == "center":
            raise PreprocessingError(
                f"found {self.crops} crops at the center, which are all the same: expected random "
                "ones, or one"
            )
        if self.buckets:
            if self.size is None or self.fit == "fit":
                raise PreprocessingError(
                    "found buckets for images that are encoded whole: give a size to crop to"
                )
            bucket_sizes(self.size, self.bucket_multiple)

    def _check_range(self, name: str, is_good: bool, expected: str) -> None:
        if not is_good:
            raise PreprocessingError(f"found {name}={getattr(self, name)!r}, expected {expected}")

    def to_mapping(self) -> dict[str, Any]:
        """Returns the settings as plain values, all of them."""
        return asdict(self)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "Preprocessing":
        """Reads what `to_mapping` gave.

        Raises:
            PreprocessingError: A name is unknown or a value out of range.
        """
        unknown = sorted(set(mapping) - {field.name for field in fields(cls)})
        if unknown:
            raise PreprocessingError(
                f"found the unknown preprocessing {', '.join(unknown)}: these settings were "
                "written by a newer version"
            )
        return cls(**mapping)

    def key_endings(self) -> tuple[str, ...]:
        """Returns what is appended to an item's key for each of its records, in their order."""
        crops = ["" if number == 0 else f"@{number}" for number in range(self.crops)]
        flips = ("", "@flip") if self.flip else ("",)
        return tuple(crop + flip for crop in crops for flip in flips)


def load_item(
    item: Item, preprocessing: Preprocessing
) -> list[tuple[RecordInfo, Pixels]] | ItemError:
    """Reads and prepares one item; whatever is wrong with it is returned, never raised.

    This is what worker processes run.
    """
    from codec.dataset.sources import read_item

    try:
        return prepare(read_item(item), item, preprocessing)
    except MemoryError:
        reason = f"{item.source} needs more memory than there is: shrink it, or take fewer workers"
        return ItemError(item.key, item.source, reason)
    except (LatentCodecError, OSError) as error:
        return ItemError(item.key, item.source, error_sentence(error))
    # The one broad clause: among millions of files from anywhere there are some that make a library
    # raise what it never documented, and one image must not end the job of all others.
    except Exception as error:
        reason = f"{item.source} makes its reader fail ({type(error).__name__}: {error})"
        return ItemError(item.key, item.source, " ".join(reason.split()))


def prepare(
    data: bytes, item: Item, preprocessing: Preprocessing
) -> list[tuple[RecordInfo, Pixels]]:
    """Decodes an image file and makes the pixels of its records, uint8 (H, W, 3) sRGB each.

    Args:
        data: The encoded file.
        item: What it is of; errors name its source.
        preprocessing: What to do.

    Raises:
        ImageError: It is empty, truncated, no image, too large, or refused by `strict`.
    """
    stream = io.BytesIO(data)
    stream.name = item.source  # what errors call it
    pixels = images.load(
        stream, strict=preprocessing.strict, max_pixels=preprocessing.max_pixels
    ).pixels
    height, width = pixels.shape[:2]
    endings = iter(preprocessing.key_endings())
    records = []
    for number in range(preprocessing.crops):
        size, box = _place(width, height, preprocessing, item.key, number)
        cut = _cut(pixels, box, size)
        for flip in (False, True) if preprocessing.flip else (False,):
            info = RecordInfo(
                key=item.key + next(endings),
                source=item.source,
                width=width,
                height=height,
                crop=box,
                size=size,
                flip=flip,
                label=item.label,
                caption=item.caption,
            )
            records.append((info, np.ascontiguousarray(cut[:, ::-1]) if flip else cut))
    return records


def center_square(pixels: Pixels, size: int) -> Pixels:
    """Returns the largest square in the middle of uint8 (H, W, 3), scaled to (size, size, 3).

    What `prepare` makes of an image without other settings.
    """
    preprocessing = Preprocessing(size=size)
    shape, box = _place(pixels.shape[1], pixels.shape[0], preprocessing, key="", number=0)
    return _cut(pixels, box, shape)


def _place(
    width: int, height: int, preprocessing: Preprocessing, key: str, number: int
) -> tuple[Size, Box]:
    """Returns the size to encode in and the box of the original that is scaled to it."""
    whole, size = (0, 0, width, height), preprocessing.size
    if size is None:
        return (width, height), whole
    if preprocessing.fit == "fit":
        scale = min(1.0, size / max(width, height))
        return (max(1, round(width * scale)), max(1, round(height * scale))), whole
    target = (size, size)
    if preprocessing.buckets:
        sizes = bucket_sizes(size, preprocessing.bucket_multiple)
        target = nearest_bucket(width, height, sizes)
    scale = min(width / target[0], height / target[1])
    is_random = preprocessing.crop_mode == "random"
    zoom, across, down = _draws(preprocessing.seed, key, number) if is_random else (1.0, 0.0, 0.0)
    least = min(scale, max(1.0, preprocessing.min_scale * scale))
    scale = least + zoom * (scale - least)
    cut_width = min(width, max(1, round(target[0] * scale)))
    cut_height = min(height, max(1, round(target[1] * scale)))
    left, top = (width - cut_width) // 2, (height - cut_height) // 2
    if is_random:
        left, top = int(across * (width - cut_width + 1)), int(down * (height - cut_height + 1))
    return target, (left, top, left + cut_width, top + cut_height)


def _draws(seed: int, key: str, number: int) -> tuple[float, float, float]:
    """Three numbers in [0, 1) that follow from the seed, the key and the crop's number alone.

    A hash, not a generator: no library's next version draws other numbers.
    """
    digest = hashlib.blake2b(f"{seed}\0{number}\0{key}".encode(), digest_size=24).digest()
    first, second, third = (
        (int.from_bytes(digest[start : start + 8], "little") >> 11) / 2**53 for start in (0, 8, 16)
    )
    return first, second, third


def _cut(pixels: Pixels, box: Box, size: Size) -> Pixels:
    """Returns a part of uint8 (H, W, 3), scaled to a (width, height) by an antialiased Lanczos."""
    left, top, right, bottom = box
    part = pixels[top:bottom, left:right]
    if (right - left, bottom - top) == size:
        return np.ascontiguousarray(part)
    picture = PIL.Image.fromarray(part)
    scaled = picture.resize(size, PIL.Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    return np.asarray(scaled)

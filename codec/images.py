"""The only place where pixels are loaded, converted, padded and saved.

Inside the project an image is uint8 (H, W, 3) RGB in sRGB, upright, and opaque unless its alpha
is kept beside it; networks see float32 (3, H, W) in [-1, 1]. `codec.image_files` opens files that
nobody vouches for, `codec.image_modes` converts what was in them, `codec.image_saving` writes.
"""

import glob
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import PIL.Image

from codec.image_files import Decoded, decode_picture, describe, open_picture
from codec.image_metadata import exif_segment, srgb_profile
from codec.image_modes import ImageError, Pixels, composite, convert_array
from codec.image_saving import SAVE_FORMATS, save, to_pil
from codec.metadata import Metadata

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "AlphaMode",
    "Image",
    "ImageError",
    "Pixels",
    "Source",
    "find",
    "flatten",
    "from_unit",
    "load",
    "pad",
    "save",
    "to_picture",
    "to_pil",
    "to_unit",
]

AlphaMode = Literal["composite", "keep"]
Source = str | os.PathLike[str] | bytes | IO[bytes] | PIL.Image.Image | npt.NDArray[Any]

MAX_PIXELS = 2**28  # room for the 200-megapixel photographs of telephones

SUFFIXES = frozenset(SAVE_FORMATS) | {".gif", ".j2k", ".pbm", ".pnm", ".qoi"}


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A loaded image.

    Attributes:
        pixels: uint8 (H, W, 3), RGB in sRGB, C-contiguous; gray has three equal channels.
        is_gray: whether the source had no colour by its mode, and should be saved as gray.
        warnings: sentences about what could not be kept (alpha, further frames, a broken profile).
        alpha: uint8 (H, W), 0 transparent, 255 opaque, where alpha is kept and not all opaque; then
            the pixels are straight colours, not composited.
        metadata: EXIF, colour profile and text, where they are kept.
    """

    pixels: Pixels
    is_gray: bool = False
    warnings: tuple[str, ...] = ()
    alpha: Pixels | None = None
    metadata: Metadata | None = None

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


def load(
    source: Source,
    *,
    strict: bool = False,
    max_pixels: int = MAX_PIXELS,
    alpha: AlphaMode = "composite",
    keep_metadata: bool = False,
) -> Image:
    """Load an image as upright, opaque 8-bit sRGB.

    EXIF orientation is applied, an ICC profile converted to sRGB (perceptual intent), 16-bit gray
    rounded to 8 bits (16-bit colour files lose their low byte in Pillow), palette, CMYK, YCbCr and
    L*a*b* converted, alpha composited over white. Of an animation the first frame is taken.

    Args:
        source: a path, the bytes of a file, a binary file object (a seekable one is read from its
            start, a pipe to its end), a Pillow image (its current frame), or an array: uint8 or
            uint16, (H, W) or (H, W, 1 to 4). A contiguous uint8 (H, W, 3) array is not copied.
        strict: refuse what cannot be kept instead of warning: alpha that is not opaque (unless it
            is kept), animations, and metadata that are malformed or too large (where wanted).
        max_pixels: refuse larger images before decoding them.
        alpha: "keep" to leave colours as they are and give alpha (8 bits) beside them.
        keep_metadata: give EXIF (with the orientation reset), colour profile and text too. Arrays
            have none.

    Raises:
        ImageError: missing, empty, truncated, too large, not an image, or refused by `strict`.
    """
    if alpha not in get_args(AlphaMode):
        raise ImageError(f"found alpha={alpha!r}, expected 'composite' or 'keep'")
    name, keep_alpha = describe(source), alpha == "keep"

    def decode(picture: PIL.Image.Image) -> Decoded:
        return decode_picture(
            picture,
            strict,
            max_pixels,
            name,
            keep_alpha=keep_alpha,
            keep_metadata=keep_metadata,
        )

    if isinstance(source, np.ndarray):
        decoded = Decoded(convert_array(source, name, keep_alpha=keep_alpha))
    elif isinstance(source, PIL.Image.Image):
        decoded = decode(source)
    else:
        with open_picture(source, max_pixels, name) as picture:
            decoded = decode(picture)
    return _finish(decoded, strict, name)


def to_picture(image: Image) -> PIL.Image.Image:
    """Turn an image into a Pillow image with its alpha, and its metadata in `info`.

    There `exif` and `icc_profile` (sRGB's, for the pixels are) have Pillow's meaning; `text` is a
    tuple of keys and values.
    """
    picture = to_pil(image.pixels, image.is_gray, image.alpha)
    if image.metadata is not None:
        if image.metadata.exif is not None:
            picture.info["exif"] = exif_segment(image.metadata.exif)
        if image.metadata.icc_profile is not None and not image.is_gray:
            picture.info["icc_profile"] = srgb_profile()
        if image.metadata.text:
            picture.info["text"] = image.metadata.text
    return picture


def flatten(image: Image) -> Image:
    """Composite an image over white if it has alpha, and add a warning that says so."""
    if image.alpha is None:
        return image
    note = "the image is partly transparent: it was composited over white"
    return replace(
        image,
        pixels=composite(image.pixels, image.alpha),
        alpha=None,
        warnings=(*image.warnings, note),
    )


def pad(pixels: Pixels, multiple: int) -> Pixels:
    """Repeat the last column and row of (H, W, 3) until both sides are multiples of `multiple`."""
    if multiple < 1:
        raise ImageError(f"cannot pad to multiples of {multiple}: give 1 or more")
    bottom, right = -pixels.shape[0] % multiple, -pixels.shape[1] % multiple
    if not bottom and not right:
        return pixels
    return np.pad(pixels, ((0, bottom), (0, right), (0, 0)), mode="edge")


def to_unit(pixels: Pixels) -> npt.NDArray[np.float32]:
    """Convert uint8 (H, W, 3) to float32 (3, H, W) in [-1, 1]: 0 is -1, 255 is 1."""
    unit = np.empty((pixels.shape[2], *pixels.shape[:2]), dtype=np.float32)
    np.divide(pixels.transpose(2, 0, 1), np.float32(127.5), out=unit, dtype=np.float32)
    unit -= 1
    return unit


def from_unit(unit: npt.NDArray[np.floating[Any]]) -> Pixels:
    """Convert floats (3, H, W) to uint8 (H, W, 3): clamp to [-1, 1], round half to even.

    Raises:
        ImageError: a value is not a number, which no clamping can mend.
    """
    if np.isnan(np.min(unit)):
        raise ImageError(
            "the decoded values hold NaN: expected numbers near -1..1, so decode in float32"
        )
    pixels = np.empty((*unit.shape[1:], unit.shape[0]), dtype=np.uint8)
    for channel, plane in enumerate(unit):  # one at a time: a third of the temporary memory
        scaled = (plane.astype(np.float32) + np.float32(1)) * np.float32(127.5)
        pixels[..., channel] = np.rint(np.clip(scaled, 0, 255, out=scaled), out=scaled)
    return pixels


def find(
    paths: Iterable[str | os.PathLike[str]], suffixes: Collection[str] = SUFFIXES
) -> list[Path]:
    """List the files that paths stand for, in their order, each once.

    Args:
        paths: files (whatever their suffix), folders (searched through for `suffixes`, sorted,
            hidden names left out), or patterns with `*`, `?`, `[...]` and `**`.
        suffixes: lower-case endings of wanted files in folders, compared without regard to case.

    Raises:
        ImageError: a path does not exist, or nothing was found for it.
    """
    found: list[Path] = []
    for given in (str(os.fspath(path)) for path in paths):
        is_pattern = glob.has_magic(given) and not os.path.lexists(given)
        matches = sorted(glob.glob(given, recursive=True)) if is_pattern else [given]
        files: list[Path] = []
        for path in map(Path, matches):
            if not path.exists():
                raise ImageError(f"{path} does not exist: check the path")
            files += _search(path, suffixes) if path.is_dir() else [path]
        if not files:
            raise ImageError(
                f"nothing was found for {given}: expected a file, a folder or a pattern that leads"
                f" to files ending in {', '.join(sorted(suffixes))}"
            )
        found += files
    return list(dict.fromkeys(found))


def _search(folder: Path, suffixes: Collection[str]) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _finish(decoded: Decoded, strict: bool, name: str) -> Image:
    converted, notes = decoded.converted, decoded.notes
    if converted.is_transparent and converted.alpha is None:
        if strict:
            raise ImageError(f"{name} is partly transparent: expected an opaque image")
        notes += (f"{name} is partly transparent: it was composited over white",)
    if converted.has_broken_profile:
        notes += (f"{name} has a colour profile that does not work: it is taken as sRGB",)
    return Image(
        converted.pixels, converted.is_gray, notes, converted.alpha, metadata=decoded.metadata
    )

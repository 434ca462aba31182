"""The only place where pixels are loaded, converted, padded and saved.

Inside the project an image is uint8 (H, W, 3) RGB in sRGB, upright and opaque; networks see
float32 (3, H, W) in [-1, 1]. `codec.image_files` opens files that nobody vouches for,
`codec.image_modes` converts what was in them.
"""

import glob
import io
import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import PIL.Image

from codec.image_files import decode_picture, describe, open_picture
from codec.image_modes import Converted, ImageError, Pixels, convert_array
from codec.outputs import atomic_output

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "Image",
    "ImageError",
    "Pixels",
    "Source",
    "find",
    "from_unit",
    "load",
    "pad",
    "save",
    "to_pil",
    "to_unit",
]

Source = str | os.PathLike[str] | bytes | IO[bytes] | PIL.Image.Image | npt.NDArray[Any]

MAX_PIXELS = 2**28  # room for the 200-megapixel photographs of telephones

_SAVE_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".avif": "AVIF",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".jp2": "JPEG2000",
}
_LOSSY_FORMATS = ("JPEG", "WEBP", "AVIF")
_LOSSY_QUALITY = 95
SUFFIXES = frozenset(_SAVE_FORMATS) | {".gif", ".j2k", ".pbm", ".pnm", ".qoi"}


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A loaded image.

    Attributes:
        pixels: uint8 (H, W, 3), RGB in sRGB, C-contiguous; gray has three equal channels.
        is_gray: whether the source had no colour by its mode, and should be saved as gray.
        warnings: sentences about what could not be kept (alpha, further frames, a broken profile).
    """

    pixels: Pixels
    is_gray: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])


def load(source: Source, *, strict: bool = False, max_pixels: int = MAX_PIXELS) -> Image:
    """Load an image as upright, opaque 8-bit sRGB.

    EXIF orientation is applied, an ICC profile converted to sRGB (perceptual intent), 16-bit gray
    rounded to 8 bits (16-bit colour files lose their low byte in Pillow), palette, CMYK, YCbCr and
    L*a*b* converted, alpha composited over white. Of an animation the first frame is taken.

    Args:
        source: a path, the bytes of a file, a binary file object (a seekable one is read from its
            start, a pipe to its end), a Pillow image (its current frame), or an array: uint8 or
            uint16, (H, W) or (H, W, 1 to 4). A contiguous uint8 (H, W, 3) array is not copied.
        strict: refuse alpha that is not opaque, and animations, instead of warning.
        max_pixels: refuse larger images before decoding them.

    Raises:
        ImageError: missing, empty, truncated, too large, not an image, or refused by `strict`.
    """
    name = describe(source)
    if isinstance(source, np.ndarray):
        return _finish(convert_array(source, name), (), strict, name)
    if isinstance(source, PIL.Image.Image):
        return _finish(*decode_picture(source, strict, max_pixels, name), strict, name)
    with open_picture(source, max_pixels, name) as picture:
        return _finish(*decode_picture(picture, strict, max_pixels, name), strict, name)


def save(
    pixels: Pixels,
    target: str | os.PathLike[str] | IO[bytes],
    *,
    is_gray: bool = False,
    format: str | None = None,  # noqa: A002 - Pillow's own name for it
    quality: int | None = None,
) -> None:
    """Save pixels to a file, which appears whole or not at all, or to a binary stream.

    Args:
        pixels: uint8 (H, W, 3) RGB.
        target: a path, or a binary file object (which need not be seekable).
        is_gray: save one channel, the luma of the three.
        format: PNG, JPEG, WEBP, AVIF, TIFF, BMP, PPM or JPEG2000; without it the path's suffix
            decides, and a stream gets PNG.
        quality: 1..100 for JPEG, WEBP and AVIF (95 by default); the other formats are lossless.

    Raises:
        ImageError: unknown format, quality that does not fit, or a file that cannot be written.
    """
    path = Path(target) if isinstance(target, (str, os.PathLike)) else None
    format_name = _save_format(None if path is None else path.suffix, format)
    is_lossy = format_name in _LOSSY_FORMATS
    if quality is not None and not (is_lossy and 1 <= quality <= 100):
        raise ImageError(
            f"quality {quality} does not fit {format_name}: give 1 to 100, and only for"
            f" {', '.join(_LOSSY_FORMATS)}"
        )
    options = {"quality": quality or _LOSSY_QUALITY} if is_lossy else {}
    picture = to_pil(pixels, is_gray)
    try:
        if isinstance(target, (str, os.PathLike)):
            with atomic_output(target) as stream:
                picture.save(stream, format_name, **options)
        else:
            encoded = io.BytesIO()  # several of Pillow's writers seek, which a pipe cannot
            picture.save(encoded, format_name, **options)
            target.write(encoded.getbuffer())
    except (OSError, ValueError) as error:
        raise ImageError(
            f"{describe(target)} cannot be written as {format_name} ({error}): check the folder,"
            " the free space, and whether the format allows this size"
        ) from error


def to_pil(pixels: Pixels, is_gray: bool = False) -> PIL.Image.Image:
    """Turn uint8 (H, W, 3) RGB into a Pillow image of mode RGB, or of mode L with its luma."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ImageError(
            f"the pixels have dtype {pixels.dtype} and shape {pixels.shape}: expected uint8"
            " (height, width, 3) with at least one pixel"
        )
    picture = PIL.Image.fromarray(pixels)
    return picture.convert("L") if is_gray else picture


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


def _finish(converted: Converted, notes: tuple[str, ...], strict: bool, name: str) -> Image:
    if converted.is_transparent and strict:
        raise ImageError(f"{name} is partly transparent: expected an opaque image")
    if converted.is_transparent:
        notes += (f"{name} is partly transparent: it was composited over white",)
    if converted.has_broken_profile:
        notes += (f"{name} has a colour profile that does not work: it is taken as sRGB",)
    return Image(converted.pixels, converted.is_gray, notes)


def _save_format(suffix: str | None, format_name: str | None) -> str:
    """Pillow's name of the format to write."""
    if format_name is None:
        chosen = "PNG" if suffix is None else _SAVE_FORMATS.get(suffix.lower())
    else:
        upper = format_name.upper()
        chosen = (
            upper if upper in _SAVE_FORMATS.values() else _SAVE_FORMATS.get(f".{upper.lower()}")
        )
    if chosen is None:
        raise ImageError(
            f"cannot write an image as {format_name or suffix or 'a file without a suffix'!r}:"
            f" expected {', '.join(_SAVE_FORMATS)}"
        )
    return chosen

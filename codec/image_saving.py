"""Pixels to image files, with alpha and metadata as far as the format holds them."""

import contextlib
import io
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL.Image

from codec.image_files import describe, quiet_pillow
from codec.image_metadata import save_options
from codec.image_modes import ImageError, Pixels, composite
from codec.metadata import Metadata
from codec.outputs import atomic_output

SAVE_FORMATS = {
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
_ALPHA_FORMATS = ("PNG", "WEBP", "AVIF", "TIFF", "JPEG2000")


def save(
    pixels: Pixels,
    target: str | os.PathLike[str] | IO[bytes],
    *,
    is_gray: bool = False,
    format: str | None = None,  # noqa: A002 - Pillow's own name for it
    quality: int | None = None,
    alpha: Pixels | None = None,
    metadata: Metadata | None = None,
) -> tuple[str, ...]:
    """Save pixels to a file, which appears whole or not at all, or to a binary stream.

    Args:
        pixels: uint8 (H, W, 3) RGB.
        target: a path, or a binary file object (which need not be seekable).
        is_gray: save one channel, the luma of the three.
        format: PNG, JPEG, WEBP, AVIF, TIFF, BMP, PPM or JPEG2000; without it the path's suffix
            decides, and a stream gets PNG.
        quality: 1..100 for JPEG, WEBP and AVIF (95 by default); the other formats are lossless.
        alpha: uint8 (H, W). JPEG, BMP and PPM hold none: the pixels are composited over white.
            AVIF's is lossy, like its colours.
        metadata: what the format can hold of it; see `codec.image_metadata`.

    Returns:
        Sentences about what the format could not hold.

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
    options: dict[str, Any] = {"quality": quality or _LOSSY_QUALITY} if is_lossy else {}
    notes: tuple[str, ...] = ()
    if alpha is not None and format_name not in _ALPHA_FORMATS:
        pixels, alpha = composite(pixels, alpha), None
        notes = (f"{format_name} holds no alpha: the picture is composited over white",)
    picture = to_pil(pixels, is_gray, alpha)
    with quiet_pillow() if metadata else contextlib.nullcontext():
        if metadata:
            kept, left_out = save_options(metadata, format_name, is_gray)
            options, notes = options | kept, notes + left_out
        _write(picture, target, format_name, options)
    return notes


def _write(
    picture: PIL.Image.Image,
    target: str | os.PathLike[str] | IO[bytes],
    format_name: str,
    options: dict[str, Any],
) -> None:
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


def to_pil(pixels: Pixels, is_gray: bool = False, alpha: Pixels | None = None) -> PIL.Image.Image:
    """Turn pixels into a Pillow image of mode RGB, or of mode L with their luma; RGBA, LA.

    Args:
        pixels: uint8 (H, W, 3) RGB.
        is_gray: give one channel besides alpha.
        alpha: uint8 (H, W), or None for none.
    """
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise ImageError(
            f"the pixels have dtype {pixels.dtype} and shape {pixels.shape}: expected uint8"
            " (height, width, 3) with at least one pixel"
        )
    picture = PIL.Image.fromarray(pixels)
    if is_gray:
        picture = picture.convert("L")
    if alpha is not None:
        picture.putalpha(PIL.Image.fromarray(alpha))
    return picture


def _save_format(suffix: str | None, format_name: str | None) -> str:
    """Pillow's name of the format to write."""
    if format_name is None:
        chosen = "PNG" if suffix is None else SAVE_FORMATS.get(suffix.lower())
    else:
        upper = format_name.upper()
        chosen = upper if upper in SAVE_FORMATS.values() else SAVE_FORMATS.get(f".{upper.lower()}")
    if chosen is None:
        raise ImageError(
            f"cannot write an image as {format_name or suffix or 'a file without a suffix'!r}:"
            f" expected {', '.join(SAVE_FORMATS)}"
        )
    return chosen

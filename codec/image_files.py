"""Opening and decoding of image files that nobody vouches for.

Only formats with a signature are tried (never PostScript, or a stub that starts another program),
the pixel count is bounded before anything is decoded, and whatever Pillow raises on damaged data
becomes one ImageError. Pillow's own bound and its warnings are settings of the whole process: they
are changed under a lock, and only while a header is read.
"""

import contextlib
import io
import os
import threading
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import PIL.Image

from codec.bitstream import Chunk
from codec.image_metadata import DAMAGED_METADATA, picture_chunks
from codec.image_modes import Converted, ImageError, convert_picture
from codec.metadata import Metadata, read_metadata

_MAX_SIDE = 2**20  # what an .lc header can hold

# Those that Pillow loads by itself come first: a common file then needs no further plugin.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "WEBP", "TIFF", "AVIF", "JPEG2000", "QOI")

_EXIF_ORIENTATION = 0x0112
# What Pillow's readers raise on damaged data; DecompressionBombError is for nested sizes.
_DAMAGE = (
    *DAMAGED_METADATA,
    OSError,
    EOFError,
    OverflowError,
    RuntimeError,  # AVIF
    zlib.error,
    PIL.Image.DecompressionBombError,
)
_pillow_lock = threading.Lock()


@contextlib.contextmanager
def open_picture(
    source: str | os.PathLike[str] | bytes | IO[bytes], max_pixels: int, name: str
) -> Iterator[PIL.Image.Image]:
    """Open an image file and read its header; files opened here are closed at the end.

    Args:
        source: a path, the bytes of a file, or a binary file object (a seekable one is read from
            its start, a pipe to its end).
        max_pixels: refuse a header that claims more, as far as Pillow would allocate by it.
        name: how an error calls the source.

    Raises:
        ImageError: missing, empty, too large, not an image, or a damaged header.
    """
    with _binary_stream(source, name) as stream:
        stream.seek(0)
        if not stream.read(1):
            raise ImageError(f"{name} is empty: expected an image file")
        try:
            with _own_bounds(max_pixels):
                picture = PIL.Image.open(stream, formats=_FORMATS)
        except PIL.UnidentifiedImageError as error:
            raise ImageError(
                f"{name} is not an image, or its header is damaged: expected {', '.join(_FORMATS)}"
            ) from error
        except PIL.Image.DecompressionBombError as error:
            raise _too_large(name, "far more", max_pixels) from error
        except _DAMAGE as error:
            raise _damaged(name, error) from error
        with picture:
            yield picture


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A decoded picture.

    Attributes:
        converted: its pixels.
        metadata: what it says besides, where that was wanted.
        notes: sentences about what could not be kept.
    """

    converted: Converted
    metadata: Metadata | None = None
    notes: tuple[str, ...] = ()


def decode_picture(
    picture: PIL.Image.Image,
    strict: bool,
    max_pixels: int,
    name: str,
    *,
    keep_alpha: bool = False,
    keep_metadata: bool = False,
) -> Decoded:
    """Check the size, decode, and convert to upright sRGB.

    Args:
        picture: a Pillow image, of which the current frame is taken.
        strict: refuse further frames, and metadata that cannot be kept, instead of noting them.
        max_pixels: refuse more before decoding.
        name: how an error calls the picture.
        keep_alpha: see `convert_picture`.
        keep_metadata: collect EXIF, colour profile and text.

    Raises:
        ImageError: too large, truncated or damaged, of an unknown mode, or refused by `strict`.
    """
    width, height = picture.size
    if not 0 < width * height <= max_pixels or max(width, height) > _MAX_SIDE:
        raise _too_large(name, f"{width} x {height}", max_pixels)
    notes = []
    try:
        if _has_frames(picture):
            if strict:
                raise ImageError(f"{name} has several frames: save the wanted one as its own file")
            notes.append(f"{name} has several frames: only frame {picture.tell() + 1} is used")
        # Of the readers, TIFF's alone checks sizes and reads metadata while it decodes. All others
        # decode outside the lock, so that threads can load side by side.
        with _own_bounds(max_pixels) if picture.format == "TIFF" else contextlib.nullcontext():
            picture.load()
        orientation = _orientation(picture, max_pixels)
        if orientation is None:
            notes.append(f"{name} has damaged EXIF data: it is taken as upright")
        converted = convert_picture(picture, orientation or 1, name, keep_alpha=keep_alpha)
        metadata = None
        if keep_metadata:
            metadata, left_out = _metadata(picture, converted.icc_profile, max_pixels, name)
            if strict and left_out:
                raise ImageError(left_out[0])
            notes += left_out
        return Decoded(converted, metadata, tuple(notes))
    except ImageError:
        raise
    except _DAMAGE as error:
        raise _damaged(name, error) from error


def describe(source: object) -> str:
    """How an error calls a source: its path where it has one."""
    if isinstance(source, (str, os.PathLike)):
        return str(os.fspath(source)) or "the empty path"
    if isinstance(source, np.ndarray):
        return "the array"
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return name if name and isinstance(name, str) else "the input"


@contextlib.contextmanager
def _binary_stream(
    source: str | os.PathLike[str] | bytes | IO[bytes], name: str
) -> Iterator[IO[bytes]]:
    """A seekable stream over the data of a source."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        try:
            stream = open(source, "rb")  # noqa: SIM115 - only opening is guarded, not the `with`
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            reason = getattr(error, "strerror", None) or error
            if isinstance(error, (IsADirectoryError, PermissionError)) and os.path.isdir(source):
                reason = "it is a folder"
            raise ImageError(
                f"{name} cannot be opened ({reason}): give the path of an image file"
            ) from error
        with stream:
            yield stream
    elif hasattr(source, "read") and source.read(0) == b"":
        yield source if source.seekable() else io.BytesIO(source.read())
    else:
        raise ImageError(
            f"{name} of type {type(source).__name__} holds no image: expected a path, bytes, a"
            " binary file object, a Pillow image or an array"
        )


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Silence Pillow's warnings, which are a setting of the whole process."""
    with _pillow_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _own_bounds(max_pixels: int) -> Iterator[None]:
    """Put our pixel bound in the place of Pillow's, and silence its warnings."""
    with quiet_pillow():
        bound = PIL.Image.MAX_IMAGE_PIXELS
        PIL.Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = bound


def _has_frames(picture: PIL.Image.Image) -> bool:
    # A JPEG of format MPO is one photograph with auxiliary views, not an animation.
    return picture.format != "MPO" and bool(getattr(picture, "is_animated", False))


def _orientation(picture: PIL.Image.Image, max_pixels: int) -> int | None:
    """EXIF orientation of a decoded picture (TIFF's is turned by then), None where damaged."""
    try:
        with _own_bounds(max_pixels):
            orientation = picture.getexif().get(_EXIF_ORIENTATION, 1)
    except DAMAGED_METADATA:
        return None
    return orientation if isinstance(orientation, int) else None


def _metadata(
    picture: PIL.Image.Image, icc_profile: bytes | None, max_pixels: int, name: str
) -> tuple[Metadata | None, tuple[str, ...]]:
    chunks: list[Chunk] = []
    notes: tuple[str, ...] = ()
    try:
        with _own_bounds(max_pixels):
            chunks.extend(picture_chunks(picture, icc_profile))
    except DAMAGED_METADATA:
        notes = (f"{name} has metadata that cannot be read: they are left out",)
    metadata, left_out = read_metadata(chunks, name)
    return metadata, notes + left_out


def _damaged(name: str, error: BaseException) -> ImageError:
    return ImageError(f"{name} is truncated or damaged ({error}): expected a complete image file")


def _too_large(name: str, size: str, max_pixels: int) -> ImageError:
    return ImageError(
        f"{name} claims {size} pixels: expected 1 to {max_pixels:,} in all and at most"
        f" {_MAX_SIDE:,} a side, so cut or shrink it first"
    )

"""Decoded pictures of every Pillow mode, profile and orientation become upright sRGB pixels.

Pillow keeps RGB in four bytes a pixel, and each of its whole-image steps (convert, transpose,
composite, colour transform) makes one more such copy. Here a picture is converted one strip of rows
after another, straight into the array that is handed out; the orientation is undone by writing
through a strided view. The peak is Pillow's picture and the result, whatever has to be done.

Legend: h w rows and columns of a strip, H W of the whole image.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL.Image
from PIL import ImageCms

from codec.errors import LatentCodecError

Pixels = npt.NDArray[np.uint8]

_STRIP_PIXELS = 2**20
_SCALE_HINT = "give 8- or 16-bit integers, or scale the values to 0..255 and convert to uint8"
_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")
_GRAY_MODES = ("1", "L", "LA", "La", *_SIXTEEN_BIT_MODES)
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
_TIFF_BITS_PER_SAMPLE = 258

# The colour space in an ICC header (ICC.1:2022, table 19) -> the Pillow mode that feeds it.
_PROFILE_MODES = {"GRAY": "L", "RGB ": "RGB", "CMYK": "CMYK"}

# EXIF orientation -> a view of the upright image with the rows and columns of the stored one.
_STORED_VIEWS: Mapping[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


class ImageError(LatentCodecError):
    """An image that cannot be read, converted or written; the message names it and says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Converted:
    """What became of a picture.

    Attributes:
        pixels: uint8 (H, W, 3), upright sRGB.
        is_gray: whether the picture had no colour by its mode.
        is_transparent: whether any pixel was not opaque (without `alpha`, it is composited over
            white).
        has_broken_profile: whether an ICC profile was found that does not work or does not fit.
        alpha: uint8 (H, W), where it was to be kept and the picture is transparent.
        icc_profile: the profile that the picture was converted from, empty where that was sRGB
            under any name; None where none was found, or a broken one.
    """

    pixels: Pixels
    is_gray: bool
    is_transparent: bool = False
    has_broken_profile: bool = False
    alpha: Pixels | None = None
    icc_profile: bytes | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Profile:
    """What an ICC profile asks for: a transform to sRGB, unless it is sRGB or broken."""

    transform: ImageCms.ImageCmsTransform | None = None
    is_broken: bool = False
    kept: bytes | None = None


def convert_picture(
    picture: PIL.Image.Image, orientation: int, name: str, *, keep_alpha: bool = False
) -> Converted:
    """Convert a decoded picture.

    Args:
        picture: a loaded Pillow image of any integer mode.
        orientation: EXIF orientation, 1..8; anything else counts as upright.
        name: how an error calls the picture.
        keep_alpha: give colours and alpha apart, instead of compositing over white.

    Raises:
        ImageError: the mode is unknown or floating point, or integers lie outside 0..65535.
    """
    if picture.mode not in _GRAY_MODES + _COLOUR_MODES:
        raise ImageError(f"{name} has pixels of Pillow mode {picture.mode!r}: {_SCALE_HINT} first")
    is_gray = picture.mode in _GRAY_MODES
    profile = _read_profile(picture)
    maximum = _sixteen_bit_maximum(picture)
    width, height = picture.size
    turn = _STORED_VIEWS.get(orientation, _STORED_VIEWS[1])
    upright = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
    pixels = np.empty((*upright, 3), dtype=np.uint8)
    plane: Pixels | None = None
    is_transparent = False
    for rows in strips(height, width):
        strip = picture.crop((0, rows.start, width, rows.stop))
        colour, alpha = _split_alpha(strip, maximum, name)
        values = _to_srgb(colour, profile.transform, is_gray)
        if alpha is not None:
            is_transparent |= bool(alpha.min() < 255)
            if keep_alpha:
                plane = np.empty(upright, dtype=np.uint8) if plane is None else plane
                turn(plane)[rows] = alpha[..., 0]
            else:
                values = _over_white(values, alpha)
        turn(pixels)[rows] = values
    return Converted(
        pixels,
        is_gray,
        is_transparent,
        profile.is_broken,
        plane if is_transparent else None,
        profile.kept,
    )


def convert_array(array: npt.NDArray[Any], name: str, *, keep_alpha: bool = False) -> Converted:
    """Convert an array of pixels that are sRGB already.

    Args:
        array: uint8 or uint16 (0..65535), (H, W) or (H, W, channels) with 1 channel (gray),
            2 (gray and alpha), 3 (RGB) or 4 (RGB and alpha). C-contiguous uint8 RGB is not copied.
        name: how an error calls the array.
        keep_alpha: give colours and alpha apart, instead of compositing over white.

    Raises:
        ImageError: another shape or dtype.
    """
    if array.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{name} has dtype {array.dtype}: {_SCALE_HINT}")
    planes = array[..., None] if array.ndim == 2 else array
    if planes.ndim != 3 or planes.shape[2] not in (1, 2, 3, 4) or planes.size == 0:
        raise ImageError(
            f"{name} has shape {array.shape}: expected (height, width) or (height, width, channels)"
            " with 1 to 4 channels and at least one pixel, so move the channels last"
        )
    height, width, channels = planes.shape
    is_gray = channels < 3
    if planes.dtype == np.uint8 and channels == 3:
        return Converted(np.ascontiguousarray(planes), is_gray)
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    plane = np.empty((height, width), dtype=np.uint8) if keep_alpha and channels in (2, 4) else None
    is_transparent = False
    for rows in strips(height, width):
        values = planes[rows]
        if values.dtype == np.uint16:
            values = _to_eight_bits(values)
        if channels in (2, 4):
            values, alpha = values[..., :-1], values[..., -1:]
            is_transparent |= bool(alpha.min() < 255)
            if plane is None:
                values = _over_white(values, alpha)
            else:
                plane[rows] = alpha[..., 0]
        pixels[rows] = values
    return Converted(pixels, is_gray, is_transparent, alpha=plane if is_transparent else None)


def composite(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Composites (H, W, 3) with alpha (H, W) over white."""
    flat = np.empty_like(pixels)
    for rows in strips(*alpha.shape):
        flat[rows] = _over_white(pixels[rows], alpha[rows][..., None])
    return flat


def strips(height: int, width: int) -> Iterator[slice]:
    """Row ranges of about a megapixel each."""
    step = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, step):
        yield slice(top, min(top + step, height))


def _split_alpha(
    strip: PIL.Image.Image, maximum: int, name: str
) -> tuple[PIL.Image.Image, Pixels | None]:
    """Colour of mode L, RGB or CMYK, and alpha (h, w, 1) where the picture has any."""
    transparency = strip.info.get("transparency")
    if strip.mode in _SIXTEEN_BIT_MODES:
        values = np.asarray(strip)
        if values.min() < 0 or values.max() > maximum:
            raise ImageError(
                f"{name} has pixel values from {values.min()} to {values.max()}, outside"
                f" 0..{maximum}: {_SCALE_HINT}"
            )
        colour = PIL.Image.fromarray(_to_eight_bits(values, maximum))
        if transparency is None:
            return colour, None
        alpha = np.where(values == transparency, 0, 255).astype(np.uint8)
        return colour, alpha[..., None]
    is_gray = strip.mode in _GRAY_MODES
    if strip.has_transparency_data:
        # Premultiplied La only converts to LA; every other mode reaches LA or RGBA directly.
        with_alpha = strip.convert("LA" if is_gray else "RGBA")
        alpha = np.asarray(with_alpha.getchannel("A"))[..., None]
        return with_alpha.convert("L" if is_gray else "RGB"), alpha
    if is_gray:
        return strip.convert("L"), None
    return strip if strip.mode in ("RGB", "CMYK") else strip.convert("RGB"), None


def _to_srgb(
    colour: PIL.Image.Image, transform: ImageCms.ImageCmsTransform | None, is_gray: bool
) -> Pixels:
    """sRGB values (h, w, 3), or (h, w, 1) for gray."""
    if transform is not None:
        colour = transform.apply(colour.convert(transform.input_mode))
        # A neutral colour stays neutral to within a rounding step; green weighs most in luma.
        colour = colour.getchannel("G") if is_gray else colour
    values = np.asarray(colour.convert("L" if is_gray else "RGB"))
    return values[..., None] if is_gray else values


def _over_white(values: Pixels, alpha: Pixels) -> Pixels:
    """Composite (h, w, channels) over white with alpha (h, w, 1), rounded; exact in 16 bits."""
    weight = alpha.astype(np.uint16)
    blended = (values * weight + (255 - weight) * np.uint16(255) + np.uint16(127)) // np.uint16(255)
    return blended.astype(np.uint8)


def _to_eight_bits(values: npt.NDArray[Any], maximum: int = 65535) -> Pixels:
    """Scale 0..maximum to 0..255, rounded: for 65535 this is round(value / 257)."""
    scaled = (values.astype(np.uint32) * np.uint32(255) + np.uint32(maximum // 2)) // maximum
    return scaled.astype(np.uint8)


def _sixteen_bit_maximum(picture: PIL.Image.Image) -> int:
    """White of a 16-bit mode: Pillow unpacks 12-bit TIFF samples into one without scaling them."""
    bits = getattr(picture, "tag_v2", {}).get(_TIFF_BITS_PER_SAMPLE)
    return 4095 if bits == (12,) else 65535


def _read_profile(picture: PIL.Image.Image) -> _Profile:
    """Reads the embedded ICC profile."""
    embedded = picture.info.get("icc_profile")
    if embedded is None or picture.mode == "LAB":  # L*a*b* needs no profile
        return _Profile()
    fitting = {"CMYK"} if picture.mode == "CMYK" else {"RGB"}
    if picture.mode in _GRAY_MODES:
        fitting = {"L", "RGB"}  # gray JPEGs often carry the camera's RGB profile
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
        mode = _PROFILE_MODES.get(profile.profile.xcolor_space)
        if mode is None or mode not in fitting:
            return _Profile(is_broken=True)
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.ImageCmsTransform(
            profile, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL
        )
    except (OSError, TypeError, ValueError, ImageCms.PyCMSError):
        return _Profile(is_broken=True)
    return _Profile(kept=b"") if _is_identity(transform) else _Profile(transform, kept=embedded)


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a profile is sRGB in all but name: it moves no probe colour by more than one level.

    Such profiles come in dozens of editions; converting through one would cost time and add
    rounding noise for nothing.
    """
    if transform.input_mode == "CMYK":
        return False
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(levels.size, -1, 3)
    if transform.input_mode == "L":
        grid = np.repeat(levels[None, :, None], 3, axis=2)
    probe = PIL.Image.fromarray(np.ascontiguousarray(grid)).convert(transform.input_mode)
    moved = np.asarray(transform.apply(probe)).astype(np.int16) - grid
    return bool(np.abs(moved).max() <= 1)

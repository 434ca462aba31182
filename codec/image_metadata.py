"""Metadata between Pillow's pictures and optional chunks: what a file had, what a format can hold.

Which formats hold what: EXIF in JPEG, PNG, WebP, AVIF and TIFF (there the descriptive tags); a
colour profile in the same; text in PNG, and one piece, the comment, in JPEG and JPEG 2000.
"""

import functools
import io
import struct
from collections.abc import Iterator
from typing import Any

import PIL.Image
from PIL import ImageCms
from PIL.PngImagePlugin import PngInfo

from codec.bitstream import Chunk
from codec.metadata import EXIF_KIND, PROFILE_KIND, Metadata, text_chunk

# What Pillow raises on malformed metadata; it has no error of its own for them.
DAMAGED_METADATA = (
    *(SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    struct.error,
)

COMMENT = "Comment"  # PNG's keyword for what JPEG and GIF call so too

_PREFIX = b"Exif\0\0"
_RAW_EXIF = "Raw profile type exif"  # how ImageMagick once stored EXIF in PNG files
_EXIF_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF")
_PROFILE_FORMATS = _EXIF_FORMATS
_COMMENT_FORMATS = ("JPEG", "JPEG2000")
_DATE = slice(24, 36)  # of an ICC profile (ICC.1:2022, table 17)

# A TIFF file's tags describe its layout as well; these do not. Description, maker, model,
# resolution, software, date, artist, computer, copyright, Exif and GPS directories.
_DIRECTORIES = (0x8769, 0x8825)
_DESCRIPTIVE = (
    *(0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x013C, 0x8298),
    *_DIRECTORIES,
)
_OFFSET = 0xA005  # of the interoperability directory: Pillow gives it as a number


def picture_chunks(picture: PIL.Image.Image, icc_profile: bytes | None) -> Iterator[Chunk]:
    """Yields chunks for the metadata of a decoded picture, unchecked.

    Args:
        picture: A loaded picture, of its own Pillow class where it came from a file.
        icc_profile: See `codec.image_modes.Converted`.

    Raises:
        One of `DAMAGED_METADATA`, which says nothing about the chunks before it.
    """
    if icc_profile is not None:
        yield Chunk(PROFILE_KIND, icc_profile)
    texts = getattr(picture, "text", None)
    if isinstance(texts, dict):
        for key, value in texts.items():
            if key != _RAW_EXIF:
                yield text_chunk(key, value)
    else:
        comment = picture.info.get("comment")
        comment = _decoded(comment) if isinstance(comment, bytes) else comment
        if isinstance(comment, str) and comment:
            yield text_chunk(COMMENT, comment)
    if exif := _exif(picture):
        yield Chunk(EXIF_KIND, exif)


def save_options(
    metadata: Metadata, format_name: str, is_gray: bool
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns options of Pillow's `save`, and sentences about what the format cannot hold.

    Args:
        metadata: From a file that nobody vouches for.
        format_name: Pillow's name.
        is_gray: A gray picture gets no profile: sRGB's is one for colours.
    """
    options: dict[str, Any] = {}
    notes = []
    if metadata.exif is not None:
        exif = _exif_option(metadata.exif, format_name)
        if exif is not None:
            options["exif"] = exif
        else:
            notes.append(f"{format_name} cannot hold the EXIF data of the file: left out")
    if metadata.icc_profile is not None and not is_gray and format_name in _PROFILE_FORMATS:
        options["icc_profile"] = srgb_profile()
    texts, comment = list(metadata.text), dict(metadata.text).get(COMMENT)
    if texts and format_name == "PNG":
        options["pnginfo"] = PngInfo()
        for key, value in texts:
            options["pnginfo"].add_text(key, value)
    elif comment is not None and format_name in _COMMENT_FORMATS:
        options["comment"] = comment.encode()
        texts.remove((COMMENT, comment))
    if texts and format_name != "PNG":
        notes.append(f"{format_name} cannot hold {len(texts)} pieces of text of the file: left out")
    return options, tuple(notes)


@functools.cache
def srgb_profile() -> bytes:
    """Returns an ICC profile of sRGB, the colours of every decoded picture."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # The time of its making would make every file another one.
    profile[_DATE] = struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
    return bytes(profile)


def exif_segment(exif: bytes) -> bytes:
    """Returns EXIF data with the prefix that they have in JPEG files and in Pillow's `info`."""
    return _PREFIX + exif


def _exif(picture: PIL.Image.Image) -> bytes | None:
    """The EXIF block, as the file had it where that is not a TIFF file."""
    embedded = picture.info.get("exif")
    if isinstance(embedded, bytes):
        return embedded
    if isinstance(raw := picture.info.get(_RAW_EXIF), str):
        return bytes.fromhex("".join(raw.split("\n")[3:]))
    return _descriptive(picture.getexif())


def _descriptive(tags: PIL.Image.Exif) -> bytes | None:
    """An EXIF block of the descriptive tags; None where there are none."""
    chosen = PIL.Image.Exif()
    for tag in _DESCRIPTIVE:
        if tag in _DIRECTORIES:
            directory = tags.get_ifd(tag)
            if directory:
                chosen[tag] = {key: directory[key] for key in directory if key != _OFFSET}
        elif tag in tags:
            chosen[tag] = tags[tag]
    return chosen.tobytes() if chosen else None


def _exif_option(exif: bytes, format_name: str) -> bytes | None:
    """What Pillow takes as `exif`; None where the format cannot hold it, or Pillow stumbles.

    Pillow takes tags apart while it writes AVIF and TIFF, and while it opens JPEG, and not every
    error of odd ones is caught there. So a picture of one pixel goes first.
    """
    if format_name not in _EXIF_FORMATS:
        return None
    try:
        tags = PIL.Image.Exif()
        tags.load(exif)
        option = _descriptive(tags) if format_name == "TIFF" else exif_segment(exif)
        trial = io.BytesIO()
        PIL.Image.new("RGB", (1, 1)).save(trial, format_name, exif=option or b"")
        PIL.Image.open(trial).load()
    except (OSError, *DAMAGED_METADATA):
        return None
    return option


def _decoded(comment: bytes) -> str:
    """Text of a comment, which is UTF-8 in new files and Latin-1 in old ones."""
    comment = comment.rstrip(b"\0")
    try:
        return comment.decode()
    except UnicodeDecodeError:
        return comment.decode("latin-1")

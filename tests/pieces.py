"""Metadata that several test files give to pictures and files."""

import PIL.Image
from PIL.PngImagePlugin import PngInfo

from codec import bitstream
from codec.bitstream import Chunk

ORIENTATION, MAKE, EXIF_IFD, GPS_IFD, TAKEN = 0x0112, 0x010F, 0x8769, 0x8825, 0x9003


def camera_exif(orientation: int = 1) -> PIL.Image.Exif:
    tags = PIL.Image.Exif()
    tags[ORIENTATION] = orientation
    tags[MAKE] = "A maker of cameras"
    tags.get_ifd(EXIF_IFD)[TAKEN] = "2024:05:06 07:08:09"
    tags[EXIF_IFD] = tags.get_ifd(EXIF_IFD)
    tags.get_ifd(GPS_IFD)[1] = "N"
    tags[GPS_IFD] = tags.get_ifd(GPS_IFD)
    return tags


def texts(*pairs: tuple[str, str]) -> PngInfo:
    info = PngInfo()
    for key, value in pairs:
        info.add_text(key, value)
    return info


def with_chunks(data: bytes, *chunks: Chunk) -> bytes:
    file = bitstream.loads(data)
    return bitstream.dumps(bitstream.LatentFile(file.header, file.payload, chunks))

"""Other people's codecs, to stand beside ours at the same size."""

from dataclasses import dataclass

from codec import images
from eval.file_codecs import JPEG

MAX_JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class JpegFile:
    """A JPEG file in memory.

    Attributes:
        data: the bytes of the file.
        quality: what it was saved with, 1 to 95.
    """

    data: bytes
    quality: int


def jpeg_at_size(image: images.Image, size_bytes: int) -> JpegFile:
    """Return the best JPEG of at most `size_bytes`, or the smallest there is if none is that small.

    Huffman tables are optimised and scans progressive, which is the smallest that JPEG can be.
    """
    best = _jpeg(image, 1)
    low, high = 2, MAX_JPEG_QUALITY
    while low <= high:  # size grows with quality
        candidate = _jpeg(image, (low + high) // 2)
        if len(candidate.data) <= size_bytes:
            best, low = candidate, candidate.quality + 1
        else:
            high = candidate.quality - 1
    return best


def _jpeg(image: images.Image, quality: int) -> JpegFile:
    return JpegFile(JPEG.encode(image, quality), quality)

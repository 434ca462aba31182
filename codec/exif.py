"""EXIF blocks that nobody vouches for: checked, turned upright, freed of their thumbnail.

A block is a TIFF file without a picture (CIPA DC-008-2019): a header, a directory of tags (IFD0),
and directories below it (Exif, GPS, interoperability). It is changed in place, so that every value
keeps its offset, which the notes of some camera makers rely on.
"""

import struct
from dataclasses import dataclass

from codec.bitstream import BitstreamError

MAX_BYTES = 65_520  # what a segment of a JPEG file has room for, with a prefix

_PREFIX = b"Exif\0\0"  # stands before the block in JPEG files, not in others
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_HEADER_BYTES = 8
_ENTRY_BYTES = 12

_ORIENTATION = 0x0112
_SHORT = 3
_UPRIGHT = 1
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}

# Tags that lead to a further directory, and those that may stand there.
_Pointers = dict[int, "_Pointers"]
_POINTERS: _Pointers = {0x8769: {0xA005: {}}, 0x8825: {}}


class ExifError(BitstreamError):
    """An EXIF block is malformed or too large."""


def clean_exif(data: bytes) -> bytes:
    """Checks an EXIF block and prepares it for pixels that are upright.

    Its orientation becomes 1, and what follows the last byte that its tags refer to is cut off. A
    camera's thumbnail lies there: it shows the picture as it was before anybody cropped it.

    Args:
        data: TIFF bytes, with or without the prefix that JPEG files have.

    Raises:
        ExifError: A header, directory or value lies outside the block, a directory comes twice, or
            more than `MAX_BYTES` remain.
    """
    block = bytearray(data.removeprefix(_PREFIX))
    order = _ORDERS.get(bytes(block[:4]))
    if order is None or len(block) < _HEADER_BYTES:
        raise ExifError(
            f"EXIF data begin with {bytes(block[:4])!r}; expected the header of a TIFF file"
        )
    walker = _Walker(block, order)
    next_place = walker.walk(walker.take("I", 4), _POINTERS, is_first=True)
    struct.pack_into(f"{order}I", block, next_place, 0)  # IFD1, the thumbnail's
    if walker.end > MAX_BYTES:
        raise ExifError(f"EXIF data have {walker.end} bytes; expected at most {MAX_BYTES}")
    return bytes(block[: walker.end])


@dataclass(slots=True)
class _Walker:
    """Goes through the directories of a block once, and remembers how far they reach."""

    block: bytearray
    order: str
    end: int = _HEADER_BYTES

    def walk(self, start: int, pointers: _Pointers, *, is_first: bool = False) -> int:
        """Checks a directory and those below it; returns where its link to the next one stands."""
        if start < _HEADER_BYTES:
            raise ExifError(f"an EXIF directory begins at byte {start}; expected 8 or more")
        first_entry = start + 2
        after = first_entry + _ENTRY_BYTES * self.take("H", start)
        followed = set()
        for place in range(first_entry, after, _ENTRY_BYTES):
            tag, kind, count = (
                self.take(code, place + at) for code, at in (("H", 0), ("H", 2), ("I", 4))
            )
            if is_first and tag == _ORIENTATION:
                self.take("I", place + 8)  # the entry is all there
                entry = (tag, _SHORT, 1, _UPRIGHT, 0)
                struct.pack_into(f"{self.order}HHIHH", self.block, place, *entry)
                continue
            size_bytes = count * _TYPE_BYTES.get(kind, 0)
            if size_bytes > 4:
                self._reach(self.take("I", place + 8) + size_bytes)
            if tag in pointers:
                if tag in followed:  # each once, or a small block would cost much time
                    raise ExifError(f"EXIF data have the directory {tag:#06x} twice; expected one")
                followed.add(tag)
                self.walk(self.take("I", place + 8), pointers[tag])
        self.take("I", after)
        return after

    def take(self, code: str, place: int) -> int:
        self._reach(place + struct.calcsize(f"={code}"))
        return int(struct.unpack_from(f"{self.order}{code}", self.block, place)[0])

    def _reach(self, end: int) -> None:
        if end > len(self.block):
            raise ExifError(
                f"EXIF data refer to byte {end - 1}; expected at most {len(self.block) - 1}, their "
                "last one"
            )
        self.end = max(self.end, end)

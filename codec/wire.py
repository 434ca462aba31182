"""Numbers and bytes of an `.lc` file, and one error for each way that they can be wrong.

`FORMAT.md` beside this file is the specification; `codec.bitstream` is what others import.
"""

from dataclasses import dataclass
from typing import BinaryIO

from codec.errors import LatentCodecError

MAX_UINT32 = 2**32 - 1
AGAIN = "copy, download or write it again"

_MAX_VARINT_BYTES = 5
_PIECE_BYTES = 2**18  # one read() may allocate what it is asked for, so ask for little


class BitstreamError(LatentCodecError):
    """An `.lc` file cannot be read, or what should become one does not fit the format."""


class NotLatentFileError(BitstreamError):
    """The bytes do not begin like an `.lc` file."""


class NewerVersionError(BitstreamError):
    """The file has a version of the format that this release does not know."""


class TruncatedFileError(BitstreamError):
    """The file ends before it is complete."""


class CorruptFileError(BitstreamError):
    """A checksum or the arrangement of the chunks is wrong."""


class InvalidHeaderError(BitstreamError):
    """A value in the header is malformed, out of bounds or unknown."""


class InvalidTablesError(BitstreamError):
    """The tables that travel in the file are malformed."""


class UnknownChunkError(BitstreamError):
    """The file has a chunk that is needed to decode it and that this release does not know."""


@dataclass(slots=True)
class Reader:
    """Takes bytes off a stream and knows which error fits the place that it reads from.

    Attributes:
        stream: May give fewer bytes than it is asked for.
        place: What the errors call it.
        ended: Raised where it ends early.
        malformed: Raised for a number in another form than the one that is valid.
        position: Bytes taken so far.
    """

    stream: BinaryIO
    place: str = "file"
    ended: type[BitstreamError] = TruncatedFileError
    malformed: type[BitstreamError] = CorruptFileError
    position: int = 0

    def take(self, size: int, what: str) -> bytes:
        """Returns the next `size` bytes; memory grows with those that arrive."""
        taken = bytearray()
        while len(taken) < size:
            piece = self.stream.read(min(size - len(taken), _PIECE_BYTES))
            if not piece:
                raise self.ended(
                    f"the {self.place} ends after {self.position} bytes, "
                    f"before the end of its {what}; {AGAIN}"
                )
            taken += piece
            self.position += len(piece)
        return bytes(taken)

    def take_byte(self, what: str) -> int:
        """Returns the next byte as a number."""
        return self.take(1, what)[0]

    def take_varint(self, what: str) -> int:
        """Returns the next number, refusing all but its shortest form."""
        value = 0
        for index in range(_MAX_VARINT_BYTES):
            byte = self.take_byte(what)
            value |= (byte & 0x7F) << (7 * index)
            if byte < 0x80:
                break
        if byte >= 0x80 or value > MAX_UINT32 or (byte == 0 and index > 0):
            raise self.malformed(
                f"the {self.place}'s {what} is not a 32-bit number in its shortest form; {AGAIN}"
            )
        return value


def encode_varint(value: int) -> bytes:
    """Returns a number of at most 32 bits in its shortest form, low bits first."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)

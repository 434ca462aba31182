"""What a picture says besides its pixels, as optional chunks: EXIF, its colour profile, text.

The same checks serve a writer, whose picture comes from anywhere, and a reader, whose file does:
pieces that are malformed or beyond their bounds are left out, each kind with a sentence. Text is
never part of such a sentence, so control characters in it reach no terminal. `FORMAT.md` beside
this file specifies the chunks.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from codec.bitstream import BitstreamError, Chunk
from codec.exif import clean_exif

EXIF_KIND = "eXIF"
PROFILE_KIND = "iCCP"
TEXT_KIND = "tEXT"

MAX_PROFILE_BYTES = 2**18
MAX_TEXTS = 48
MAX_KEY_CHARACTERS = 79
MAX_VALUE_BYTES = 65_520  # what a JPEG or JPEG 2000 comment has room for
MAX_BYTES = 2**20  # of all these chunks' bodies

_NAMES = {EXIF_KIND: "EXIF data", PROFILE_KIND: "a colour profile", TEXT_KIND: "text"}
# PNG's keywords (PNG specification, third edition, 11.3.3.1): printable Latin-1, single spaces.
_KEY = re.compile(r"[!-~\xa1-\xff]+(?: [!-~\xa1-\xff]+)*")
# Programs read an orientation, or whole EXIF blocks, from text under these keys.
_OTHER_KEYS = re.compile(r"XML:com\.adobe\.xmp|Raw profile type .*", re.IGNORECASE)
_PROFILE_MARK = slice(36, 40)  # "acsp" (ICC.1:2022, 7.2.11)


class MetadataError(BitstreamError):
    """A piece of metadata is malformed or too large."""


@dataclass(frozen=True, slots=True)
class Metadata:
    """Metadata of one picture, well-formed and within bounds.

    Attributes:
        exif: TIFF bytes as `codec.exif.clean_exif` returns them; None for none.
        icc_profile: The profile that the picture had before it was converted to sRGB, empty where
            that was sRGB already; for information, as the pixels do not follow it. None for none.
        text: Keys and values, in the order of the file; a key may repeat.

    Raises:
        BitstreamError: A piece is malformed, or there is too much.
    """

    exif: bytes | None = None
    icc_profile: bytes | None = None
    text: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.exif is not None and clean_exif(self.exif) != self.exif:
            raise MetadataError("found EXIF data as a camera wrote them; pass them to clean_exif")
        if self.icc_profile is not None:
            _check_profile(self.icc_profile)
        for key, value in self.text:
            _check_text(key, value)
        if len(self.text) > MAX_TEXTS:
            raise MetadataError(
                f"found {len(self.text)} pieces of text; expected at most {MAX_TEXTS}"
            )
        total = sum(len(chunk.body) for chunk in self.chunks())
        if total > MAX_BYTES:
            raise MetadataError(f"found {total} bytes of metadata; expected at most {MAX_BYTES}")

    def chunks(self) -> tuple[Chunk, ...]:
        """Returns the optional chunks that hold all this."""
        chunks = [] if self.exif is None else [Chunk(EXIF_KIND, self.exif)]
        if self.icc_profile is not None:
            chunks.append(Chunk(PROFILE_KIND, self.icc_profile))
        return (*chunks, *(text_chunk(key, value) for key, value in self.text))


def text_chunk(key: str, value: str) -> Chunk:
    """Returns the chunk for a piece of text, unchecked."""
    return Chunk(TEXT_KIND, f"{key}\0{value}".encode("utf-8", "surrogatepass"))


def read_metadata(chunks: Iterable[Chunk], name: str) -> tuple[Metadata | None, tuple[str, ...]]:
    """Collects metadata from chunks, of a file or of what shall become one.

    Args:
        chunks: Chunks of any kind; those without metadata are passed over.
        name: How a sentence calls the picture or file.

    Returns:
        The metadata, None where there are none; and a sentence for each kind of which something
        was left out.
    """
    metadata = Metadata()
    left_out: dict[str, BitstreamError] = {}
    for chunk in chunks:
        try:
            metadata = _added(metadata, chunk)
        except BitstreamError as error:
            left_out.setdefault(chunk.kind, error)
    return (None if metadata == Metadata() else metadata), tuple(
        f"{name} has {_NAMES[kind]} that cannot be kept: {error}"
        for kind, error in left_out.items()
    )


def _added(metadata: Metadata, chunk: Chunk) -> Metadata:
    """The metadata with what one chunk adds."""
    if chunk.kind == EXIF_KIND:
        _check_first(metadata.exif)
        return replace(metadata, exif=clean_exif(chunk.body))
    if chunk.kind == PROFILE_KIND:
        _check_first(metadata.icc_profile)
        return replace(metadata, icc_profile=chunk.body)
    if chunk.kind == TEXT_KIND:
        # What is too long would be decoded for nothing; a key has at most two bytes a character.
        if len(chunk.body) > 2 * MAX_KEY_CHARACTERS + 1 + MAX_VALUE_BYTES:
            raise _too_long()
        key, found, value = chunk.body.partition(b"\0")
        if not found:
            raise MetadataError("found text without a key; expected a zero byte after the key")
        try:
            return replace(metadata, text=(*metadata.text, (key.decode(), value.decode())))
        except UnicodeDecodeError as error:
            raise MetadataError("found bytes that are not UTF-8; expected text") from error
    return metadata


def _check_first(found: bytes | None) -> None:
    if found is not None:
        raise MetadataError("found it twice; expected it once")


def _check_profile(profile: bytes) -> None:
    if len(profile) > MAX_PROFILE_BYTES:
        raise MetadataError(f"found {len(profile)} bytes; expected at most {MAX_PROFILE_BYTES}")
    if profile and profile[_PROFILE_MARK] != b"acsp":
        raise MetadataError("found bytes without the mark of an ICC profile; expected one")


def _check_text(key: str, value: str) -> None:
    if len(key) > MAX_KEY_CHARACTERS or not _KEY.fullmatch(key):
        raise MetadataError(
            f"found a key of {len(key)} characters; expected 1 to {MAX_KEY_CHARACTERS} printable "
            "ones of Latin-1, with single spaces between words"
        )
    if _OTHER_KEYS.fullmatch(key):
        raise MetadataError(
            "found a key under which programs look for metadata other than text; expected another"
        )
    try:
        size_bytes = len(value.encode())
    except UnicodeEncodeError as error:
        raise MetadataError("found half a character (a surrogate); expected whole ones") from error
    if "\0" in value:
        raise MetadataError("found a zero byte in the value; expected none")
    if size_bytes > MAX_VALUE_BYTES:
        raise _too_long()


def _too_long() -> MetadataError:
    return MetadataError(f"found a longer text; expected at most {MAX_VALUE_BYTES} bytes")

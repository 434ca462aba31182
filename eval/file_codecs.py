"""Codecs that turn pictures into files at a quality: ours, and classic ones through Pillow.

All are asked alike, so that figures of one can stand beside those of another: an 8-bit RGB picture
goes in, the bytes of a whole file come out, and 8-bit pixels come back from those bytes alone.
"""

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import PIL
import PIL.features
import torch

from codec import images
from codec.errors import LatentCodecError
from codec.pipeline import Codec
from eval.rate_distortion import RoundTrip, round_trip, timed_trip


class FileCodec(Protocol):
    """What makes files of pictures at several qualities.

    Attributes:
        name: for tables.
        settings: how it encodes, for people.
        identity: all that its files and pixels depend on, besides picture and quality.
        qualities: to measure, on its own scale; None where there is nothing to choose.
    """

    @property
    def name(self) -> str: ...
    @property
    def settings(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def qualities(self) -> Sequence[float | None]: ...

    def round_trip(self, image: images.Image, quality: float | None) -> RoundTrip:
        """Make a file of a picture, and a picture of that file."""
        ...


class PillowError(LatentCodecError):
    """Pillow cannot write a format, or not this picture in it."""


@dataclass(frozen=True, slots=True)
class ClassicCodec:
    """A classic format as Pillow writes it.

    Attributes:
        name: for tables.
        choices: its options, for people.
        pillow_format: Pillow's name of the format.
        library: Pillow's name of what writes it.
        options: for `PIL.Image.Image.save`, besides the quality.
        qualities: 1 to 100, the range that is worth a look.
    """

    name: str
    choices: str
    pillow_format: str
    library: str
    options: Mapping[str, object] = field(hash=False)
    qualities: tuple[int, ...]

    @property
    def settings(self) -> str:
        """The options, and which version of what library follows them."""
        version = PIL.features.version(self.library) or "of unknown version"
        return f"{self.choices}; {self.library} {version}"

    @property
    def identity(self) -> str:
        """Format, options and versions."""
        return f"{self.pillow_format} {self.options} {self.settings} Pillow {PIL.__version__}"

    def encode(self, image: images.Image, quality: float | None) -> bytes:
        """Return the bytes of a file; gray pictures are written as gray where the format can.

        Raises:
            PillowError: this Pillow lacks the format, or the picture does not fit into it.
        """
        picture, stream = images.to_pil(image.pixels, image.is_gray), io.BytesIO()
        try:
            picture.save(stream, self.pillow_format, quality=quality, **self.options)
        except (KeyError, OSError, RuntimeError, ValueError) as error:  # by format and reason
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PillowError(
                f"found that Pillow {PIL.__version__} writes no {self.pillow_format} of "
                f"{image.width}x{image.height} pixels ({reason}), expected that it can; choose "
                "other codecs"
            ) from error
        return stream.getvalue()

    def round_trip(self, image: images.Image, quality: float | None) -> RoundTrip:
        """Write a file and read it again."""
        return timed_trip(image, lambda: self.encode(image, quality), images.load)


JPEG = ClassicCodec(
    name="jpeg",
    choices="4:2:0, progressive, optimised Huffman tables",
    pillow_format="JPEG",
    library="libjpeg_turbo",
    options={"subsampling": "4:2:0", "optimize": True, "progressive": True},
    qualities=(1, 5, 10, 15, 20, 30, 40, 50, 60, 75),
)
# One thread: with more, libavif's files depend on their number.
_AVIF_OPTIONS: Mapping[str, object] = {"speed": 4, "max_threads": 1}
_AVIF_QUALITIES = (5, 10, 15, 20, 30, 40, 50, 60)

CLASSIC: Mapping[str, ClassicCodec] = {
    classic.name: classic
    for classic in (
        JPEG,
        ClassicCodec(
            name="jpeg444",
            choices="4:4:4, progressive, optimised Huffman tables",
            pillow_format="JPEG",
            library="libjpeg_turbo",
            options={**JPEG.options, "subsampling": "4:4:4"},
            qualities=JPEG.qualities,
        ),
        ClassicCodec(
            name="webp",
            choices="4:2:0 (lossy WebP has no other), method 6",
            pillow_format="WEBP",
            library="webp",
            options={"method": 6},
            qualities=(1, 5, 10, 20, 30, 40, 50, 60, 75),
        ),
        ClassicCodec(
            name="avif",
            choices="4:2:0, speed 4 (libavif's own is 6), one thread",
            pillow_format="AVIF",
            library="avif",
            options={**_AVIF_OPTIONS, "subsampling": "4:2:0"},
            qualities=_AVIF_QUALITIES,
        ),
        ClassicCodec(
            name="avif444",
            choices="4:4:4, speed 4 (libavif's own is 6), one thread",
            pillow_format="AVIF",
            library="avif",
            options={**_AVIF_OPTIONS, "subsampling": "4:4:4"},
            qualities=_AVIF_QUALITIES,
        ),
    )
}


@dataclass(frozen=True)
class ModelCodec:
    """A latent codec and the `.lc` files that it makes.

    Attributes:
        codec: the model; it has ids, so it makes files.
        qualities: 1 to 100, or None alone for a model of codes.
    """

    codec: Codec
    qualities: tuple[float | None, ...]

    @property
    def name(self) -> str:
        """The model's name."""
        return self.codec.name

    @property
    def settings(self) -> str:
        """Where and how the network ran."""
        return f".lc files, {_device(self.codec)}"

    @cached_property
    def identity(self) -> str:
        """Ids, device, dtype and the program itself: what the same ids do may change with it."""
        return f"lc {_model_identity(self.codec)}"

    def round_trip(self, image: images.Image, quality: float | None) -> RoundTrip:
        """Compress and decompress; without a quality the model has none."""
        return round_trip(self.codec, image, quality)


@dataclass(frozen=True)
class UnquantizedLatents:
    """The autoencoder of a model alone: its latents come back as they are, and there is no file.

    Attributes:
        codec: the model.
    """

    codec: Codec
    qualities: tuple[None] = (None,)

    @property
    def name(self) -> str:
        """The model's name, and that its latents are not quantised."""
        return f"{self.codec.name}, unquantised"

    @property
    def settings(self) -> str:
        """Where and how the network ran."""
        return f"latents as the network makes them, no file, {_device(self.codec)}"

    @cached_property
    def identity(self) -> str:
        """As for `ModelCodec`."""
        return f"unquantised {_model_identity(self.codec)}"

    def round_trip(self, image: images.Image, quality: float | None) -> RoundTrip:
        """Encode and decode the pixels; there are no data and no times."""
        assert quality is None
        decoded = self.codec.decode(self.codec.encode(image.pixels))
        pixels = images.from_unit(decoded[0].cpu().numpy())[: image.height, : image.width]
        return RoundTrip(image, b"", images.Image(np.ascontiguousarray(pixels)), 0.0, 0.0)


def digest(*parts: bytes | str) -> str:
    """Return one name for several pieces of content, none of which runs into the next."""
    hashed = hashlib.sha256()
    for part in parts:
        content = part.encode() if isinstance(part, str) else part
        hashed.update(len(content).to_bytes(8, "little") + content)
    return hashed.hexdigest()


def source_digest(*files: Path) -> str:
    """Return a digest of source files."""
    return digest(*(file.read_bytes() for file in files))


def _device(codec: Codec) -> str:
    return f"{str(codec.dtype).removeprefix('torch.')} on {codec.device.type}"


def _model_identity(codec: Codec) -> str:
    info = codec.info
    assert info is not None
    program = source_digest(*sorted(Path(images.__file__).parent.rglob("*.py")))
    ids = f"{info.latent_id} {info.coder_id} {info.decoder_id}"
    return f"{ids} {_device(codec)} torch {torch.__version__} {program}"

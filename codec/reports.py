"""What `latent-codec info` and `models` print; no torch, so they answer at once."""

import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from codec import bitstream, catalog
from codec.bitstream import ChannelSteps, CodeIndices, Header, LatentFile
from codec.catalog import UnknownModelError
from codec.checkpoint import ModelInfo
from codec.prior.directory import PriorInfo


@dataclass(frozen=True, slots=True)
class ChunkReport:
    """An optional chunk.

    Attributes:
        kind: Its four letters.
        size_bytes: Its body.
    """

    kind: str
    size_bytes: int

    def __str__(self) -> str:
        return f"{self.kind} {self.size_bytes:,} bytes"


@dataclass(frozen=True, slots=True)
class FileReport:
    """What an `.lc` file says about itself.

    Attributes:
        file: Its name as it was given.
        format_version: Version of the container.
        size_bytes: The whole file.
        rate_bpp: 8 * size_bytes / (width * height).
        width: Pixels of the image.
        height: Pixels of the image.
        color_mode: "rgb" or "gray".
        model: Name of the model that made it, by its own account.
        model_directory: Where a model that can decode it lies; None when none is at hand.
        latent_id: See `codec.identity`.
        coder_id: See `codec.identity`.
        decoder_id: See `codec.identity`.
        latent_shape: (C, h, w); None where the file holds indices of codes.
        step: Quantiser step of all channels in units of raw latents; None where there is no such.
        channel_steps: That of each channel, where each has its own.
        code_grids: Number of codes, rows and columns of indices, coarse to fine, where it holds
            such.
        payload_bytes: The coded symbols.
        tables_bytes: The tables that travel in the file; None where it has none.
        chunks: Optional chunks, in order.
    """

    file: str
    format_version: int
    size_bytes: int
    rate_bpp: float
    width: int
    height: int
    color_mode: str
    model: str
    model_directory: str | None
    latent_id: str
    coder_id: str
    decoder_id: str
    latent_shape: tuple[int, int, int] | None
    step: float | None
    channel_steps: tuple[float, ...]
    code_grids: tuple[tuple[int, int, int], ...]
    payload_bytes: int
    tables_bytes: int | None
    chunks: tuple[ChunkReport, ...]

    def lines(self) -> list[str]:
        """Returns the report for people."""
        tables = "" if self.tables_bytes is None else f", tables {self.tables_bytes:,} bytes"
        known = self.model_directory or (
            f"not at hand; give --model DIR or set {catalog.MODELS_VARIABLE}"
        )
        return [
            f"file      {self.file} (version {self.format_version})",
            f"size      {self.size_bytes:,} bytes, {self.rate_bpp:.3f} bpp",
            f"image     {self.width}x{self.height} {self.color_mode}",
            f"model     {self.model or 'unnamed'} ({known})",
            f"latents   {self._latents()}",
            f"ids       latent {self.latent_id}, coder {self.coder_id}, decoder {self.decoder_id}",
            f"payload   {self.payload_bytes:,} bytes{tables}",
            f"chunks    {', '.join(map(str, self.chunks)) or 'none besides'}",
        ]

    def _latents(self) -> str:
        if self.latent_shape is None:
            return " and ".join(
                f"{columns}x{rows} indices of {num_codes:,} codes"
                for num_codes, rows, columns in self.code_grids
            )
        channels, rows, columns = self.latent_shape
        size = f"{channels} channels of {columns}x{rows}"
        if self.step is not None:
            return f"{size}, step {self.step:g}"
        return f"{size}, steps {min(self.channel_steps):g} to {max(self.channel_steps):g}"


def read_report(name: str) -> FileReport:
    """Reads an `.lc` file and describes it.

    Args:
        name: Path of the file, or "-" for stdin.

    Raises:
        OSError: It cannot be read.
        BitstreamError: It is none, or damaged.
        ModelError: LATENT_CODEC_MODELS names something that is no model.
    """
    if name == "-":
        data = sys.stdin.buffer.read(bitstream.MAX_FILE_BYTES + 1)
    else:
        data = Path(name).read_bytes()
    file = bitstream.loads(data)
    header = file.header
    return FileReport(
        file=name,
        format_version=bitstream.VERSION,
        size_bytes=len(data),
        rate_bpp=8 * len(data) / (header.width * header.height),
        width=header.width,
        height=header.height,
        color_mode=header.color_mode.name.lower(),
        model=header.name,
        model_directory=_find_directory(file),
        latent_id=header.latent_id,
        coder_id=header.coder_id,
        decoder_id=header.decoder_id,
        latent_shape=header.latent_shape,
        step=header.step_size,
        channel_steps=_channel_steps(header),
        code_grids=_code_grids(header),
        payload_bytes=len(file.payload),
        tables_bytes=None if file.tables is None else len(file.tables),
        chunks=tuple(ChunkReport(chunk.kind, len(chunk.body)) for chunk in file.chunks),
    )


def _channel_steps(header: Header) -> tuple[float, ...]:
    if not isinstance(header.quantizer, ChannelSteps):
        return ()
    return tuple(step / bitstream.STEPS_PER_UNIT for step in header.quantizer.steps)


def _code_grids(header: Header) -> tuple[tuple[int, int, int], ...]:
    if not isinstance(header.quantizer, CodeIndices):
        return ()
    return tuple((grid.num_codes, grid.rows, grid.columns) for grid in header.quantizer.grids)


def _find_directory(file: LatentFile) -> str | None:
    try:
        return str(catalog.find_model(file.header.latent_id, file.header.coder_id).directory)
    except UnknownModelError:
        return None


def model_entry(info: ModelInfo) -> dict[str, object]:
    """Returns what is known of a model, for JSON."""
    return {
        **asdict(info),
        "directory": str(info.directory),
        "embedded": info.is_embedded,
        "default": info.is_embedded and info.name == catalog.DEFAULT_MODEL,
        "size_bytes": info.size_bytes,
    }


def model_lines(models: Iterable[ModelInfo]) -> list[str]:
    """Returns two or three lines a model, for people."""
    lines = []
    for info in models:
        is_default = info.is_embedded and info.name == catalog.DEFAULT_MODEL
        place = "embedded" if info.is_embedded else str(info.directory)
        quality = "codes, no quality"
        if info.default_quality is not None:
            quality = f"quality {info.default_quality} by default"
        lines += [
            f"{info.name}{' (default)' if is_default else ''}: {info.summary}",
            f"    {place}, {info.size_bytes / 2**20:.1f} MiB, {quality}, licence "
            f"{info.license_name}",
            f"    latent {info.latent_id}, coder {info.coder_id}, decoder {info.decoder_id}",
        ]
    return lines


def prior_lines(priors: Iterable[PriorInfo]) -> list[str]:
    """Returns two lines a prior, for people."""
    lines = []
    for info in priors:
        known = f"{len(info.class_names)} classes, " if info.class_names else ""
        lines += [
            f"{info.name}: prior, {info.summary}",
            f"    embedded, {info.size[0]}x{info.size[1]} pixels, {known}latents of {info.codec}, "
            f"licence {info.license_name}",
        ]
    return lines

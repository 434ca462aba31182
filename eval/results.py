"""What an evaluation found: typed, as `results.json` and as a table on a terminal."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from codec.outputs import atomic_output

RESULTS_FILE = "results.json"


@dataclass(frozen=True, slots=True)
class ImageResult:
    """One image that went through a file.

    Attributes:
        name: path below the evaluated folder.
        width: original width in pixels.
        height: original height in pixels.
        size_bytes: length of the whole file.
        bpp: bits per original pixel, whole file.
        psnr: dB over 8-bit RGB; None where the reconstruction is identical (infinite).
        ssim: None for sides under 11 pixels.
        ms_ssim: None for sides under 161 pixels.
        lpips: None where no backbone is at hand, and for sides under 32 pixels.
        encode_s: seconds from pixels in memory to the bytes of the file.
        decode_s: seconds from the bytes of the file to pixels in memory.
    """

    name: str
    width: int
    height: int
    size_bytes: int
    bpp: float
    psnr: float | None
    ssim: float | None
    ms_ssim: float | None
    lpips: float | None
    encode_s: float
    decode_s: float


@dataclass(frozen=True, slots=True)
class MeanResult:
    """Means over images, each over those that have a value; None where none has."""

    size_bytes: float | None
    bpp: float | None
    psnr: float | None
    ssim: float | None
    ms_ssim: float | None
    lpips: float | None
    encode_s: float | None
    decode_s: float | None


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that could not be evaluated, and why."""

    name: str
    error: str


@dataclass(frozen=True, slots=True)
class ModelIds:
    """The ids that the evaluated files carry in their headers."""

    latent_id: str
    coder_id: str
    decoder_id: str


@dataclass(frozen=True, slots=True)
class Settings:
    """How the files were made.

    Attributes:
        quality: 1 to 100; None when a step was given, and for models of codes.
        step: quantiser step in units of raw latents; None where channels have steps of their own,
            and for models of codes.
        device: where the network ran.
        dtype: in which precision.
        threads: processor threads of torch.
        lpips: the perceptual metric with its backbone, as in `LPIPS(squeeze)`; None when not run.
    """

    quality: float | None
    step: float | None
    device: str
    dtype: str
    threads: int
    lpips: str | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The evaluation of a model on a set of images; what `results.json` holds.

    Attributes:
        model: name of the model.
        ids: what its files carry.
        settings: how the files were made.
        mean: over `images`.
        images: in the order of evaluation.
        errors: images that failed.
        notes: what a reader of the figures should know.
        versions: of Python and the packages that took part.
        command: the command line.
    """

    model: str
    ids: ModelIds
    settings: Settings
    mean: MeanResult
    images: tuple[ImageResult, ...]
    errors: tuple[Failure, ...]
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    command: str

    def to_json(self) -> str:
        """Return the evaluation as JSON, strictly: no NaN, no Infinity."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, folder: Path) -> Path:
        """Write `results.json` into `folder`, whole or not at all, and return its path."""
        path = folder / RESULTS_FILE
        with atomic_output(path) as stream:
            stream.write(self.to_json().encode())
        return path


def mean_of(results: Sequence[ImageResult]) -> MeanResult:
    """Average each figure over the images that have it."""
    columns = {}
    for column in MeanResult.__dataclass_fields__:
        values = [getattr(result, column) for result in results]
        present = [value for value in values if value is not None]
        columns[column] = statistics.fmean(present) if present else None
    return MeanResult(**columns)


def finite(value: float) -> float | None:
    """Return the value, or None for infinity, which JSON cannot say."""
    return value if math.isfinite(value) else None


def evaluation_table(evaluation: Evaluation) -> Table:
    """Lay the evaluation out for a terminal: a line an image, and the mean."""
    lpips_title = (evaluation.settings.lpips or "LPIPS").replace("(", "\n(")
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_footer=True)
    mean = evaluation.mean
    table.add_column("image", f"mean of {len(evaluation.images)}", overflow="fold")
    for title, foot in (
        ("bytes", figure(mean.size_bytes, 0)),
        ("bpp", figure(mean.bpp, 3)),
        ("PSNR\ndB", figure(mean.psnr, 2)),
        ("SSIM", figure(mean.ssim, 4)),
        ("MS-SSIM", figure(mean.ms_ssim, 4)),
        (lpips_title, figure(mean.lpips, 4)),
        ("encode\ns", figure(mean.encode_s, 2)),
        ("decode\ns", figure(mean.decode_s, 2)),
    ):
        table.add_column(title, foot, justify="right", no_wrap=True)
    for result in evaluation.images:
        table.add_row(
            result.name,
            str(result.size_bytes),
            figure(result.bpp, 3),
            figure(result.psnr, 2),
            figure(result.ssim, 4),
            figure(result.ms_ssim, 4),
            figure(result.lpips, 4),
            figure(result.encode_s, 2),
            figure(result.decode_s, 2),
        )
    return table


def figure(value: float | None, digits: int) -> str:
    """Format a figure for people; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"

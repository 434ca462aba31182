"""Rate-distortion curves: several codecs over their qualities, on the same pictures.

Every point is made of real files, and the means of all points are over the same pictures: one that
any codec cannot take is left out everywhere.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

from codec import images
from codec.console import EXPECTED_ERRORS, error_sentence
from eval import lpips, metrics
from eval.file_codecs import FileCodec, ModelCodec, UnquantizedLatents, digest, source_digest
from eval.lpips import PerceptualDistance
from eval.rate_distortion import (
    RoundTrip,
    command_line,
    measure,
    name_below,
    package_versions,
)
from eval.result_cache import Figures, ResultCache
from eval.results import Failure, ImageResult, MeanResult, mean_of

_CLOSENESS = ("psnr", "ssim", "ms_ssim", "lpips")  # what depends on pixels alone
_NOTHING_WRITTEN = dict.fromkeys(("size_bytes", "bpp", "encode_s", "decode_s"))


@dataclass(frozen=True, slots=True)
class Point:
    """One codec at one quality.

    Attributes:
        quality: on the codec's own scale; None where there is nothing to choose.
        mean: over the images.
        images: in the order of evaluation; none where the mean alone is of interest.
    """

    quality: float | None
    mean: MeanResult
    images: tuple[ImageResult, ...] = ()


@dataclass(frozen=True, slots=True)
class Curve:
    """One codec over its qualities.

    Attributes:
        codec: its name.
        settings: how it encodes.
        points: from the lowest quality to the highest.
    """

    codec: str
    settings: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class RateReport:
    """Curves of several codecs on one set of images; what `rd.json` holds.

    Attributes:
        curves: one a codec, ours first where it was asked for.
        default: our point at the model's default quality; None where that was not measured.
        unquantised: our autoencoder alone, without a file; None without our codec.
        lpips: the perceptual metric with its backbone, as in `LPIPS(squeeze)`; None when not run.
        num_images: how many every mean is over.
        fingerprint: of their pixels, in order.
        errors: images that were left out.
        notes: what a reader of the figures should know.
        versions: of Python and the packages that took part.
        command: the command line.
    """

    curves: tuple[Curve, ...]
    default: Point | None
    unquantised: Curve | None
    lpips: str | None
    num_images: int
    fingerprint: str
    errors: tuple[Failure, ...]
    notes: tuple[str, ...]
    versions: dict[str, str]
    command: str


@dataclass(frozen=True, slots=True)
class _Picture:
    """A loaded image, what to call it, and a digest of its pixels."""

    name: str
    image: images.Image
    pixels_digest: str


class CurveMeasurer:
    """Measures codecs at their qualities, and remembers what it measured."""

    def __init__(self, cache: ResultCache, distance: PerceptualDistance | None = None) -> None:
        """Take the metrics of `measure`, LPIPS among them where there is a `distance`."""
        self._cache = cache
        self._distance = distance
        self._metrics = _metrics_identity(distance)

    def measure(
        self,
        codecs: Sequence[FileCodec],
        paths: Iterable[Path],
        *,
        folder: Path | None = None,
        notes: Iterable[str] = (),
        advance: Callable[[], None] = lambda: None,
    ) -> RateReport:
        """Measure each codec at each of its qualities on each image.

        Args:
            codecs: what to compare; ours, if at all, before the others.
            paths: the images.
            folder: names of images are relative to it where they lie below it, else file names.
            notes: what a reader of the figures should know, kept in the report.
            advance: is called after each of `num_trips(codecs)` round trips of an image.
        """
        pictures: list[_Picture] = []
        rows: list[list[ImageResult]] = []  # one an image, in the order of codecs and qualities
        failures: list[Failure] = []
        remarks = list(notes)
        for path in paths:
            name = name_below(path, folder)
            try:
                picture = _load(path, name)
                row = self._row(codecs, picture, advance)
            except EXPECTED_ERRORS as error:
                failures.append(Failure(name, error_sentence(error)))
                continue
            pictures.append(picture)
            rows.append(row)
            remarks += picture.image.warnings
        curves = _curves(codecs, rows)
        if any(result.psnr is None for row in rows for result in row):
            remarks.append("files that came back identical have no PSNR and count in no mean of it")
        return RateReport(
            curves=tuple(c for c, codec in zip(curves, codecs, strict=True) if _has_files(codec)),
            default=_default_point(codecs, curves),
            unquantised=_unquantised(codecs, curves),
            lpips=None if self._distance is None else self._distance.name,
            num_images=len(rows),
            fingerprint=digest(*(picture.pixels_digest for picture in pictures))[:16],
            errors=tuple(failures),
            notes=tuple(remarks),
            versions=package_versions(),
            command=command_line(),
        )

    def _row(
        self, codecs: Sequence[FileCodec], picture: _Picture, advance: Callable[[], None]
    ) -> list[ImageResult]:
        row = []
        for codec in codecs:
            for quality in codec.qualities:
                row.append(self._result(codec, quality, picture))
                advance()
        return row

    def _result(self, codec: FileCodec, quality: float | None, picture: _Picture) -> ImageResult:
        key = (codec.identity, str(quality), picture.pixels_digest, self._metrics)
        figures = self._cache.get(*key)
        if figures is None:
            trip = codec.round_trip(picture.image, quality)
            figures = self._measured(trip, picture)
            self._cache.put(figures, *key)
        return ImageResult(name=picture.name, **figures)  # type: ignore[arg-type]

    def _measured(self, trip: RoundTrip, picture: _Picture) -> Figures:
        """Measure a round trip, unless the same pixels came back before, from whatever file."""
        key = (picture.pixels_digest, _pixels_digest(trip.reconstruction), self._metrics)
        closeness = self._cache.get(*key)
        if closeness is None:
            result = asdict(measure(picture.name, trip, self._distance))
            closeness = {name: result[name] for name in _CLOSENESS}
            self._cache.put(closeness, *key)
        width, height = trip.original.width, trip.original.height
        return {
            "width": width,
            "height": height,
            "size_bytes": len(trip.data),
            "bpp": metrics.bpp(len(trip.data), width, height),
            **closeness,
            "encode_s": trip.encode_s,
            "decode_s": trip.decode_s,
        }


def num_trips(codecs: Sequence[FileCodec]) -> int:
    """Return how many round trips `CurveMeasurer.measure` makes of each image."""
    return sum(len(codec.qualities) for codec in codecs)


def _load(path: Path, name: str) -> _Picture:
    image = images.load(path)
    return _Picture(name, image, _pixels_digest(image))


def _pixels_digest(image: images.Image) -> str:
    return digest(f"{image.pixels.shape} {image.is_gray}", image.pixels.tobytes())


def _curves(codecs: Sequence[FileCodec], rows: Sequence[Sequence[ImageResult]]) -> list[Curve]:
    """Gather the results of each codec and quality over images."""
    curves, column = [], 0
    for codec in codecs:
        points = []
        for quality in codec.qualities:
            results = tuple(row[column] for row in rows)
            points.append(Point(quality, mean_of(results), results))
            column += 1
        curves.append(Curve(codec.name, codec.settings, tuple(points)))
    return curves


def _has_files(codec: FileCodec) -> bool:
    return not isinstance(codec, UnquantizedLatents)


def _default_point(codecs: Sequence[FileCodec], curves: Sequence[Curve]) -> Point | None:
    """Return our curve's point at the model's default quality."""
    for codec, curve in zip(codecs, curves, strict=True):
        if isinstance(codec, ModelCodec):
            assert codec.codec.info is not None  # or it would have made no file
            quality = codec.codec.info.default_quality
            found = (Point(p.quality, p.mean) for p in curve.points if p.quality == quality)
            return next(found, None)
    return None


def _unquantised(codecs: Sequence[FileCodec], curves: Sequence[Curve]) -> Curve | None:
    for codec, curve in zip(codecs, curves, strict=True):
        if not _has_files(codec):
            (point,) = curve.points
            mean = replace(point.mean, **_NOTHING_WRITTEN)
            return replace(curve, points=(Point(None, mean),))
    return None


def _metrics_identity(distance: PerceptualDistance | None) -> str:
    """Name all that a metric's value depends on besides pixels."""
    program = source_digest(Path(metrics.__file__), Path(lpips.__file__))
    identity = f"{program} scikit-image {metadata.version('scikit-image')}"
    if distance is None:
        return f"{identity} no LPIPS"
    weights = digest(*(tensor.cpu().numpy().tobytes() for tensor in distance.state_dict().values()))
    return f"{identity} {distance.name} {weights}"

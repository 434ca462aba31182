"""The demonstration's page: one HTML file that needs nothing beside it.

Pictures are embedded as data URIs: WebP of high quality for the original and our reconstruction,
which are ten times smaller than PNG and look the same; the JPEG as the very file it is.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import PIL.Image

from codec import images
from eval import metrics
from eval.baselines import JpegFile
from eval.rate_distortion import RoundTrip
from eval.results import ImageResult, figure

TEMPLATE = "demo.html"
SHOWN_SIDE = 1600  # larger pictures are shown scaled down, or the page would be too heavy to open
WEBP_QUALITY = 92


@dataclass(frozen=True, slots=True)
class Sample:
    """An image to show.

    Attributes:
        path: the file.
        title: what it shows, for people.
    """

    path: Path
    title: str


@dataclass(frozen=True, slots=True, eq=False)
class Exhibit:
    """One image of the demonstration, ready to be shown.

    Attributes:
        sample: where it came from.
        stem: name of its files in the output folder, without a suffix.
        source_bytes: length of the original file.
        trip: the image, its file and its reconstruction.
        result: the figures of ours.
        jpeg: a JPEG file of about the size of ours.
        jpeg_image: what that looks like.
        jpeg_psnr: dB, or None if identical.
        jpeg_ms_ssim: None for sides under 161 pixels.
    """

    sample: Sample
    stem: str
    source_bytes: int
    trip: RoundTrip
    result: ImageResult
    jpeg: JpegFile
    jpeg_image: images.Image
    jpeg_psnr: float | None
    jpeg_ms_ssim: float | None

    @property
    def jpeg_bpp(self) -> float:
        """Bits per pixel of the JPEG file."""
        return metrics.bpp(len(self.jpeg.data), self.result.width, self.result.height)


@dataclass(frozen=True, slots=True)
class Picture:
    """A card of the page: three pictures of one size, and the exhibit with their figures."""

    exhibit: Exhibit
    original_uri: str
    ours_uri: str
    jpeg_uri: str
    is_scaled: bool


def render_page(model: str, exhibits: Sequence[Exhibit]) -> str:
    """Return the page as HTML.

    Args:
        model: name of the model.
        exhibits: at least one.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("eval"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"figure": figure, "size": readable_size}
    return environment.get_template(TEMPLATE).render(
        model=model,
        pictures=[_picture(exhibit) for exhibit in exhibits],
        source_bytes=sum(exhibit.source_bytes for exhibit in exhibits),
        file_bytes=sum(exhibit.result.size_bytes for exhibit in exhibits),
        mean_bpp=sum(exhibit.result.bpp for exhibit in exhibits) / len(exhibits),
    )


def readable_size(size_bytes: int) -> str:
    """Format a number of bytes for people, in decimal units: `7.4 kB`."""
    if size_bytes < 1000:
        return f"{size_bytes} B"
    if size_bytes < 1_000_000:
        return f"{size_bytes / 1000:.1f} kB"
    return f"{size_bytes / 1_000_000:.2f} MB"


def _picture(exhibit: Exhibit) -> Picture:
    original = exhibit.trip.original
    is_scaled = max(original.width, original.height) > SHOWN_SIDE
    return Picture(
        exhibit=exhibit,
        original_uri=_webp_uri(original),
        ours_uri=_webp_uri(exhibit.trip.reconstruction),
        jpeg_uri=(
            _webp_uri(exhibit.jpeg_image)
            if is_scaled
            else _data_uri(exhibit.jpeg.data, "image/jpeg")
        ),
        is_scaled=is_scaled,
    )


def _webp_uri(image: images.Image) -> str:
    picture = images.to_pil(image.pixels)
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE), PIL.Image.Resampling.LANCZOS)  # never enlarges
    stream = io.BytesIO()
    picture.save(stream, "WEBP", quality=WEBP_QUALITY)
    return _data_uri(stream.getvalue(), "image/webp")


def _data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"

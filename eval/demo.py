"""The demonstration: photographs become files and come back, with a table and a page to look at.

Without images of the user's own it takes photographs that scikit-image carries inside its package,
so it runs where there is no network.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from rich import box
from rich.table import Table

from codec import images
from codec.console import EXPECTED_ERRORS, error_sentence
from codec.errors import LatentCodecError
from codec.outputs import atomic_output
from codec.pipeline import Codec
from eval import metrics
from eval.baselines import jpeg_at_size
from eval.page import Exhibit, Sample, render_page
from eval.rate_distortion import measure, round_trip
from eval.results import Failure, ImageResult, figure, finite

PAGE_FILE = "index.html"
# Only files inside scikit-image's wheel: its other samples are downloaded when they are asked for.
SAMPLES = {
    "astronaut.png": "Astronaut Eileen Collins",
    "coffee.png": "A cup of coffee",
    "chelsea.png": "Chelsea the cat",
    "rocket.jpg": "A rocket on its launch pad",
    "motorcycle_left.png": "A motorcycle in a workshop",
    "camera.png": "A man with a camera, in gray",
}


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What a demonstration made.

    Attributes:
        page: the page to open in a browser.
        results: the figures, an entry an image.
        errors: images that could not be shown.
    """

    page: Path
    results: tuple[ImageResult, ...]
    errors: tuple[Failure, ...]


def packaged_samples() -> list[Sample]:
    """Return the photographs inside the installed scikit-image, without a download.

    Raises:
        LatentCodecError: this scikit-image does not carry them.
    """
    folder = Path(str(resources.files("skimage") / "data"))
    samples = [Sample(folder / name, title) for name, title in SAMPLES.items()]
    found = [sample for sample in samples if sample.path.is_file()]
    if not found:
        raise LatentCodecError(
            f"found none of the sample photographs in {folder}, expected a scikit-image that "
            "carries them: name images of your own instead"
        )
    return found


def chosen_samples(paths: Sequence[Path]) -> list[Sample]:
    """Return the user's images, titled by their file names."""
    return [Sample(path, path.name) for path in paths]


def run_demo(
    codec: Codec,
    samples: Iterable[Sample],
    output: Path,
    *,
    quality: float | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> Demonstration:
    """Compress and decompress images; write files, reconstructions and a page.

    `output` gets, for each image, `NAME.lc` and `NAME.png`, and one `index.html` that holds all it
    shows and links to those files. Files of the same names are replaced.

    Args:
        codec: the model.
        samples: what to show.
        output: folder, made if missing.
        quality: 1 to 100; the model's default when None.
        report: is told what happens, for people.

    Raises:
        LatentCodecError: nothing could be shown.
    """
    exhibits: list[Exhibit] = []
    errors: list[Failure] = []
    for sample in samples:
        report(f"compressing {sample.path.name}")
        try:
            exhibit = _exhibit(codec, sample, quality, {shown.stem for shown in exhibits})
            _write_files(exhibit, output)
        except EXPECTED_ERRORS as error:
            errors.append(Failure(sample.path.name, error_sentence(error)))
        else:
            exhibits.append(exhibit)
    if not exhibits:
        # A model that makes no files says the same of every image: once is enough.
        reasons = "; ".join(dict.fromkeys(error.error for error in errors)) or "no image was given"
        raise LatentCodecError(f"found nothing to show: {reasons}")
    page = output / PAGE_FILE
    with atomic_output(page) as stream:
        stream.write(render_page(codec.name, exhibits).encode())
    return Demonstration(page, tuple(shown.result for shown in exhibits), tuple(errors))


def demo_table(demonstration: Demonstration) -> Table:
    """Lay the figures out for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("file", overflow="fold")
    for title in ("size", "bytes", "bpp", "PSNR\ndB", "MS-SSIM", "encode\nms", "decode\nms"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in demonstration.results:
        table.add_row(
            result.name,
            f"{result.width}x{result.height}",
            f"{result.size_bytes:,}",
            figure(result.bpp, 3),
            figure(result.psnr, 2),
            figure(result.ms_ssim, 4),
            figure(1000 * result.encode_s, 0),
            figure(1000 * result.decode_s, 0),
        )
    return table


def _exhibit(codec: Codec, sample: Sample, quality: float | None, taken: set[str]) -> Exhibit:
    original = images.load(sample.path)
    round_trip(codec, original, quality)  # once unmeasured: first calls choose kernels
    trip = round_trip(codec, original, quality)
    jpeg = jpeg_at_size(original, len(trip.data))
    jpeg_image = images.load(jpeg.data)
    return Exhibit(
        sample=sample,
        stem=_free_stem(sample.path.stem, taken),
        source_bytes=sample.path.stat().st_size,
        trip=trip,
        result=measure(sample.path.name, trip),
        jpeg=jpeg,
        jpeg_image=jpeg_image,
        jpeg_psnr=finite(metrics.psnr(original.pixels, jpeg_image.pixels)),
        jpeg_ms_ssim=metrics.ms_ssim(original.pixels, jpeg_image.pixels),
    )


def _free_stem(stem: str, taken: set[str]) -> str:
    """Number a name that images of two folders share."""
    number, free = 2, stem
    while free in taken:
        number, free = number + 1, f"{stem}-{number}"
    return free


def _write_files(exhibit: Exhibit, output: Path) -> None:
    with atomic_output(output / f"{exhibit.stem}.lc") as stream:
        stream.write(exhibit.trip.data)
    reconstruction = exhibit.trip.reconstruction
    path = output / f"{exhibit.stem}.png"
    images.save(reconstruction.pixels, path, is_gray=reconstruction.is_gray)

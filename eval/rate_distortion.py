"""How large the files of a codec are and how close the pictures that come back from them.

Every figure is of a real file: pixels are compressed to bytes, the bytes decompressed to 8-bit
pixels, and those compared with the original ones. Nothing is estimated.
"""

import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from codec import bitstream, images
from codec.console import EXPECTED_ERRORS, error_sentence
from codec.pipeline import Codec
from eval import metrics
from eval.lpips import MIN_SIDE, PerceptualDistance
from eval.results import (
    Evaluation,
    Failure,
    ImageResult,
    ModelIds,
    Settings,
    finite,
    mean_of,
)

PACKAGES = (
    "latent-codec",
    "torch",
    "torchvision",
    "diffusers",
    "constriction",
    "numpy",
    "pillow",
    "scikit-image",
    "lpips",
    "zstandard",
)


@dataclass(frozen=True, slots=True, eq=False)
class RoundTrip:
    """An image, its file, and what came back.

    Attributes:
        original: as it was loaded.
        data: the bytes of the file.
        reconstruction: as it was decompressed from `data`.
        encode_s: seconds from pixels to bytes.
        decode_s: seconds from bytes to pixels.
    """

    original: images.Image
    data: bytes
    reconstruction: images.Image
    encode_s: float
    decode_s: float


def evaluate_images(
    codec: Codec,
    paths: Iterable[Path],
    *,
    folder: Path | None = None,
    quality: float | None = None,
    step: float | None = None,
    distance: PerceptualDistance | None = None,
    notes: Iterable[str] = (),
) -> Evaluation:
    """Compress, decompress and measure each image; a broken one is recorded and passed over.

    Args:
        codec: the model under test.
        paths: the images.
        folder: names of images are relative to it where they lie below it, else file names.
        quality: 1 to 100; the model's default when neither this nor `step` is given.
        step: the quantiser step instead of a quality, in units of raw latents.
        distance: the perceptual metric, or None for no LPIPS.
        notes: what a reader of the figures should know, kept in the result.

    Raises:
        LatentCodecError: the model makes no files, or quality or step are out of range.
    """
    settings = _settings(codec, quality, step, distance)
    results: list[ImageResult] = []
    failures: list[Failure] = []
    remarks = list(notes)
    for path in paths:
        name = name_below(path, folder)
        try:
            original = images.load(path)
            trip = round_trip(codec, original, quality, step)
            result = measure(name, trip, distance)
        except EXPECTED_ERRORS as error:
            failures.append(Failure(name, error_sentence(error)))
            continue
        results.append(result)
        remarks += original.warnings
        if result.psnr is None:
            remarks.append(f"{name} came back identical: its PSNR is infinite, and null here")
    return Evaluation(
        model=codec.name,
        ids=_ids(codec),
        settings=settings,
        mean=mean_of(results),
        images=tuple(results),
        errors=tuple(failures),
        notes=tuple(remarks),
        versions=package_versions(),
        command=command_line(),
    )


def round_trip(
    codec: Codec,
    original: images.Image,
    quality: float | None = None,
    step: float | None = None,
) -> RoundTrip:
    """Compress an image to the bytes of a file and decompress those again."""
    return timed_trip(
        original, lambda: codec.compress(original, quality=quality, step=step), codec.reconstruct
    )


def timed_trip(
    original: images.Image,
    encode: Callable[[], bytes],
    decode: Callable[[bytes], images.Image],
) -> RoundTrip:
    """Encode an image, decode what came out, and take the time of both."""
    start = time.perf_counter()
    data = encode()
    middle = time.perf_counter()
    reconstruction = decode(data)
    end = time.perf_counter()
    return RoundTrip(original, data, reconstruction, middle - start, end - middle)


def measure(name: str, trip: RoundTrip, distance: PerceptualDistance | None = None) -> ImageResult:
    """Measure size and closeness of one round trip."""
    original, reconstruction = trip.original, trip.reconstruction.pixels
    return ImageResult(
        name=name,
        width=original.width,
        height=original.height,
        size_bytes=len(trip.data),
        bpp=metrics.bpp(len(trip.data), original.width, original.height),
        psnr=finite(metrics.psnr(original.pixels, reconstruction)),
        ssim=metrics.ssim(original.pixels, reconstruction),
        ms_ssim=metrics.ms_ssim(original.pixels, reconstruction),
        lpips=_lpips(distance, original.pixels, reconstruction),
        encode_s=trip.encode_s,
        decode_s=trip.decode_s,
    )


@torch.inference_mode()
def _lpips(
    distance: PerceptualDistance | None, original: images.Pixels, reconstruction: images.Pixels
) -> float | None:
    """LPIPS of 8-bit pixels scaled to [-1, 1], in float32; None where it cannot be had."""
    if distance is None or min(original.shape[:2]) < MIN_SIDE:
        return None
    device = next(distance.parameters()).device
    first, second = (
        torch.from_numpy(images.to_unit(pixels))[None]  # (1, 3, H, W)
        .to(device)
        .contiguous(memory_format=torch.channels_last)  # halves the time on a processor
        for pixels in (original, reconstruction)
    )
    return float(distance(second, first))


def _settings(
    codec: Codec, quality: float | None, step: float | None, distance: PerceptualDistance | None
) -> Settings:
    """Make a first, small file: shows wrong settings at once, and warms the network up."""
    gray = np.full((64, 64, 3), 128, dtype=np.uint8)
    trip = round_trip(codec, images.Image(gray), quality, step)
    assert codec.info is not None  # or there would be no file
    if step is None and quality is None:
        quality = codec.info.default_quality
    return Settings(
        quality=quality,
        step=bitstream.loads(trip.data).header.step_size,
        device=str(codec.device),
        dtype=str(codec.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        lpips=None if distance is None else distance.name,
    )


def _ids(codec: Codec) -> ModelIds:
    assert codec.info is not None
    return ModelIds(codec.info.latent_id, codec.info.coder_id, codec.info.decoder_id)


def name_below(path: Path, folder: Path | None) -> str:
    """Return the path below `folder` where the image lies there, else its file name."""
    if folder is not None and path.is_relative_to(folder):
        return path.relative_to(folder).as_posix()
    return path.name


def command_line() -> str:
    """Return the command that runs, as it could be typed again."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # run from a source tree that is not installed
            versions[package] = "unknown"
    return versions

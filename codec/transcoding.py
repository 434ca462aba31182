"""What `latent-codec encode` and `decode` do with each of their files."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, BinaryIO

from codec import images, packing, quantizer
from codec.bitstream import OneStep
from codec.console import print_warning, process_each
from codec.jobs import STREAM, Job, plan_jobs
from codec.outputs import atomic_output
from codec.rate_control import Wish

if TYPE_CHECKING:
    from codec.pipeline import Codec


@dataclass(frozen=True, slots=True)
class Settings:
    """What both commands take.

    Attributes:
        model: Name, directory or hub id; None for the default, or to go by each file's ids.
        device: Name of a torch device, or None.
        dtype: Name of a dtype, or None.
        force: Overwrite existing outputs.
        debug: Let the first error through.
    """

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    force: bool = False
    debug: bool = False

    def load_codec(self) -> "Codec":
        """Loads the named model; torch is imported here."""
        from codec.pipeline import Codec

        return Codec.from_pretrained(self.model, device=self.device, dtype=self.dtype)


@dataclass(slots=True)
class _Totals:
    num_files: int = 0
    num_pixels: int = 0
    size_bytes: int = 0

    def __str__(self) -> str:
        rate_bpp = 8 * self.size_bytes / self.num_pixels
        return f"{self.num_files} files, {self.size_bytes:,} bytes, {rate_bpp:.3f} bpp"


def encode_files(
    inputs: Sequence[str],
    output: str,
    settings: Settings,
    *,
    wish: Wish,
    strict: bool = False,
    alpha: images.AlphaMode = "composite",
    keep_metadata: bool = False,
) -> int:
    """Compresses image files and prints a line for each.

    Args:
        inputs: Files, folders, patterns, or "-" for stdin.
        output: A file, a folder, or "-" for stdout.
        settings: Model, device and so on.
        wish: How large the files shall be.
        strict: See `Codec.compress`.
        alpha: See `Codec.compress`.
        keep_metadata: See `Codec.compress`.

    Returns:
        How many files failed; each has its line on stderr.
    """
    plan = plan_jobs(
        inputs, output, suffixes=images.SUFFIXES, new_suffix=".lc", force=settings.force
    )
    if not plan.jobs:
        return plan.num_refused
    codec = settings.load_codec()
    totals = _Totals()

    def work(job: Job) -> str | None:
        image = images.load(_source(job), strict=strict, alpha=alpha, keep_metadata=keep_metadata)
        for sentence in image.warnings:
            print_warning(sentence)
        data = codec.compress(image, **asdict(wish), alpha=alpha, keep_metadata=keep_metadata)
        if job.target == STREAM:
            _write_stdout(data)
            return None
        with atomic_output(job.target) as stream:
            stream.write(data)
        totals.num_files += 1
        totals.num_pixels += image.width * image.height
        totals.size_bytes += len(data)
        return f"{job.target}  {_size(data, image)}{_quality(data, codec)}"

    failures = process_each(plan.jobs, work, title="Encoding", debug=settings.debug)
    if totals.num_files > 1:
        print(totals)
    return plan.num_refused + failures


def decode_files(
    inputs: Sequence[str], output: str, settings: Settings, *, image_format: str | None = None
) -> int:
    """Decompresses `.lc` files and prints a line for each.

    Args:
        inputs: Files, folders, patterns, or "-" for stdin.
        output: A file, a folder, or "-" for stdout.
        settings: Model, device and so on.
        image_format: Suffix that names the image format, without its dot; None for what the
            output's own suffix says, and PNG in folders and on stdout.

    Returns:
        How many files failed; each has its line on stderr.
    """
    new_suffix = f".{image_format or 'png'}"
    plan = plan_jobs(inputs, output, suffixes={".lc"}, new_suffix=new_suffix, force=settings.force)
    codec = settings.load_codec() if plan.jobs and settings.model else None

    def work(job: Job) -> str | None:
        nonlocal codec
        file = packing.read_file(_source(job))
        if codec is None:
            from codec.pipeline import Codec

            codec = Codec.for_header(file.header, device=settings.device, dtype=settings.dtype)
        image = codec.reconstruct(file)
        left_out = images.save(
            image.pixels,
            sys.stdout.buffer if job.target == STREAM else job.target,
            is_gray=image.is_gray,
            format=image_format,
            alpha=image.alpha,
            metadata=image.metadata,
        )
        for sentence in (*image.warnings, *left_out):
            print_warning(f"{job}: {sentence}")
        return None if job.target == STREAM else f"{job.target}  {image.width}x{image.height}"

    failures = process_each(plan.jobs, work, title="Decoding", debug=settings.debug)
    return plan.num_refused + failures


def _size(data: bytes, image: images.Image) -> str:
    rate_bpp = 8 * len(data) / (image.width * image.height)
    return f"{len(data):,} bytes  {rate_bpp:.3f} bpp"


def _quality(data: bytes, codec: "Codec") -> str:
    """Returns the quality that a file has, where its model has such a scale."""
    header, info = packing.read_file(data).header, codec.info
    if info is None or info.quality_50_step is None or not isinstance(header.quantizer, OneStep):
        return ""
    return f"  quality {quantizer.quality_of_step(header.quantizer.step, info.quality_50_step):.4g}"


def _source(job: Job) -> str | BinaryIO:
    return sys.stdin.buffer if job.source == STREAM else job.source


def _write_stdout(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()

"""What `latent-codec encode` and `decode` do with each of their files."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from codec import images, packing
from codec.console import print_warning, process_each
from codec.jobs import STREAM, Job, plan_jobs
from codec.outputs import atomic_output

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
    quality: int | None = None,
    step: float | None = None,
    strict: bool = False,
) -> int:
    """Compresses image files and prints a line for each.

    Args:
        inputs: Files, folders, patterns, or "-" for stdin.
        output: A file, a folder, or "-" for stdout.
        settings: Model, device and so on.
        quality: See `Codec.compress`.
        step: See `Codec.compress`.
        strict: See `Codec.compress`.

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
        image = images.load(_source(job), strict=strict)
        for sentence in image.warnings:
            print_warning(sentence)
        data = codec.compress(image, quality, step)
        if job.target == STREAM:
            _write_stdout(data)
            return None
        with atomic_output(job.target) as stream:
            stream.write(data)
        totals.num_files += 1
        totals.num_pixels += image.width * image.height
        totals.size_bytes += len(data)
        rate_bpp = 8 * len(data) / (image.width * image.height)
        return f"{job.target}  {len(data):,} bytes  {rate_bpp:.3f} bpp"

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
        if job.target == STREAM:
            images.save(image.pixels, sys.stdout.buffer, is_gray=image.is_gray, format=image_format)
            return None
        Path(job.target).parent.mkdir(parents=True, exist_ok=True)
        images.save(image.pixels, job.target, is_gray=image.is_gray, format=image_format)
        return f"{job.target}  {image.width}x{image.height}"

    failures = process_each(plan.jobs, work, title="Decoding", debug=settings.debug)
    return plan.num_refused + failures


def _source(job: Job) -> str | BinaryIO:
    return sys.stdin.buffer if job.source == STREAM else job.source


def _write_stdout(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()

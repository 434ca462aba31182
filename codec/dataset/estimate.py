"""What a job would take and leave, from a sample of its images that is really encoded.

Times are processor time of a worker that waits for nothing, so a source that is slower to read than
to decode adds to them.
"""

import io
import math
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from codec.dataset.coding import make_coding, make_packer
from codec.dataset.encoder import model_codes
from codec.dataset.items import Item, Source
from codec.dataset.job import JobSettings
from codec.dataset.outlook import JPEG_QUALITY, Estimate, Interval, total_interval, wilson_interval
from codec.dataset.pieces import Piece, Prepared, Steps
from codec.dataset.plan import PlanSummary, iter_plan, write_plan
from codec.dataset.preprocess import load_item
from codec.dataset.profile import StageTimes
from codec.shards.forms import Content, ShardForm
from codec.shards.records import ItemError

SAMPLE_IMAGES = 64
CHECKED_IMAGES = 1000
MAX_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class _Sample:
    """What one source image gave: bytes of its records, all 0 after an error."""

    float16_bytes: int = 0
    lc_bytes: int = 0
    jpeg_bytes: int = 0
    error: str | None = None


def estimate_job(
    source: Source,
    settings: JobSettings,
    *,
    num_images: int | None = None,
    sample_images: int = SAMPLE_IMAGES,
    checked_images: int = CHECKED_IMAGES,
    max_seconds: float = MAX_SECONDS,
) -> Estimate:
    """Lists a source, encodes a sample of it, and extrapolates.

    Args:
        source: What would be encoded.
        settings: How.
        num_images: Extrapolate to so many images of this kind, instead of to the source's own.
        sample_images: How many are encoded.
        checked_images: How many are decoded to see whether they can be, with those.
        max_seconds: After which no further batch is encoded, and as much again for decoding.

    Raises:
        SourceError: The source cannot be listed, or holds no image.
        LatentCodecError: The model cannot be used.
    """
    endings = settings.preprocessing.key_endings()
    with tempfile.TemporaryDirectory(prefix="latent-codec-") as folder:
        plan = write_plan(source, Path(folder), settings.shard_images, endings)
        chosen = _choose(iter_plan(Path(folder)), max(sample_images, checked_images))
    every = math.ceil(len(chosen) / sample_images)
    encoded, others = chosen[::every], [item for n, item in enumerate(chosen) if n % every]
    with _one_thread(settings.model.device):
        samples, times = _measure(encoded, settings, max_seconds)
    checked = [one.error for one in samples] + _check(others, settings, max_seconds)
    return _extrapolate(plan, settings, samples, checked, times, num_images)


def _choose(entries: Iterator[Any], count: int) -> list[Item]:
    """A sample of the items, each as likely as any other, in their order (Vitter's algorithm R)."""
    draw = random.Random(0)  # the same every time, so that two plans can be compared
    kept: list[tuple[int, Item]] = []
    items = (entry for entry in entries if isinstance(entry, Item))
    for position, item in enumerate(items):
        if len(kept) < count:
            kept.append((position, item))
        elif (place := draw.randrange(position + 1)) < count:
            kept[place] = (position, item)
    return [item for _, item in sorted(kept, key=lambda pair: pair[0])]


def _measure(
    items: Sequence[Item], settings: JobSettings, max_seconds: float
) -> tuple[list[_Sample], StageTimes]:
    """Encodes items as the job would, piece by piece; the first piece also once beforehand."""
    steps = Steps(settings.work)
    coding = steps.coding
    if settings.form.content is not Content.LC:
        info = settings.model.info
        step = make_packer(info, model_codes(info.directory)).step_units(None, None)
        coding = make_coding(settings.model, ShardForm(), step)
    is_cpu = settings.model.device == "cpu"
    clock = time.process_time if is_cpu else time.perf_counter
    # Every piece is spread over the whole source, so that stopping early leaves none of it out.
    stride = math.ceil(len(items) / settings.work.piece_images)
    pieces = [Piece(n, 0, False, tuple(items[n::stride])) for n in range(stride)]
    steps.pack(steps.encode(steps.prepare(pieces[0]), clock))  # loads, allocates, compiles
    samples, times, begin = [], StageTimes(), time.monotonic()
    for piece in pieces:
        prepared = steps.prepare(piece)
        encoded = steps.encode(prepared, clock)
        files, _ = coding.code(encoded.records)
        outcome = steps.pack(encoded)
        times.add(outcome.times.seconds)
        reasons = {error.source: error.reason for error in outcome.errors}
        lc = {info.key: len(data.payload or b"") for info, data in files}
        halves = {info.key: 2 * image.raw_latents.size for info, image in encoded.records}
        jpeg = _jpeg_bytes(prepared)
        endings = settings.preprocessing.key_endings()
        for item in piece.entries:
            keys = [item.key + ending for ending in endings]
            half, small, picture = (
                sum(found.get(key, 0) for key in keys) for found in (halves, lc, jpeg)
            )
            samples.append(_Sample(half, small, picture, reasons.get(item.source)))
        if time.monotonic() - begin > max_seconds:
            break
    return samples, times


def _check(items: Sequence[Item], settings: JobSettings, max_seconds: float) -> list[str | None]:
    """Decodes items; returns what is wrong with each, None for nothing."""
    found: list[str | None] = []
    begin = time.monotonic()
    for item in random.Random(1).sample(items, len(items)):  # in no order, for it may stop early
        if time.monotonic() - begin > max_seconds:
            break
        result = load_item(item, settings.preprocessing)
        found.append(result.reason if isinstance(result, ItemError) else None)
    return found


def _jpeg_bytes(prepared: Prepared) -> dict[str, int]:
    sizes = {}
    for info, pixels in prepared.records:
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
        sizes[info.key] = buffer.tell()
    return sizes


def _extrapolate(
    plan: PlanSummary,
    settings: JobSettings,
    samples: Sequence[_Sample],
    checked: Sequence[str | None],
    times: StageTimes,
    num_images: int | None,
) -> Estimate:
    count = plan.num_items if num_images is None else num_images
    # Errors of listing are known, unless the figures are for another number of images.
    known = plan.num_errors * count // plan.num_items
    reasons = [reason for reason in checked if reason is not None]
    share = wilson_interval(len(reasons), len(checked))
    value, low, high = (known + count * part for part in share)
    copies = len(settings.preprocessing.key_endings())
    return Estimate(
        num_images=count,
        num_listed_errors=known,
        num_records=round(count * copies * (1 - share[0])),
        num_shards=math.ceil((count + known) / settings.shard_images),
        device=settings.model.device,
        dtype=settings.model.dtype,
        num_sampled=len(samples),
        num_checked=len(checked),
        stage_seconds={stage: total / len(samples) for stage, total in times.seconds.items()},
        errors=Interval(value, low, high),
        float16_bytes=total_interval([one.float16_bytes for one in samples], count),
        lc_bytes=total_interval([one.lc_bytes for one in samples], count),
        jpeg_bytes=total_interval([one.jpeg_bytes for one in samples], count),
        first_error=reasons[0] if reasons else None,
    )


@contextmanager
def _one_thread(device: str) -> Iterator[None]:
    """Lets torch compute as in a worker, which has one core of the CPU."""
    threads = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

"""What a job would take and leave, as numbers with intervals, and as a report.

Intervals are of 95 %: a normal one for means, and Wilson's for the share of errors, which is honest
for few of them (E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical
Inference", JASA 22, 1927).
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

JPEG_QUALITY = 90
WORKERS = (1, 8, 64)

_SIGMAS = 1.96  # of a two-sided interval of 95 %


@dataclass(frozen=True, slots=True)
class Interval:
    """An extrapolated number: its likeliest value, and the ends of its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job would take and leave.

    Attributes:
        num_images: Source images of the job.
        num_listed_errors: What was found wrong while listing them; not among the images.
        num_records: Latent images that they give, errors aside.
        num_shards: Shards that hold them.
        device: Where the sample was encoded.
        dtype: What it was computed in.
        num_sampled: Images that were encoded for this.
        num_checked: Images that were decoded, those among them.
        stage_seconds: Seconds a source image of each stage, see `codec.dataset.profile`.
        errors: Images that give nothing, with those found while listing.
        float16_bytes: Of all latents as 16-bit numbers.
        lc_bytes: Of all latents as `.lc` files.
        jpeg_bytes: Of the same pixels as JPEG of quality 90.
        first_error: The first in the sample.
    """

    num_images: int
    num_listed_errors: int
    num_records: int
    num_shards: int
    device: str
    dtype: str
    num_sampled: int
    num_checked: int
    stage_seconds: dict[str, float]
    errors: Interval
    float16_bytes: Interval
    lc_bytes: Interval
    jpeg_bytes: Interval
    first_error: str | None

    @property
    def is_on_cpu(self) -> bool:
        """Whether a worker is a core; else it is a GPU, with cores beside it."""
        return self.device == "cpu"

    @property
    def worker_seconds(self) -> float:
        """Seconds that one worker takes for a source image."""
        if self.is_on_cpu:
            return sum(self.stage_seconds.values())
        return self.stage_seconds.get("encode", 0.0)

    @property
    def cores_a_gpu(self) -> int:
        """Cores that decode and code as fast as a GPU encodes; 0 without one."""
        if self.is_on_cpu or not self.worker_seconds:
            return 0
        beside = sum(self.stage_seconds.values()) - self.worker_seconds
        return math.ceil(beside / self.worker_seconds)

    def hours(self, workers: int) -> float:
        """Hours of so many workers like the one that was measured."""
        return self.num_images * self.worker_seconds / workers / 3600

    def to_mapping(self) -> dict[str, Any]:
        """Returns everything for programs."""
        hours = {str(workers): self.hours(workers) for workers in WORKERS}
        worker = {"worker_seconds_an_image": self.worker_seconds, "cores_a_gpu": self.cores_a_gpu}
        return {**asdict(self), "hours": hours, **worker}

    def lines(self) -> list[str]:
        """Returns the report for people."""
        each = {stage: 1000 * seconds for stage, seconds in self.stage_seconds.items()}
        worker = "core" if self.is_on_cpu else "GPU"
        beside = f", each with {self.cores_a_gpu} cores beside it" if self.cores_a_gpu else ""
        hours = [
            f"{_duration(self.hours(n))} on {n} {worker}{'s' if n > 1 else ''}" for n in WORKERS
        ]
        lines = [
            f"{self.num_images:,} images give {self.num_records:,} records in "
            f"{self.num_shards:,} shards",
            f"measured on {self.num_sampled} of them, on {self.device} in {self.dtype}: "
            + ", ".join(f"{stage} {ms:.1f} ms" for stage, ms in each.items())
            + " an image",
            f"time    {', '.join(hours)}{beside}",
            f"space   {_gigabytes(self.float16_bytes)} as fp16",
            f"        {_gigabytes(self.lc_bytes)} as .lc",
            f"        {_gigabytes(self.jpeg_bytes)} as JPEG of quality {JPEG_QUALITY}, the same "
            "pixels",
            f"errors  {self.errors.value:,.0f} to expect ({self.errors.low:,.0f} to "
            f"{self.errors.high:,.0f}), {self.num_listed_errors:,} of them known, by "
            f"{self.num_checked:,} images decoded",
        ]
        if self.first_error is not None:
            lines.append(f"        the first: {self.first_error}")
        return lines


def wilson_interval(count: int, total: int) -> tuple[float, float, float]:
    """Returns the share `count / total`, and the ends of its 95 % interval."""
    share, z2 = count / total, _SIGMAS**2
    center = (share + z2 / (2 * total)) / (1 + z2 / total)
    spread = share * (1 - share) / total + z2 / (4 * total**2)
    half = _SIGMAS / (1 + z2 / total) * math.sqrt(spread)
    return share, max(0.0, center - half), min(1.0, center + half)


def total_interval(sizes: Sequence[int], count: int) -> Interval:
    """Returns the sum over `count` images of which `sizes` are a sample."""
    mean = sum(sizes) / len(sizes)
    squares = sum((size - mean) ** 2 for size in sizes)
    deviation = math.sqrt(squares / max(len(sizes) - 1, 1) / len(sizes))
    low, high = (max(0.0, mean + sign * _SIGMAS * deviation) for sign in (-1, 1))
    return Interval(count * mean, count * low, count * high)


def _gigabytes(size: Interval) -> str:
    return f"{size.value / 1e9:,.3f} GB ({size.low / 1e9:,.3f} to {size.high / 1e9:,.3f})"


def _duration(hours: float) -> str:
    if hours >= 2:
        return f"{hours:,.1f} hours"
    if hours >= 2 / 60:
        return f"{60 * hours:.0f} minutes"
    return f"{3600 * hours:.0f} seconds"

"""Where the time of a job goes: core-seconds of each stage, beside the wall clock.

A stage's core-seconds are the processor time of the process or thread that does it, so they mean
the same on a busy machine; on a GPU encoding counts the seconds that the device was waited for.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

STAGES = ("start", "prepare", "encode", "pack", "write", "coordinate")


@dataclass(slots=True)
class StageTimes:
    """Core-seconds of stages; see `STAGES`."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def measure(self, stage: str, clock: Callable[[], float] = time.process_time) -> Iterator[None]:
        """Adds what passes on `clock` inside to a stage."""
        begin = clock()
        try:
            yield
        finally:
            self.add({stage: clock() - begin})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Adds the seconds of stages."""
        for stage, more in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + more

    @property
    def total(self) -> float:
        """Core-seconds of all stages."""
        return sum(self.seconds.values())


@dataclass(frozen=True, slots=True)
class Profile:
    """One run of an engine.

    Attributes:
        times: Of its stages.
        wall_seconds: From the first process started to the last shard on the disk.
        num_images: Source images done.
        num_records: Latent images written.
        cores: How many cores it was allowed.
    """

    times: StageTimes
    wall_seconds: float
    num_images: int
    num_records: int
    cores: int

    @property
    def ideal_seconds(self) -> float:
        """The wall time if every core were at work all the time."""
        return self.times.total / self.cores

    def to_mapping(self) -> dict[str, object]:
        """Returns the figures for programs."""
        return {
            "stage_core_seconds": {stage: round(t, 3) for stage, t in self.times.seconds.items()},
            "core_seconds": round(self.times.total, 3),
            "wall_seconds": round(self.wall_seconds, 3),
            "ideal_seconds": round(self.ideal_seconds, 3),
            "wall_over_ideal": round(self.wall_seconds / max(self.ideal_seconds, 1e-9), 4),
            "cores": self.cores,
            "images": self.num_images,
            "records": self.num_records,
            "images_per_second": round(self.num_images / max(self.wall_seconds, 1e-9), 3),
            "encoder_alone_per_second": round(self._encoder_alone(), 3),
        }

    def lines(self) -> list[str]:
        """Returns the figures for people."""
        records = max(self.num_records, 1)
        rows = [
            f"  {stage:<11}{seconds:9.1f} core-s {1000 * seconds / records:8.1f} ms a record"
            for stage in STAGES
            if (seconds := self.times.seconds.get(stage)) is not None
        ]
        over = 100 * (self.wall_seconds / max(self.ideal_seconds, 1e-9) - 1)
        return [
            f"stages of {self.num_images:,} images, {self.num_records:,} records:",
            *rows,
            f"  {'all':<11}{self.times.total:9.1f} core-s, on {self.cores} cores at best "
            f"{self.ideal_seconds:.1f} s",
            f"wall time {self.wall_seconds:.1f} s, {over:+.1f} % of that: "
            f"{self.num_images / max(self.wall_seconds, 1e-9):.1f} images/s end to end, the "
            f"encoder alone {self._encoder_alone():.1f} records/s",
        ]

    def _encoder_alone(self) -> float:
        """Records a second if the cores did nothing but encode."""
        return self.num_records * self.cores / max(self.times.seconds.get("encode", 0.0), 1e-9)

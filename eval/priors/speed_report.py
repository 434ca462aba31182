"""What a comparison of speed found: typed, as JSON and as a table on a terminal."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rich import box
from rich.table import Table


@dataclass(frozen=True, slots=True)
class SideTiming:
    """One side's medians.

    Attributes:
        name: of the side.
        denoiser: its class and parameters, and multiply-accumulates of one look at one latents.
        decoder: its class and parameters.
        total_s: from class numbers to 8-bit pixels of all images, in seconds.
        decoder_s: of that in the decoder.
    """

    name: str
    denoiser: str
    decoder: str
    total_s: float
    decoder_s: float


@dataclass(frozen=True, slots=True)
class SpeedReport:
    """A finished comparison.

    Attributes:
        prior: name of the prior.
        number: of images at once.
        size: (width, height) of the images in pixels.
        steps: of the samplers.
        guidance: 1 for none.
        runs: timed rounds; figures are medians.
        threads: of the processor.
        device: where all ran.
        dtype: of both sides.
        prior_timing: of the prior as it is.
        ours: of the transformer with our decoder; the prior itself where that is a transformer.
        theirs: of the same transformer in DiTPipeline.
        versions: of Python and the packages that took part.
        command: the command line.
    """

    prior: str
    number: int
    size: tuple[int, int]
    steps: int
    guidance: float
    runs: int
    threads: int
    device: str
    dtype: str
    prior_timing: SideTiming
    ours: SideTiming
    theirs: SideTiming
    versions: Mapping[str, str]
    command: str

    @property
    def ratio(self) -> float:
        """How many times faster our side makes pictures with the same transformer."""
        return self.theirs.total_s / self.ours.total_s

    @property
    def prior_ratio(self) -> float:
        """How many times faster the prior as it is makes pictures."""
        return self.theirs.total_s / self.prior_timing.total_s

    @property
    def is_stand_in(self) -> bool:
        """Whether the transformer of both sides is another than the prior's denoiser."""
        return self.ours != self.prior_timing

    def lines(self) -> list[str]:
        """Return the ratios in sentences."""
        same = "the same transformer"
        if self.is_stand_in:
            same = "one transformer of about the prior's arithmetic"
        lines = [f"with {same} on both sides ours is {self.ratio:.2f} times as fast"]
        if self.is_stand_in:
            lines.append(f"the prior as it is: {self.prior_ratio:.2f} times as fast")
        return lines

    def to_json(self) -> str:
        """Return the report with its ratios as JSON."""
        content = asdict(self)
        content |= {
            "ratio": self.ratio,
            "prior_ratio": self.prior_ratio,
            "is_stand_in": self.is_stand_in,
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def speed_table(report: SpeedReport) -> Table:
    """Lay the timings out for a terminal."""
    r = report
    table = Table(
        title=f"{r.number} images of {r.size[0]}x{r.size[1]} in {r.steps} steps, guidance "
        f"{r.guidance:g}, {r.dtype} on {r.device}, {r.threads} threads, medians of {r.runs}",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("side", overflow="fold")
    for title in ("denoiser", "decoder", "seconds", "of that decoder"):
        table.add_column(title, justify="right")
    shown = (r.prior_timing, r.ours, r.theirs) if r.is_stand_in else (r.ours, r.theirs)
    for one in shown:
        table.add_row(
            one.name, one.denoiser, one.decoder, f"{one.total_s:.2f}", f"{one.decoder_s:.2f}"
        )
    return table

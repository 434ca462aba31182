"""What was found about a token prior: costs of codes, times of its cache; JSON and tables.

Legend: N images, T codes of an image.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich import box
from rich.table import Table

from codec.outputs import atomic_output
from eval.rate_distortion import command_line, package_versions
from eval.results import Failure, figure

RESULTS_FILE = "prior-tokens.json"


@dataclass(frozen=True, slots=True)
class CodeCost:
    """What codes cost under one model.

    Attributes:
        model: what it is.
        bits_per_code: mean over all codes.
        bpp: bits per pixel of the cut images.
    """

    model: str
    bits_per_code: float
    bpp: float


@dataclass(frozen=True, slots=True)
class ClassCost:
    """What the codes of one class cost under the prior.

    Attributes:
        name: of the class.
        num_images: of it.
        bits_per_code: given the class.
        null_bits_per_code: without it; None where the prior has no null class.
    """

    name: str
    num_images: int
    bits_per_code: float
    null_bits_per_code: float | None


@dataclass(frozen=True, slots=True)
class CacheTimes:
    """Seconds of sampling the codes of some images together, medians.

    Attributes:
        num_images: sampled together.
        rounds: timed, with and without in turn.
        cached_s: with the cache.
        uncached_s: without.
        same: whether both gave the same codes.
    """

    num_images: int
    rounds: int
    cached_s: float
    uncached_s: float
    same: bool

    @property
    def ratio(self) -> float:
        """How many times as fast the cache is."""
        return self.uncached_s / self.cached_s


@dataclass(frozen=True, slots=True)
class TokenReport:
    """What `prior-tokens.json` holds.

    Attributes:
        prior: name of the prior.
        codec: name of its codec.
        num_images: measured.
        codes_per_image: T.
        size: (width, height) of the cut images.
        costs: of the codes, by model.
        classes: of the prior alone; empty for one without classes.
        times: of the cache; None where it was not timed.
        device: where the model ran.
        dtype: in which precision; probabilities are summed up in float64.
        errors: images that failed.
        versions: of Python and the packages that took part.
        command: the command line.
    """

    prior: str
    codec: str
    num_images: int
    codes_per_image: int
    size: tuple[int, int]
    costs: tuple[CodeCost, ...]
    classes: tuple[ClassCost, ...]
    times: CacheTimes | None
    device: str
    dtype: str
    errors: tuple[Failure, ...]
    versions: dict[str, str] = field(default_factory=package_versions)
    command: str = field(default_factory=command_line)

    def to_json(self) -> str:
        """Return the report as JSON, strictly: no NaN, no Infinity."""
        content = asdict(self)
        if self.times is not None:
            content["times"]["ratio"] = self.times.ratio
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, folder: Path) -> Path:
        """Write `prior-tokens.json` into `folder`, whole or not at all, and return its path."""
        path = folder / RESULTS_FILE
        with atomic_output(path) as stream:
            stream.write(self.to_json().encode())
        return path


def cost_table(report: TokenReport) -> Table:
    """Lay the costs out for a terminal."""
    table = Table(
        title=f"{report.prior}: what {report.codes_per_image} codes an image of {report.codec} "
        f"cost, mean of {report.num_images} images of {report.size[0]}x{report.size[1]} pixels",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("model")
    table.add_column("bits a code", justify="right")
    table.add_column("bpp", justify="right")
    for cost in report.costs:
        table.add_row(cost.model, figure(cost.bits_per_code, 4), figure(cost.bpp, 5))
    return table


def class_table(report: TokenReport) -> Table:
    """Lay the classes out for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("class")
    for title in ("images", "bits a code,\ngiven the class", "without it"):
        table.add_column(title, justify="right")
    for entry in report.classes:
        table.add_row(
            entry.name,
            str(entry.num_images),
            figure(entry.bits_per_code, 4),
            figure(entry.null_bits_per_code, 4),
        )
    return table


def remarks(report: TokenReport) -> list[str]:
    """Say what the tables leave out: how fast the cache is."""
    times = report.times
    if times is None:
        return []
    codes = "the same codes" if times.same else "other codes, which rounding explains"
    return [
        f"sampling {times.num_images} images together on {report.device} in {report.dtype}, "
        f"medians of {times.rounds}: {times.cached_s:.2f} s with the cache of keys and values, "
        f"{times.uncached_s:.2f} s without, {times.ratio:.1f} times as long, with {codes}"
    ]

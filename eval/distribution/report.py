"""The distances between two folders of images, typed, as `distance.json` and on a terminal."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from codec.outputs import atomic_output
from eval.distribution.features import FEATURES, extract
from eval.distribution.frechet import FrechetDistance, frechet_distance
from eval.distribution.image_sets import ImageSet, common_size
from eval.distribution.kernel_distance import KernelDistance, equal_numbers, kernel_distance
from eval.lpips import PerceptualDistance
from eval.rate_distortion import command_line, package_versions

DISTANCE_FILE = "distance.json"


@dataclass(frozen=True, slots=True)
class DistanceReport:
    """What was measured.

    Attributes:
        first: a folder.
        second: another.
        found: images in each; the larger set is drawn from by the seed.
        size: (width, height) of the images, in pixels.
        features: what distances are computed over.
        seed: of the draw and the bootstrap.
        kernel: unbiased kernel distance.
        frechet: Frechet distance of the same images.
        versions: of Python and the packages that took part.
        command: the command line.
    """

    first: str
    second: str
    found: tuple[int, int]
    size: tuple[int, int]
    features: str
    seed: int
    kernel: KernelDistance
    frechet: FrechetDistance
    versions: Mapping[str, str]
    command: str

    def lines(self) -> list[str]:
        """Return the figures in sentences for people."""
        kernel = self.kernel
        return [
            f"over {self.features}; {kernel.num_images} images of each folder, "
            f"{self.size[0]}x{self.size[1]} pixels",
            f"kernel distance {kernel.value:.2f}, 95 % interval {kernel.low:.2f} to "
            f"{kernel.high:.2f} (unbiased, cubic kernel; about 0 for images of one kind)",
            f"Frechet distance {self.frechet.value:.2f} (no FID: other features)",
        ]

    def to_json(self) -> str:
        """Return the report as JSON."""
        content = asdict(self)
        content["frechet"]["note"] = self.frechet.note
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, folder: Path) -> Path:
        """Write `distance.json` into `folder`, whole or not at all, and return its path."""
        path = folder / DISTANCE_FILE
        with atomic_output(path) as stream:
            stream.write(self.to_json().encode())
        return path


def measure_sets(
    first: ImageSet,
    second: ImageSet,
    network: PerceptualDistance,
    *,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> DistanceReport:
    """Measure how far two sets of images are apart.

    Args:
        first: images of one size.
        second: images of the same size.
        network: LPIPS(squeeze), for its backbone.
        seed: of the draw and the bootstrap.
        advance: is called after each image.

    Raises:
        LatentCodecError: the sizes differ, or an image cannot be read.
        ValueError: there are fewer than two images in a set.
    """
    size = common_size(first, second)
    features = [extract(images, network, advance=advance) for images in (first, second)]
    chosen = equal_numbers(features[0], features[1], seed=seed)
    return DistanceReport(
        first=str(first.folder),
        second=str(second.folder),
        found=(len(first), len(second)),
        size=size,
        features=FEATURES,
        seed=seed,
        kernel=kernel_distance(*chosen, seed=seed),
        frechet=frechet_distance(*chosen),
        versions=package_versions(),
        command=command_line(),
    )
